"""The local APIC and its timer, message-signalled interrupts, the PIC's wire, kvmclock and PV EOI (SDM 3A chapter 11)."""

import struct

import pytest
import vcpu
from guest_machine import GP, NMI, PDPT, LongMode

PD3 = 0x25000                    # maps the APIC's page
TICK, OTHER = 0x40, 0x51
APIC_BASE, TSC, TSC_ADJUST, TSC_DEADLINE = 0x1B, 0x10, 0x3B, 0x6E0
ENABLE = "mov ecx, 0x1b; rdmsr; or eax, 0xc00; wrmsr; mov ecx, 0x80f; mov eax, 0x1ff; xor edx, edx; wrmsr;"


def wrmsr(msr: int, value: int) -> str:
    return f"mov ecx, {msr:#x}; mov eax, {value & 0xFFFFFFFF:#x}; mov edx, {value >> 32:#x}; wrmsr;"


def rdmsr(msr: int) -> str:
    return f"mov ecx, {msr:#x}; rdmsr; shl rdx, 32; or rax, rdx;"


@pytest.fixture
def guest() -> LongMode:
    guest = LongMode()
    guest.write(PDPT + 24, PD3 | 7)
    guest.write(PD3 + 0x1F7 * 8, 0xFEE00000 | 0x87)
    return guest


def idle_to_timer(guest: LongMode) -> vcpu.VmExit:
    """What a machine with a virtual clock does: skip to the timer, go on."""
    guest.clock.advance_to(guest.cpu.next_timer_ns())
    return guest.cpu.run(guest.vmcs, quantum=1000)


def test_self_ipi_is_delivered_and_ended(guest: LongMode) -> None:
    end = guest.run(ENABLE + "sti;" + wrmsr(0x83F, TICK) + "nop; nop")
    assert end.vector == TICK
    assert guest.run(rdmsr(0x812) + "hlt").exit.reason == vcpu.EXIT_REASON_HLT        # ISR 64..95
    assert guest.cpu.get("rax") == 1
    guest.run(wrmsr(0x80B, 0) + rdmsr(0x812) + "hlt")
    assert guest.cpu.get("rax") == 0


def test_priorities_hold_back_and_let_go(guest: LongMode) -> None:
    end = guest.run(ENABLE + wrmsr(0x808, 0x50) + "sti;" + wrmsr(0x83F, TICK) + "nop; nop;" + wrmsr(0x83F, 0x61) + "nop; nop")
    assert end.vector == 0x61                                       # 0x40 is below the TPR
    end = guest.run("sti;" + wrmsr(0x808, 0) + wrmsr(0x80B, 0) + "nop; nop")
    assert end.vector == TICK


def test_cr8_is_the_task_priority(guest: LongMode) -> None:
    guest.run(ENABLE + "mov eax, 7; mov cr8, rax;" + rdmsr(0x808) + "hlt")
    assert guest.cpu.get("rax") == 0x70


def test_the_page_of_the_xapic(guest: LongMode) -> None:
    end = guest.run("mov ebx, 0xfee00000; mov dword ptr [rbx + 0xf0], 0x1ff; mov r8d, [rbx + 0x30]; mov r9d, [rbx + 0x20];"
                    f"sti; mov dword ptr [rbx + 0x300], {0x40000 | OTHER}; nop; nop")
    assert end.vector == OTHER
    assert guest.cpu.get("r8") & 0xFF == 0x14
    assert guest.cpu.get("r9") == 0
    assert guest.cpu.exit_counts()[vcpu.EXIT_REASON_APIC_ACCESS] == 4


def test_one_shot_timer_hits_at_its_instruction(guest: LongMode) -> None:
    end = guest.run(ENABLE + wrmsr(0x83E, 0xB) + wrmsr(0x832, TICK) + "sti;" + wrmsr(0x838, 1000) + "xor r8d, r8d; 1: inc r8; jmp 1b")
    assert end.vector == TICK
    assert guest.cpu.get("r8") == 499                               # 1,000 ns: WRMSR, XOR and 499 turns of two
    assert guest.cpu.next_timer_ns() is None


def test_periodic_timer_wakes_from_hlt(guest: LongMode) -> None:
    program = ENABLE + wrmsr(0x83E, 0xB) + wrmsr(0x832, 0x20000 | TICK) + wrmsr(0x838, 50000) + "sti; 1: hlt; jmp 1b"
    assert guest.run(program).exit.reason == vcpu.EXIT_REASON_HLT
    first = guest.cpu.next_timer_ns()
    guest.space.write(0x10000 + 16 * TICK, b"\x48\xff\xc3\xb9\x0b\x08\x00\x00\x31\xc0\x31\xd2\x0f\x30\x48\xcf")   # inc rbx; EOI; iretq
    for count in range(1, 6):
        assert idle_to_timer(guest).reason == vcpu.EXIT_REASON_HLT
        assert guest.cpu.get("rbx") == count
        assert guest.cpu.next_timer_ns() == first + count * 50000


def test_tsc_deadline(guest: LongMode) -> None:
    end = guest.run(ENABLE + wrmsr(0x832, 0x40000 | TICK) + "rdtsc; shl rdx, 32; or rax, rdx; mov r9, rax; add rax, 2000; mov rdx, rax;"
                    "shr rdx, 32; mov ecx, 0x6e0; sti; wrmsr; xor r8d, r8d; 1: inc r8; jmp 1b")
    assert end.vector == TICK
    assert guest.clock.now_ns() - guest.cpu.get("r9") in range(2000, 2010)
    guest.run(rdmsr(TSC_DEADLINE) + "hlt")
    assert guest.cpu.get("rax") == 0                                # disarmed itself


def test_masked_timer_is_silent(guest: LongMode) -> None:
    end = guest.run(ENABLE + wrmsr(0x832, 0x10000 | TICK) + "sti;" + wrmsr(0x838, 10) + "mov ecx, 500; 1: loop 1b; hlt")
    assert end.exit.reason == vcpu.EXIT_REASON_HLT and end.vector is None
    assert guest.cpu.next_timer_ns() is None


def test_message_of_a_level_interrupt_is_told_its_end(guest: LongMode) -> None:
    ended: list[int] = []
    guest.space.set_eoi_callback(ended.append)
    guest.run(ENABLE + "hlt")
    guest.space.deliver_msi(0xFEE00000, 0xC000 | OTHER)
    assert guest.run("sti; nop; nop; nop").vector == OTHER
    assert ended == []
    guest.run(wrmsr(0x80B, 0) + "hlt")
    assert ended == [OTHER]


def test_edge_messages_reach_whom_they_name(guest: LongMode) -> None:
    guest.run(ENABLE + "hlt")
    guest.space.deliver_msi(0xFEE05000, OTHER)                      # APIC 5: nobody
    assert guest.run("sti; nop; nop; hlt").vector is None
    guest.space.deliver_msi(0xFEEFF000, OTHER)                      # broadcast
    assert guest.run("sti; nop; nop; hlt").vector == OTHER


def test_nmi_by_message(guest: LongMode) -> None:
    guest.run(ENABLE + "hlt")
    guest.space.deliver_msi(0xFEE00000, 0x400)
    assert guest.run("nop; nop").vector == NMI


def test_an_nmi_during_an_nmi_waits_for_iret(guest: LongMode) -> None:
    guest.run(ENABLE + "hlt")
    guest.space.deliver_msi(0xFEE00000, 0x400)
    assert guest.run("nop; nop").vector == NMI
    guest.space.deliver_msi(0xFEE00000, 0x400)
    halted = guest.cpu.get("rip")
    assert guest.cpu.run(guest.vmcs, quantum=100).reason == vcpu.EXIT_REASON_HLT        # and no endless look at it
    assert guest.cpu.get("rip") == halted
    guest.space.write(halted, b"\x48\xcf")                          # iretq, back to the second nop; then the other NMI
    guest.vmcs[vcpu.GUEST_ACTIVITY_STATE] = 0
    guest.cpu.run(guest.vmcs, quantum=2)
    assert guest.cpu.get("rip") == 0x10000 + 16 * NMI


def test_the_pic_comes_through_lint0(guest: LongMode) -> None:
    asked: list[int] = []

    def acknowledge() -> int:
        asked.append(1)
        guest.space.extint_lower()
        return 0x33

    guest.space.set_extint(acknowledge)
    guest.space.extint_raise()
    assert guest.run("nop; hlt").vector is None
    assert guest.run("sti; nop; nop").vector == 0x33
    assert asked == [1]
    guest.run(ENABLE + wrmsr(0x835, 0x10700) + "hlt")               # LINT0 masked
    guest.space.extint_raise()
    assert guest.run("sti; nop; nop; hlt").vector is None


@pytest.mark.parametrize("program", [
    wrmsr(APIC_BASE, 0xFEE00400),                                   # x2APIC without enable
    wrmsr(APIC_BASE, 1 << 40 | 0xFEE00800),
    rdmsr(0x802),                                                   # no x2APIC yet
    ENABLE + wrmsr(APIC_BASE, 0xFEE00900),                          # back to xAPIC
    ENABLE + wrmsr(0x80B, 1),
    ENABLE + wrmsr(0x83F, 0x140),
    ENABLE + wrmsr(0x802, 1),                                       # the ID is read-only
    ENABLE + wrmsr(0x830, 0x2000 | TICK),
    ENABLE + rdmsr(0x80E),                                          # no DFR
    ENABLE + rdmsr(0x8FF),
    wrmsr(0x4B564D04, 2),
    wrmsr(0x4B564D02, 1),                                           # asynchronous page faults are not announced
])
def test_refused(guest: LongMode, program: str) -> None:
    end = guest.run(program)
    assert (end.vector, end.error) == (GP, 0)


def test_illegal_vector_is_an_error_to_read(guest: LongMode) -> None:
    end = guest.run(ENABLE + wrmsr(0x837, 0x77) + "sti;" + wrmsr(0x830, 0x40005) + "nop; nop")
    assert end.vector == 0x77
    guest.run(wrmsr(0x828, 0) + rdmsr(0x828) + "hlt")
    assert guest.cpu.get("rax") == 0x20


def test_tsc_and_adjust_move_together(guest: LongMode) -> None:
    guest.run(wrmsr(TSC, 1 << 40) + rdmsr(TSC_ADJUST) + "mov r8, rax; rdtsc; shl rdx, 32; or rax, rdx; mov r9, rax;"
              + wrmsr(TSC_ADJUST, 0) + "rdtsc; shl rdx, 32; or rax, rdx; hlt")
    assert 0 < (1 << 40) - guest.cpu.get("r8") < 100
    assert 0 <= guest.cpu.get("r9") - (1 << 40) < 50
    assert guest.cpu.get("rax") < 100


@pytest.mark.parametrize("tsc_hz", [10**9, 2_400_000_000, 500_000_000, 999_999_937])
def test_kvmclock_tells_guest_time(tsc_hz: int) -> None:
    guest = LongMode()
    guest.clock.load({**guest.clock.save(), "tsc_hz": tsc_hz})
    guest.clock.advance_to(12_345_678_901)
    guest.run(wrmsr(0x4B564D01, 0x2001) + "mov ecx, 5000; 1: loop 1b; rdtsc; shl rdx, 32; or rax, rdx; hlt")
    version, _, stamp, system, mul, shift, flags = struct.unpack("<IIQQIbB2x", guest.space.read(0x2000, 32))
    assert version % 2 == 0 and version and flags == 1
    delta = guest.cpu.get("rax") - stamp
    delta = delta << shift if shift >= 0 else delta >> -shift
    assert abs(system + (delta * mul >> 32) - guest.clock.now_ns()) < 20


def test_wall_clock(guest: LongMode) -> None:
    guest.run(wrmsr(0x4B564D00, 0x2100) + "hlt")
    version, sec, nsec = struct.unpack("<III", guest.space.read(0x2100, 12))
    assert version == 2 and sec * 10**9 + nsec == guest.clock.wall_ns


def test_kvm_leaves_and_signature(guest: LongMode) -> None:
    guest.run("mov eax, 0x40000000; cpuid; mov [0x2000], ebx; mov [0x2004], ecx; mov [0x2008], edx;"
              "mov eax, 0x40000010; cpuid; mov r8d, eax; mov eax, 0x40000001; cpuid; hlt")
    assert guest.space.read(0x2000, 12) == b"KVMKVMKVM\0\0\0"
    assert guest.cpu.get("r8") == 1_000_000
    assert guest.cpu.get("rax") & (1 << 3 | 1 << 6) == 1 << 3 | 1 << 6
    assert guest.cpu.get("rax") & (1 << 4 | 1 << 5 | 1 << 7 | 1 << 9 | 1 << 11) == 0      # none that is not there


@pytest.mark.parametrize("tsc_hz", [10**9, 2_400_000_000, 4_000_000_000])
def test_leaf_15_survives_arithmetic_in_32_bits(tsc_hz: int) -> None:
    """Linux: crystal kHz * numerator / denominator, unsigned (native_calibrate_tsc)."""
    guest = LongMode()
    guest.clock.load({**guest.clock.save(), "tsc_hz": tsc_hz})
    guest.run("mov eax, 0x15; cpuid; hlt")
    denominator, numerator, crystal = (guest.cpu.get(name) for name in ("rax", "rbx", "rcx"))
    assert (crystal // 1000 * numerator & 0xFFFFFFFF) // denominator == tsc_hz // 1000


def test_pv_eoi_spares_the_write(guest: LongMode) -> None:
    word = 0x2200
    assert guest.run(ENABLE + wrmsr(0x4B564D04, word | 1) + "sti;" + wrmsr(0x83F, TICK) + "nop; nop").vector == TICK
    assert guest.read(word, 4) == 1                                 # offered
    guest.space.write(word, b"\0\0\0\0")                            # the guest's BTR
    guest.run(rdmsr(0x812) + "hlt")
    assert guest.cpu.get("rax") == 0                                # and that was the end of it


def test_pv_eoi_is_revoked_when_something_waits(guest: LongMode) -> None:
    word = 0x2200
    guest.run(ENABLE + wrmsr(0x4B564D04, word | 1) + "sti;" + wrmsr(0x83F, TICK) + "nop; nop")
    guest.run("sti;" + wrmsr(0x83F, TICK - 0x10) + "nop; nop; hlt")
    assert guest.read(word, 4) == 0
    assert guest.run("sti;" + wrmsr(0x80B, 0) + "nop; nop").vector == TICK - 0x10


def test_same_program_same_time() -> None:
    program = (ENABLE + wrmsr(0x83E, 0xB) + wrmsr(0x832, 0x20000 | TICK) + wrmsr(0x838, 20000)
               + "sti; mov r8d, 30000; 1: imul r9, r9, 77; add r9, r8; dec r8; jnz 1b; cli; hlt")
    ends = []
    for quantum in (1_000_000, 1_000_000, 777):
        guest = LongMode()
        guest.space.write(0x10000 + 16 * TICK, b"\xff\xc3\xb9\x0b\x08\x00\x00\x31\xc0\x31\xd2\x0f\x30\x48\xcf")
        exit_ = guest.run(program, limit=quantum).exit
        while exit_.reason == vcpu.EXIT_REASON_PREEMPTION_TIMER:
            exit_ = guest.cpu.run(guest.vmcs, quantum=quantum)
        ends.append((exit_.reason, guest.cpu.retired_instructions, guest.clock.now_ns(), guest.cpu.get("rbx"), guest.cpu.get("r9")))
    assert ends[0] == ends[1] == ends[2]
    assert ends[0][3] > 3
