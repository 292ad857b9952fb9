"""Any value to any register of the local APIC, of KVM's interface and of the TSC: #GP or nothing, and the vCPU goes on."""

import os
import random
import struct
import sys
from pathlib import Path

import pytest
import vcpu

sys.path.insert(0, str(Path(__file__).parents[1] / "vcpu"))
from guest_machine import CODE, GP, HANDLERS, PDPT, STACK, LongMode

ROUNDS = 4 * int(float(os.environ.get("VIRGA_FUZZ_SECONDS", "10")))
STEPS = 60
PD3 = 0x25000
MSRS = (0x1B, 0x10, 0x11, 0x12, 0x3B, 0x6E0, *range(0x800, 0x840), *range(0x4B564D00, 0x4B564D08))
VALUES = (0, 1, 0xFF, 0x1FF, 0x2001, 0x700FF, 0x20040, 0x40040, 0xFEE00900, 0xFEE00D00, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1)
SKIP = bytes.fromhex("4883442408024883c40848cf")           # add qword [rsp+8], 2; add rsp, 8; iretq


def step(rng: random.Random) -> bytes:
    value = rng.choice(VALUES) if rng.random() < 0.6 else rng.getrandbits(rng.choice((16, 32, 64)))
    if rng.random() < 0.3:                                  # mov [abs32], eax or back
        address = 0xFEE00000 + rng.randrange(0, 0x400) * (16 if rng.random() < 0.9 else 3) % 0xFFC
        opcode = b"\xa3" if rng.random() < 0.7 else b"\xa1"
        return b"\xb8" + struct.pack("<I", value & 0xFFFFFFFF) + opcode + struct.pack("<Q", address)
    access = b"\x0f\x30" if rng.random() < 0.8 else b"\x0f\x32"
    return (b"\xb9" + struct.pack("<I", rng.choice(MSRS)) + b"\xb8" + struct.pack("<I", value & 0xFFFFFFFF)
            + b"\xba" + struct.pack("<I", value >> 32) + access)


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_whatever_is_written(clock: str) -> None:
    seed = int(os.environ.get("VIRGA_FUZZ_SEED", random.SystemRandom().getrandbits(32)))
    rng = random.Random(seed)
    for _ in range(ROUNDS if clock == "virtual" else ROUNDS // 4):
        guest = LongMode(clock)
        guest.write(PDPT + 24, PD3 | 7)
        guest.write(PD3 + 0x1F7 * 8, 0xFEE00000 | 0x87)
        for vector in range(256):
            guest.space.write(HANDLERS + 16 * vector, SKIP if vector == GP else b"\x48\xcf")
        program = b"".join(step(rng) for _ in range(STEPS))
        guest.space.write(CODE, b"\xfb" + program + b"\xeb\xfe")
        guest.vmcs[vcpu.GUEST_RIP], guest.vmcs[vcpu.GUEST_RSP] = CODE, STACK
        exit_ = guest.cpu.run(guest.vmcs, quantum=3000)
        assert exit_.reason in (vcpu.EXIT_REASON_PREEMPTION_TIMER, vcpu.EXIT_REASON_HLT, vcpu.EXIT_REASON_TRIPLE_FAULT), \
            f"seed {seed}: {exit_}"
        state = guest.cpu.save()
        guest.cpu.load(state)
        assert guest.cpu.save() == state, f"seed {seed}"
