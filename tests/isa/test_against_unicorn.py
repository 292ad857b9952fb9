"""A second opinion, by a processor written by others: integer instructions in real mode, as a BIOS runs them.

unicorn (QEMU's translator) and Virga get the same bytes and state. The host cannot be asked here: it has no real mode.
"""

import os
import random
from collections import defaultdict

import pytest
import unicorn
import vcpu
from unicorn import x86_const as names
from vcpu.isa import integer
from vcpu.isa.table import Row, all_rows

from .forms import make_case, undefined_flags
from .harness import COMPARED_FLAGS, DATA, GPRS, WINDOW, WINDOW_AT, Case

CASES = int(os.environ.get("ISA_CASES", "24")) // 2
RAM = 1 << 20
CODE_SEGMENT, DATA_SEGMENT = 0x1000, 0x2000
CODE_OFFSET = 0x800
WINDOW_OFFSET = WINDOW_AT - DATA
REGISTERS = [getattr(names, f"UC_X86_REG_E{name[1:].upper()}") for name in GPRS[:8]]
SEGMENTS = {"cs": CODE_SEGMENT, "ds": DATA_SEGMENT, "es": DATA_SEGMENT, "ss": DATA_SEGMENT}

# unicorn 2.1 is QEMU 5.0: what it does otherwise than the manual, or cannot report
UNICORN = {
    "cmpxchg8b", "cmpxchg16b",   # no #UD for the register form
    "lzcnt", "popcnt",           # its default model has none
    "movbe", "crc32",
    "ud0", "ud1", "ud2", "bound", "into", "div", "idiv", "salc",      # exceptions do not come out as vectors
    "enter", "leave",            # EBP and the stack's width
    "bt", "bts", "btr", "btc",   # bit strings in 16-bit segments
    "movs", "cmps", "stos", "lods", "scas",                           # its count is one of iterations
    "test", "neg",               # no F6 /1; LOCK NEG leaves other flags
    "clflush", "lfence", "mfence", "sfence", "prefetch", "prefetchw", "nop", "nop_or_xchg",
}


def rows() -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    known = {insn.mnemonic for insn in integer.ROWS}
    for row in all_rows():
        insn = row.insn
        if insn.mnemonic in known - UNICORN and insn.modes != "64" and row.encoding.w != 2 and not row.encoding.opsize & 4:
            found[insn.mnemonic].append(row)
    return found


ROWS = rows()


class RealMode:
    """Virga's processor in real mode; one instruction a run, every exception an exit."""

    def __init__(self) -> None:
        self.space = vcpu.AddressSpace(RAM)
        self.cpu = vcpu.Vcpu(self.space, vcpu.Clock("virtual"), 0, 1)
        self.vmcs = vcpu.Vmcs()
        self.vmcs[vcpu.EXCEPTION_BITMAP] = 0xFFFFFFFF
        for name, selector in SEGMENTS.items():
            self.cpu.set(name, selector)
            self.cpu.set(f"{name}.base", selector << 4)
            self.cpu.set(f"{name}.limit", 0xFFFF)

    def run(self, case: Case) -> tuple[object, ...] | None:
        self.space.write((CODE_SEGMENT << 4) + CODE_OFFSET, case.code)
        self.space.write((DATA_SEGMENT << 4) + WINDOW_OFFSET, case.state.window)
        for name, value in zip(GPRS[:8], case.state.gpr):
            self.cpu.set(name, value)
        self.cpu.set("rflags", case.state.rflags)
        self.cpu.set("rip", CODE_OFFSET)
        if self.cpu.run(self.vmcs, quantum=1).reason != vcpu.EXIT_REASON_PREEMPTION_TIMER:
            return None
        return (*(self.cpu.get(name) & 0xFFFFFFFF for name in GPRS[:8]), self.cpu.get("rip") & 0xFFFF,
                self.cpu.get("rflags"), self.space.read((DATA_SEGMENT << 4) + WINDOW_OFFSET, WINDOW))


class Unicorn:
    def __init__(self) -> None:
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_16)
        self.uc.mem_map(0, RAM)

    def run(self, case: Case) -> tuple[object, ...] | None:
        uc = self.uc
        uc.mem_write((CODE_SEGMENT << 4) + CODE_OFFSET, case.code + b"\x90" * 4)
        uc.ctl_remove_cache((CODE_SEGMENT << 4) + CODE_OFFSET, (CODE_SEGMENT << 4) + CODE_OFFSET + 32)
        uc.mem_write((DATA_SEGMENT << 4) + WINDOW_OFFSET, case.state.window)
        for name, selector in SEGMENTS.items():
            uc.reg_write(getattr(names, f"UC_X86_REG_{name.upper()}"), selector)
        for register, value in zip(REGISTERS, case.state.gpr):
            uc.reg_write(register, value & 0xFFFFFFFF)
        uc.reg_write(names.UC_X86_REG_EFLAGS, case.state.rflags)
        try:
            uc.emu_start((CODE_SEGMENT << 4) + CODE_OFFSET, RAM - 1, count=1)
        except unicorn.UcError:
            return None
        return (*(uc.reg_read(register) for register in REGISTERS), uc.reg_read(names.UC_X86_REG_EIP) & 0xFFFF,
                uc.reg_read(names.UC_X86_REG_EFLAGS), bytes(uc.mem_read((DATA_SEGMENT << 4) + WINDOW_OFFSET, WINDOW)))


@pytest.fixture(scope="module")
def pair() -> tuple[RealMode, Unicorn]:
    return RealMode(), Unicorn()


@pytest.mark.parametrize("mnemonic", sorted(ROWS))
def test_same_result_as_unicorn(mnemonic: str, pair: tuple[RealMode, Unicorn], seed: int) -> None:
    rng = random.Random(f"{seed} {mnemonic}")
    virga, other = pair
    compared = 0
    for row in ROWS[mnemonic]:
        for _ in range(CASES):
            form, case = make_case(row, rng, bits=16)
            undefined = undefined_flags(form, case)
            found, expected = virga.run(case), other.run(case)
            if undefined is None or found is None or expected is None:
                continue                             # a fault: the host's oracle is for those
            compared += 1
            told = f"{case.name} {case.code.hex(' ')} seed {seed} {[hex(v) for v in case.state.gpr[:8]]}"
            assert found[:9] == expected[:9], told
            assert (found[9] ^ expected[9]) & COMPARED_FLAGS & ~undefined == 0, told         # type: ignore[operator]
            assert found[10] == expected[10], told
    assert compared
