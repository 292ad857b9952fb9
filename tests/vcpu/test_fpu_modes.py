"""x87 and SSE outside 64-bit mode, and their exceptions as the guest's kernel sees them."""

import struct

import pytest
import vcpu

from guest_machine import DATA, GP, MF, SS, LongMode, Protected, RealMode

XM = 19
AREA = 0x3000


def words(guest, count: int, size: str, at: int = AREA) -> tuple[int, ...]:
    return struct.unpack(f"<{count}{size}", guest.space.read(at, struct.calcsize(f"<{count}{size}")))


def test_real_mode_environment_of_16_bits() -> None:
    """SDM 1 figure 8-12: linear pointers, the opcode in the word of the instruction pointer's upper bits."""
    guest = RealMode()
    guest.run("fninit; fld1; fld dword ptr [0x3100]; fnstenv [0x3000]; hlt")
    assert words(guest, 7, "H") == (0x37F, 0x3000, 0x1FFF, 0x1004, 0x0106, 0x3100, 0)


def test_real_mode_environment_of_32_bits() -> None:
    guest = RealMode()
    guest.run("fninit; fldz; data32 fnstenv [0x3000]; hlt")
    assert words(guest, 7, "I") == (0xFFFF037F, 0xFFFF3800, 0xFFFF7FFF, 0x1002, 0x01EE, 0, 0)


def test_protected_mode_environments() -> None:
    guest = Protected()
    guest.run("fninit; fldpi; fld qword ptr [0x3100]; fnstenv [0x3000]; data16 fnstenv [0x3040]; hlt")
    assert words(guest, 7, "I") == (0xFFFF037F, 0xFFFF3000, 0xFFFF1FFF, 0x1004, 0x0505 << 16, 0x3100, 0xFFFF0000)
    assert words(guest, 7, "H", AREA + 0x40) == (0x37F, 0x3000, 0x1FFF, 0x1004, 0, 0x3100, 0)


@pytest.mark.parametrize("machine", [RealMode, Protected, LongMode])
def test_fsave_and_back(machine) -> None:
    guest = machine()
    guest.run("fninit; fldpi; fldl2t; fld1; fnsave [0x3000]; frstor [0x3000]; fstp st(2); fstp tbyte ptr [0x3100]; "
              "fnstsw [0x3110]; hlt")
    assert guest.space.read(AREA + 0x100, 10) == bytes.fromhex("fe8a1bcd4b789ad40040")       # log2 10
    assert guest.read(AREA + 0x110, 2) & 0x3800 == 0x3800


def test_fxsave_outside_64_bit_mode_leaves_the_upper_eight() -> None:
    guest = Protected()
    guest.space.write(AREA, b"\xEE" * 512)
    guest.run("pcmpeqb xmm7, xmm7; fxsave [0x3000]; hlt")
    assert guest.space.read(AREA + 160 + 7 * 16, 16) == b"\xff" * 16
    assert guest.space.read(AREA + 288, 224) == b"\xEE" * 224


def unmasked_division(guest) -> str:
    guest.write(AREA, 0x37B)                                 # ZM clear
    return "fninit; fldcw [0x3000]; fld1; fldz; fdivp st(1), st; nop; "


@pytest.mark.parametrize("machine", [Protected, LongMode])
def test_an_x87_exception_waits_for_the_next_instruction(machine) -> None:
    guest = machine()
    end = guest.run(unmasked_division(guest) + "fwait; hlt")
    assert end.vector == MF
    assert guest.space.read(end.rip - 1, 2) == b"\x90\x9b"   # behind the NOP: FWAIT


def test_control_instructions_do_not_wait() -> None:
    guest = LongMode()
    end = guest.run(unmasked_division(guest) + "fnstsw ax; fnclex; fwait; hlt")
    assert end.vector is None and guest.cpu.get("rax") & 0xFF == 0x84


def test_without_ne_a_pending_exception_is_ignored() -> None:
    """CR0.NE = 0 and IGNNE# asserted: the instruction runs, the flag stays (SDM 1 8.7.2)."""
    guest = RealMode()
    end = guest.run(unmasked_division(guest) + "fld1; fnstsw [0x3100]; hlt")
    assert end.vector is None
    assert guest.read(AREA + 0x100, 2) & 0x84 == 0x84


def test_a_simd_exception_leaves_the_destination() -> None:
    guest = LongMode()
    guest.write(AREA, 0x1F80 & ~0x200)                       # ZM clear
    end = guest.run("ldmxcsr [0x3000]; mov eax, 1; cvtsi2sd xmm0, eax; xorps xmm1, xmm1; divsd xmm0, xmm1; hlt")
    assert end.vector == XM and guest.space.read(end.rip, 4) == b"\xf2\x0f\x5e\xc1"
    guest.run("movq rbx, xmm0; stmxcsr [0x3000]; hlt")
    assert guest.cpu.get("rbx") == 0x3FF0000000000000 and guest.read(AREA, 4) & 0x3F == 4


@pytest.mark.parametrize(("segment", "text", "vector"), [
    ("DS", "movups xmm0, [0xbff8]", GP), ("DS", "movups xmm0, [0xbff0]", None), ("DS", "fld tbyte ptr [0xbff8]", GP),
    ("SS", "mov ebp, 0xbffd; movd xmm0, [ebp]", SS), ("DS", "mov edi, 0xbff8; pcmpeqb xmm0, xmm0; maskmovdqu xmm0, xmm0", GP),
    ("DS", "mov edi, 0xbff8; pxor xmm0, xmm0; maskmovdqu xmm0, xmm0", None),
])
def test_segment_limits(segment: str, text: str, vector: int | None) -> None:
    guest = Protected()
    guest.segment(segment, DATA, 0x4093, 0xBFFF)
    assert guest.run(f"{text}; hlt").vector == vector


def test_xsetbv_takes_x87_alone_and_refuses_the_rest() -> None:
    guest = LongMode()
    guest.vmcs[vcpu.GUEST_CR4] = 0x406A0
    assert guest.run("xor ecx, ecx; xor edx, edx; mov eax, 1; xsetbv; xgetbv; hlt").vector is None
    assert guest.cpu.get("rax") == 1
    for low, high, index in ((2, 0, 0), (7, 0, 0), (3, 1, 0), (3, 0, 1)):
        assert guest.run(f"mov ecx, {index}; mov edx, {high}; mov eax, {low}; xsetbv; hlt").vector == GP
