"""Whole machines with programs of a few instructions, by both clocks."""

from __future__ import annotations

import threading
import time

import programs
import pytest

from node_agent.boot import BootError
from node_agent.machine import records
from node_agent.machine.machine import Machine
from node_agent.machine.spec import DiskSpec, ExitKind, MachineSpec, SpecError

PATIENCE_S = 30


class Host:
    """A machine, its output, and a way to wait for both."""

    def __init__(self, kernel: str, clock: str = "real", **wish) -> None:
        self.out = bytearray()
        self._news = threading.Condition()
        spec = MachineSpec(kernel=kernel, memory_bytes=wish.pop("memory_bytes", 16 << 20), clock=clock, **wish)
        self.machine = Machine(spec, self._console)

    def _console(self, channel: str, data: bytes) -> None:
        with self._news:
            self.out += data
            self._news.notify_all()

    def saw(self, enough) -> bool:
        """`enough`: text, or how many bytes."""
        with self._news:
            return self._news.wait_for(
                lambda: enough in self.out if isinstance(enough, bytes) else len(self.out) >= enough, PATIENCE_S)

    def run(self):
        self.machine.boot()
        self.machine.start()
        return self.end()

    def end(self):
        end = self.machine.wait(PATIENCE_S)
        self.machine.close()
        return end


@pytest.fixture(params=["real", "virtual"])
def clock(request):
    return request.param


@pytest.fixture
def program(tmp_path):
    return lambda source: programs.build(tmp_path, source)


def test_hello_and_power_off(program, clock):
    host = Host(program(programs.HELLO), clock)
    assert host.run().kind is ExitKind.POWER_OFF
    assert host.out == b"hello"
    stats = host.machine.stats()
    assert stats.retired_instructions > 30 and stats.exits["io_instruction"] == 6


def test_debug_exit_has_its_value(program, clock):
    end = Host(program(programs.DEBUG_EXIT), clock).run()
    assert (end.kind, end.value) == (ExitKind.DEBUG_EXIT, 0x15)


def test_triple_fault_shows_the_processor(program, clock):
    end = Host(program(programs.TRIPLE_FAULT), clock).run()
    assert end.kind is ExitKind.TRIPLE_FAULT
    assert "rip" in end.detail and "cr0" in end.detail


def test_reset_starts_over(program, clock):
    host = Host(program(programs.RESET_ONCE), clock)
    assert host.run().kind is ExitKind.POWER_OFF
    assert host.out == b"first second" and host.machine.stats().resets == 1


def test_timer_interrupts_through_the_pic(program, clock):
    host = Host(program(programs.TICKS.replace("{ticks}", "20")), clock)
    assert host.run().kind is ExitKind.POWER_OFF
    assert host.out == b"ABCDEFGHIJKLMNOPABCD!"


def test_virtual_time_is_the_same_each_time(program):
    kernel = program(programs.TICKS.replace("{ticks}", "50"))
    counts = set()
    for _ in range(3):
        host = Host(kernel, "virtual")
        host.run()
        stats = host.machine.stats()
        counts.add((stats.retired_instructions, stats.guest_ns, tuple(sorted(stats.exits.items()))))
    assert len(counts) == 1
    ((_, guest_ns, _),) = counts
    assert 49_000_000 < guest_ns < 52_000_000


def test_stop_ends_what_spins_and_what_sleeps(program, clock):
    for source, text in ((programs.SPIN, b"spinning"), (programs.SLEEP, b"sleeping")):
        host = Host(program(source), clock)
        host.machine.boot()
        host.machine.start()
        assert host.saw(text)
        host.machine.stop()
        assert host.end().kind is ExitKind.STOPPED


def test_input_reaches_the_guest(program, clock):
    host = Host(program(programs.ECHO), clock)
    host.machine.boot()
    host.machine.start()
    assert host.saw(b"ready")
    assert host.machine.console_input(b"abc" * 20) == 60
    assert host.saw(b"abc" * 20)
    host.machine.console_input(b"q")
    assert host.end().kind is ExitKind.POWER_OFF


def test_the_power_button(program, clock):
    host = Host(program(programs.BUTTON), clock)
    host.machine.boot()
    host.machine.start()
    assert host.saw(b"waiting")
    host.machine.power_button()
    assert host.end().kind is ExitKind.POWER_OFF


def test_paused_means_nothing_moves(program):
    host = Host(program(programs.TICKS.replace("{ticks}", "1000000")))
    host.machine.boot()
    host.machine.start(paused=True)
    assert host.machine.stats().retired_instructions == 0
    host.machine.resume()
    assert host.saw(5)
    host.machine.pause()
    before = host.machine.stats()
    time.sleep(0.05)
    after = host.machine.stats()
    assert (before.retired_instructions, before.guest_ns) == (after.retired_instructions, after.guest_ns)
    size = len(host.out)
    host.machine.resume()
    assert host.saw(size + 5)
    host.machine.stop()
    host.end()


def test_a_saved_machine_goes_on_elsewhere(program, clock):
    kernel = program(programs.TICKS.replace("{ticks}", "200"))
    source = Host(kernel, clock)
    source.machine.boot()
    source.machine.start(paused=True)
    source.machine.resume()
    assert clock == "virtual" or source.saw(10)
    source.machine.pause()
    state = records.encode_state(source.machine.save())
    target = Host(kernel, clock)
    target.machine.space.memory[:] = source.machine.space.memory
    source.machine.stop()
    source.end()
    target.machine.load(records.decode_state(state))
    target.machine.start(paused=True)
    target.machine.resume()
    assert target.end().kind is ExitKind.POWER_OFF
    letters = bytes(65 + tick % 16 for tick in range(200)) + b"!"
    assert bytes(source.out + target.out) == letters


def test_a_state_of_another_machine_is_refused(program):
    kernel = program(programs.HELLO)
    one, other = Host(kernel), Host(kernel, memory_bytes=32 << 20)
    with pytest.raises(ValueError, match="another machine"):
        other.machine.load(one.machine.save())


def test_what_cannot_be_built_is_told(program, tmp_path):
    kernel = program(programs.HELLO)
    with pytest.raises(SpecError, match="disk"):
        Host(kernel, disks=(DiskSpec(str(tmp_path / "none")),))
    with pytest.raises(BootError, match="no kernel"):
        Host(str(tmp_path / "program.S")).machine.boot()
    with pytest.raises(SpecError, match="memory"):
        Host(kernel, memory_bytes=0)


def test_a_full_pipe_of_output_holds_the_guest_not_the_host(program):
    host = Host(program("flood: print \"flood\"; jmp flood"))
    host.machine.boot()
    host.machine.start()
    assert host.saw(200_000)
    host.machine.stop()
    assert host.end().kind is ExitKind.STOPPED
