"""The oracle itself: it runs what it is given, reports faults as the processor does, and outlives its child."""

import random

from .harness import BREAKPOINT, CODE_AT, DIED, PAGE_FAULT, WINDOW_AT, Case, Host, State, asm, random_state


def test_results_and_flags(host: Host) -> None:
    (result,) = host.run([Case(asm("add rax, rbx"), State().with_gpr(rax=-1, rbx=1))])
    assert (result.vector, result.rip) == (BREAKPOINT, CODE_AT + 3)
    assert result.state.gpr[0] == 0
    assert result.state.rflags & 0x8D5 == 0x55                    # CF PF AF ZF


def test_memory_and_faults(host: Host) -> None:
    divide, load, store = host.run([
        Case(asm("div rcx")), Case(asm("mov rax, [0x1234]")),
        Case(asm("mov [rdi], eax"), State().with_gpr(rdi=WINDOW_AT, rax=0x11223344))])
    assert (divide.vector, divide.rip) == (0, CODE_AT)
    assert (load.vector, load.address, load.error) == (PAGE_FAULT, 0x1234, 4)
    assert store.state.window[:5] == b"\x44\x33\x22\x11\x00"


def test_a_case_that_hangs_harms_no_other(monkeypatch, host: Host) -> None:
    monkeypatch.setattr("tests.isa.harness.CASE_SECONDS", 0.3)
    hung, fine = host.run([Case(b"\xeb\xfe"), Case(b"\x90")])
    assert hung.vector == DIED
    assert (fine.vector, fine.rip) == (BREAKPOINT, CODE_AT + 1)


def test_system_calls_are_refused(host: Host) -> None:
    (result,) = host.run([Case(b"\x0f\x05", State().with_gpr(rax=39))])
    assert result.vector == 255


def test_state_goes_in_and_out_unchanged(host: Host, seed: int) -> None:
    states = [random_state(random.Random(seed + i)) for i in range(50)]
    for state, result in zip(states, host.run([Case(b"\x90", state) for state in states])):
        assert result.state.gpr == state.gpr, f"seed {seed}"
        assert result.state.window == state.window, f"seed {seed}"
        assert (result.state.rflags ^ state.rflags) & 0x8D5 == 0, f"seed {seed}"
