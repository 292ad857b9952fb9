"""Random programs in random states in every mode; run as `python tests/fuzz/guest_fuzz.py SEED SECONDS NOTE [CPUS]`.

A crash is the process's death, a hang the parent's time-out; the program at fault is in the file NOTE. With 2 CPUs two
threads write and run each other's code. What a guest does may end it (halt, triple fault, entry failure), never the
process.
"""

import random
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "vcpu"))

import vcpu
from guest_machine import CODE, GDT, IDT, PD, PDPT, PML4, PT, STACK, TSS, USER_CODE, Guest, LongMode, Protected, RealMode
from vcpu.isa import table

ROWS = table.all_rows()
PREFIXES = (0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65)
MAPS = (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")
WORDS = (0, 1, 2, 3, 8, 16, 24, 0x1B, 0x7F, 0x80, 0xFF, 0x277, 0x1000, 0x6000, 0x7000, 0x8000, 0x9000, 0xA000, 0x10000,
         0x20000, 0x7FFFFFFF, 0x80000000, 0xC0000000, 0xC0000080, 0xFEE00000, 0xFFFFFFFF, 1 << 32, 1 << 47, 2**64 - 8,
         2**64 - 1)
REGISTERS = ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r15")


def instruction(rng: random.Random, bits: int) -> bytes:
    """Noise, or a row of the table with whatever operands."""
    if rng.random() < 0.3:
        return rng.randbytes(rng.randrange(1, 12))
    row = rng.choice(ROWS)
    e = row.encoding
    out = bytes([rng.choice(PREFIXES)]) if rng.random() < 0.2 else b""
    if e.prefix in ("66", "F3", "F2"):
        out += bytes([int(e.prefix, 16)])
    if bits == 64 and (e.w == 2 or rng.random() < 0.3):
        out += bytes([0x40 | rng.randrange(16) | (8 if e.w == 2 else 0)])
    out += MAPS[row.map] + bytes([rng.choice(row.opcodes)])
    if e.modrm:
        reg = rng.randrange(8) if e.reg is None else e.reg
        mod = {1: rng.randrange(3), 2: 3, 3: rng.randrange(4)}[e.mod]
        out += bytes([mod << 6 | reg << 3 | (rng.randrange(8) if e.rm is None else e.rm)])
    return out + rng.randbytes(rng.randrange(9))


def disturb(rng: random.Random, guest: Guest) -> None:
    """A bit or a word of the guest's own tables."""
    at = rng.choice((GDT, IDT, TSS, PT, PD, PDPT, PML4)) + rng.randrange(512) * 8
    guest.write(at, rng.choice((0, rng.getrandbits(64), guest.read(at) ^ 1 << rng.randrange(64))))


def prepare(rng: random.Random, guest: Guest) -> bytes:
    program = b"".join(instruction(rng, guest.bits) for _ in range(rng.randrange(1, 30)))[:0x800]
    guest.space.write(rng.choice((CODE, CODE, USER_CODE)), program)
    sp = rng.choice((STACK, STACK, STACK + 0xFFF, rng.choice(WORDS)))
    guest.vmcs[vcpu.GUEST_RIP] = CODE
    guest.vmcs[vcpu.GUEST_RSP] = sp & 0xFFFF if guest.bits == 16 else sp
    guest.vmcs[vcpu.GUEST_ACTIVITY_STATE] = 0
    for name in REGISTERS:
        guest.cpu.set(name, rng.choice(WORDS) if rng.random() < 0.6 else rng.getrandbits(64))
    if rng.random() < 0.1:
        guest.cpu.set("rflags", 2 | rng.getrandbits(22) & 0x255FD5)
    if rng.random() < 0.3:
        disturb(rng, guest)
    return program


def companion(first: LongMode) -> LongMode:
    """A second vCPU in the same space."""
    guest = LongMode.__new__(LongMode)
    guest.space, guest.clock = first.space, first.clock
    guest.cpu, guest.vmcs = vcpu.Vcpu(first.space, first.clock, 1, 2), vcpu.Vmcs()
    guest.set_up()
    guest.vmcs[vcpu.GUEST_ACTIVITY_STATE] = 0
    return guest


def run_some(rng: random.Random, guest: Guest, programs: int) -> None:
    for _ in range(programs):
        prepare(rng, guest)
        exit_ = guest.cpu.run(guest.vmcs, quantum=3000)
        if exit_.reason >> 31 or exit_.reason == vcpu.EXIT_REASON_TRIPLE_FAULT:
            return


def main_smp(seed: int, seconds: float) -> None:
    rng = random.Random(seed)
    end, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        first = LongMode("real")
        guests = (first, companion(first))
        threads = []
        for guest in guests:
            guest.vmcs[vcpu.CPU_BASED_VM_EXEC_CONTROL] = vcpu.HLT_EXITING
            threads.append(threading.Thread(target=run_some, args=(random.Random(rng.getrandbits(32)), guest, 15)))
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.01)
            for guest in guests:
                guest.cpu.kick()
        rounds += 1
    print(rounds)


def main(seed: int, seconds: float, note: Path) -> None:
    rng = random.Random(seed)
    running: list[vcpu.Vcpu] = []

    def kick() -> None:                  # a repeated instruction may take hours otherwise
        while True:
            time.sleep(0.1)
            for cpu in running[-1:]:
                cpu.kick()

    threading.Thread(target=kick, daemon=True).start()
    end, programs = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        guest = rng.choice((LongMode, LongMode, Protected, RealMode))()
        running[:] = [guest.cpu]
        for _ in range(20):
            note.write_text(f"{type(guest).__name__} {prepare(rng, guest).hex()}\n")
            exit_ = guest.cpu.run(guest.vmcs, quantum=2000)
            programs += 1
            if exit_.reason >> 31 or exit_.reason == vcpu.EXIT_REASON_TRIPLE_FAULT:
                break
    print(programs)


if __name__ == "__main__":
    if sys.argv[4:] == ["2"]:
        main_smp(int(sys.argv[1]), float(sys.argv[2]))
    else:
        main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
