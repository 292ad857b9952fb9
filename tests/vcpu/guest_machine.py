"""A bare guest for tests of the processor: GDT, IDT, TSS, page tables, and a run that says how it ended.

Every vector's handler is one HLT at HANDLERS + 16 * vector, so the vector is read off rip and the frame off the stack.
"""

import functools
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import vcpu

CODE, STACK, USER_CODE, USER_STACK = 0x1000, 0xA000, 0xB000, 0xC000
PML4, PDPT, PD, PT = 0x20000, 0x21000, 0x22000, 0x23000
GDT, TSS, IDT, HANDLERS, KERNEL_STACK = 0x6000, 0x7000, 0x8000, 0x10000, 0x1F000
IST1 = 0x1E000
KERNEL_CODE, DATA, USER32, USER_DATA, USER64, TSS_SELECTOR = 8, 16, 24, 32, 40, 48
CODE32, CODE16, DATA16, EXPAND_DOWN, READ_ONLY, ABSENT, CONFORMING, EXECUTE_ONLY, FREE = (
    64, 72, 80, 88, 96, 104, 112, 120, 128)
DESCRIPTORS = {
    KERNEL_CODE: 0x00AF9B000000FFFF, DATA: 0x00CF93000000FFFF, USER32: 0x00CFFB000000FFFF,
    USER_DATA: 0x00CFF3000000FFFF, USER64: 0x00AFFB000000FFFF, CODE32: 0x00CF9B000000FFFF,
    CODE16: 0x00009B000000FFFF, DATA16: 0x000093000000FFFF, EXPAND_DOWN: 0x0040970000000FFF,
    READ_ONLY: 0x00CF91000000FFFF, ABSENT: 0x00CF13000000FFFF, CONFORMING: 0x00CF9F000000FFFF,
    EXECUTE_ONLY: 0x00CF99000000FFFF,
}
DE, DB, NMI, BP, OF, BR, UD, NM, DF, TS, NP, SS, GP, PF, MF, AC = 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17
WITH_ERROR = {DF, TS, NP, SS, GP, PF, AC}


@functools.cache
def asm(text: str, bits: int = 64, origin: int = CODE) -> bytes:
    """Intel syntax to bytes."""
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "a.s"), Path(folder, "a.bin")
        source.write_text(f".intel_syntax noprefix\n.code{bits}\n{text}\n")
        subprocess.run(["as", "--32" if bits != 64 else "--64", "-o", folder + "/a.o", source], check=True)
        subprocess.run(["ld", "-m", "elf_i386" if bits != 64 else "elf_x86_64", "--oformat", "binary", "-e", "0",
                        f"-Ttext={origin:#x}", "-o", binary, folder + "/a.o"], check=True)
        return binary.read_bytes()


@dataclass
class End:
    """How a run ended: the exit, and the exception that the guest took, if any."""

    exit: vcpu.VmExit
    vector: int | None
    error: int | None
    rip: int                     # where the frame returns to
    cs: int
    flags: int
    rsp: int
    ss: int


class Guest:
    """One vCPU with 16 MiB. Subclasses say in which mode it starts."""

    bits = 64

    def __init__(self, clock: str = "virtual") -> None:
        self.space = vcpu.AddressSpace(16 << 20)
        self.clock = vcpu.Clock(clock, tsc_hz=10**9, seed=7)
        self.cpu = vcpu.Vcpu(self.space, self.clock, 0, 1)
        self.vmcs = vcpu.Vmcs()
        self.write(GDT, *(DESCRIPTORS.get(at, 0) for at in range(0, 256, 8)))
        self.set_up()

    def write(self, address: int, *words: int) -> None:
        self.space.write(address, struct.pack(f"<{len(words)}Q", *words))

    def read(self, address: int, size: int = 8) -> int:
        return int.from_bytes(self.space.read(address, size), "little")

    def descriptor(self, selector: int, value: int) -> None:
        self.write(GDT + selector, value)

    def segment(self, name: str, selector: int, rights: int, limit: int = 0xFFFFFFFF, base: int = 0) -> None:
        for field, value in (("SELECTOR", selector), ("AR_BYTES", rights), ("LIMIT", limit), ("BASE", base)):
            self.vmcs[getattr(vcpu, f"GUEST_{name}_{field}")] = value

    def flat(self, code: int, code_rights: int, data_rights: int = 0xC093) -> None:
        self.segment("CS", code, code_rights)
        for name in ("SS", "DS", "ES", "FS", "GS"):
            self.segment(name, DATA, data_rights)
        self.vmcs[vcpu.GUEST_GDTR_BASE], self.vmcs[vcpu.GUEST_GDTR_LIMIT] = GDT, 255
        self.vmcs[vcpu.GUEST_IDTR_BASE] = IDT

    def set_up(self) -> None:
        """Tables and registers of the mode."""

    def load(self, text: str, at: int = CODE, bits: int | None = None) -> None:
        self.space.write(at, asm(text, bits or self.bits, at))

    def run(self, text: str | None = None, limit: int = 100000, **registers: int) -> End:
        """Run text from CODE (or go on where the guest stands) until it halts or leaves."""
        if text is not None:
            self.load(text)
            self.vmcs[vcpu.GUEST_RIP] = CODE
            self.vmcs[vcpu.GUEST_RSP] = STACK
        self.vmcs[vcpu.GUEST_ACTIVITY_STATE] = 0
        for name, value in registers.items():
            self.cpu.set(name, value)
        self.before = self.cpu.retired_instructions
        return self.end(self.cpu.run(self.vmcs, quantum=limit))

    def end(self, exit_: vcpu.VmExit) -> End:
        rip, sp = self.cpu.get("rip"), self.cpu.get("ss.base") + self.cpu.get("rsp")
        number, inside = divmod(rip - HANDLERS, 16)
        if exit_.reason != vcpu.EXIT_REASON_HLT or not 0 <= number < 256 or inside != 1:
            return End(exit_, None, None, rip, self.cpu.get("cs"), self.cpu.get("rflags"), self.cpu.get("rsp"), 0)
        width = 8 if self.bits == 64 else 4
        error = None
        if number in WITH_ERROR:
            error, sp = self.read(sp, width), sp + width
        return End(exit_, number, error, *(self.read(sp + width * i, width) for i in range(5)))


class LongMode(Guest):
    """64-bit mode, CPL 0, the first 2 MiB in 4 KiB pages and 14 MiB in 2 MiB pages, all of them user pages."""

    def set_up(self) -> None:
        self.write(PML4, PDPT | 7)
        self.write(PDPT, PD | 7)
        self.write(PD, PT | 7, *(i << 21 | 0x87 for i in range(1, 8)))
        self.write(PT, *(i << 12 | 7 for i in range(512)))
        self.write(GDT + TSS_SELECTOR, TSS << 16 | 0x67 | 0x8B << 40, 0)
        self.space.write(TSS + 4, struct.pack("<Q", KERNEL_STACK))
        self.space.write(TSS + 0x24, struct.pack("<Q", IST1))
        self.space.write(TSS + 0x66, struct.pack("<H", 0x68))          # no I/O map
        for vector in range(256):
            self.gate(vector, HANDLERS + 16 * vector)
            self.space.write(HANDLERS + 16 * vector, b"\xf4")
        self.flat(KERNEL_CODE, 0xA09B)
        self.segment("TR", TSS_SELECTOR, 0x8B, 0x67, TSS)
        vmcs = self.vmcs
        vmcs[vcpu.GUEST_CR0], vmcs[vcpu.GUEST_CR3] = 0x80010033, PML4
        vmcs[vcpu.GUEST_CR4], vmcs[vcpu.GUEST_IA32_EFER] = 0x6A0, 0xD01
        vmcs[vcpu.GUEST_IDTR_LIMIT] = 0xFFF
        vmcs[vcpu.GUEST_RFLAGS] = 2

    def gate(self, vector: int, target: int, dpl: int = 0, kind: int = 0xE, ist: int = 0, cs: int = KERNEL_CODE) -> None:
        self.write(IDT + 16 * vector, target & 0xFFFF | cs << 16 | ist << 32 | (0x80 | dpl << 5 | kind) << 40
                   | (target >> 16 & 0xFFFF) << 48, target >> 32)

    def map(self, page: int, entry: int) -> None:
        """One of the 512 small pages."""
        self.write(PT + (page >> 12) * 8, entry)
        self.vmcs[vcpu.GUEST_CR3] = PML4                 # no stale translation

    def user(self, text: str, code: int = USER64, bits: int = 64, flags: int = 2, **registers: int) -> End:
        """IRETQ to CPL 3 and run text there."""
        self.load(text, USER_CODE, bits)
        self.write(STACK, USER_CODE, code | 3, flags, USER_STACK, USER_DATA | 3)
        return self.run("iretq", **registers)


class Protected(Guest):
    """32-bit protected mode without paging, CPL 0."""

    bits = 32

    def set_up(self) -> None:
        self.write(GDT + TSS_SELECTOR, TSS << 16 | 0x67 | 0x8B << 40)
        self.space.write(TSS + 4, struct.pack("<II", KERNEL_STACK, DATA))
        self.space.write(TSS + 0x66, struct.pack("<H", 0x68))
        for vector in range(256):
            self.gate(vector, HANDLERS + 16 * vector)
            self.space.write(HANDLERS + 16 * vector, b"\xf4")
        self.flat(CODE32, 0xC09B)
        self.segment("TR", TSS_SELECTOR, 0x8B, 0x67, TSS)
        self.vmcs[vcpu.GUEST_CR0] = 0x33
        self.vmcs[vcpu.GUEST_CR4] = 0x600
        self.vmcs[vcpu.GUEST_IDTR_LIMIT] = 0x7FF
        self.vmcs[vcpu.GUEST_RFLAGS] = 2

    def gate(self, vector: int, target: int, dpl: int = 0, kind: int = 0xE, cs: int = CODE32) -> None:
        self.write(IDT + 8 * vector, target & 0xFFFF | cs << 16 | (0x80 | dpl << 5 | kind) << 40
                   | (target >> 16 & 0xFFFF) << 48)

    def user(self, text: str, flags: int = 2, **registers: int) -> End:
        self.load(text, USER_CODE)
        self.space.write(STACK, struct.pack("<5I", USER_CODE, USER32 | 3, flags, USER_STACK, USER_DATA | 3))
        return self.run("iretd", **registers)


class RealMode(Guest):
    """As after RESET, but at 0:CODE with a stack; the vector table's handlers are HLTs."""

    bits = 16

    def set_up(self) -> None:
        for vector in range(256):
            self.space.write(vector * 4, struct.pack("<HH", 16 * vector, HANDLERS >> 4))
            self.space.write(HANDLERS + 16 * vector, b"\xf4")
        self.segment("CS", 0, 0x9B, 0xFFFF)
        self.vmcs[vcpu.GUEST_IDTR_LIMIT] = 0x3FF
