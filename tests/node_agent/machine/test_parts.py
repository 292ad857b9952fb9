"""Bus, lines, timers, output and state records, without a processor."""

from __future__ import annotations

import threading

import pytest

from node_agent.devices import pic, rtc
from node_agent.devices.base import FrameRange, PortRange
from node_agent.machine import records
from node_agent.machine.bus import Bus
from node_agent.machine.lines import Lines
from node_agent.machine.output import LIMIT, Output
from node_agent.machine.spec import MachineSpec, MachineState, SpecError
from node_agent.machine.timers import TimerQueue


class Space:
    def __init__(self) -> None:
        self.ports, self.frames = {}, {}

    def add_ports(self, first, count, dev) -> None:
        self.ports[first] = dev

    def add_frames(self, gpa, size, dev) -> None:
        self.frames[gpa] = dev

    def remove_frames(self, gpa, size) -> None:
        del self.frames[gpa]


class Bytes:
    """A byte-wide device that remembers."""

    ports = (PortRange(0x70, 2),)

    def __init__(self) -> None:
        self.seen = []

    def read(self, port, size):
        return port & 0xFF

    def write(self, port, size, value) -> None:
        self.seen.append((port, size, value))


class Wide(Bytes):
    wide = True
    frames = (FrameRange(0x1000, 0x1000),)


@pytest.fixture
def lock():
    return threading.RLock()


def test_wide_accesses_are_split_for_byte_wide_devices(lock):
    space, device = Space(), Bytes()
    Bus(space, lock).attach(device)
    window = space.ports[0x70]
    window.write(0x70, 2, 0xBEEF)
    window.write(0x71, 4, 0x11223344)
    assert device.seen == [(0x70, 1, 0xEF), (0x71, 1, 0xBE), (0x71, 1, 0x44)]
    assert window.read(0x70, 4) == 0xFFFF7170


def test_wide_devices_get_accesses_whole(lock):
    space, device = Space(), Wide()
    Bus(space, lock).attach(device)
    space.frames[0x1000].write(0x1004, 4, 0x11223344)
    assert device.seen == [(0x1004, 4, 0x11223344)]


class Pins:
    def __init__(self) -> None:
        self.calls = []

    def set_pin(self, pin, level) -> None:
        self.calls.append((pin, level))


def test_a_shared_line_falls_with_its_last_driver():
    lines, first, second = Lines(), Pins(), Pins()
    lines.connect(first, second)
    a, b = lines.wire(10), lines.wire(10)
    a.set(True)
    b.set(True)
    a.set(False)
    assert first.calls == second.calls == [(10, True)]
    b.set(False)
    assert first.calls == [(10, True), (10, False)]


def test_the_timer_arrives_at_input_two():
    lines, first, second = Lines(), Pins(), Pins()
    lines.connect(first, second)
    lines.wire(0).pulse()
    lines.wire(20).pulse()
    assert first.calls == [(0, True), (0, False)]
    assert second.calls == [(2, True), (2, False), (20, True), (20, False)]


class Clock:
    now = 0

    def now_ns(self) -> int:
        return self.now


def test_timers_run_by_time_then_age(lock):
    clock, ran = Clock(), []
    queue = TimerQueue(clock.now_ns, lock, True, lambda: None)
    queue.at(20, lambda: ran.append("b"))
    queue.at(10, lambda: ran.append("a"))
    queue.at(20, lambda: ran.append("c"))
    queue.at(15, lambda: ran.append("never")).cancel()
    queue.at(30, lambda: queue.at(5, lambda: ran.append("late")))
    assert queue.next_ns() == 10
    clock.now = 20
    queue.run_due()
    assert ran == ["a", "b", "c"]
    clock.now = 30
    queue.run_due()
    assert ran[3:] == ["late"] and queue.next_ns() is None


def test_alarms_that_are_cancelled_in_a_loop_take_no_memory(lock):
    queue, ran = TimerQueue(Clock().now_ns, lock, True, lambda: None), []
    queue.at(1 << 40, lambda: ran.append("kept"))
    for deadline in range(10_000):
        queue.at(1_000_000 + deadline, lambda: None).cancel()
    assert len(queue._heap) < 1000
    assert queue.next_ns() == 1 << 40


def test_a_timer_faster_than_its_callback_lets_go(lock):
    clock, ran = Clock(), []
    queue = TimerQueue(clock.now_ns, lock, False, lambda: None)

    def ring() -> None:
        ran.append(clock.now)
        clock.now += 10                      # the callback takes longer than the period
        queue.at(clock.now - 5, ring)

    queue.at(0, ring)
    queue.run_due()
    assert ran == [0] and queue.next_ns() == 5


def test_tasks_that_go_on_for_ever_let_go_in_between(lock):
    queue, ran = TimerQueue(Clock().now_ns, lock, False, lambda: None), []

    def again() -> None:
        ran.append("task")
        queue.submit(again, 0)

    queue.submit(again, 0)
    queue.run_tasks()
    assert ran == ["task"] and queue.has_tasks()


def test_tasks_wait_for_their_time_in_virtual_time_only(lock):
    clock, ran = Clock(), []
    virtual, real = TimerQueue(clock.now_ns, lock, True, lambda: None), TimerQueue(clock.now_ns, lock, False, lambda: None)
    for queue in (virtual, real):
        queue.submit(lambda: ran.append("done"), 100)
    real.run_tasks()
    assert ran == ["done"] and virtual.next_ns() == 100


def test_a_task_may_work_without_the_lock(lock):
    queue, steps = TimerQueue(Clock().now_ns, lock, False, lambda: None), []

    def try_lock() -> None:
        steps.append(lock.acquire(blocking=False))
        if steps[-1]:
            lock.release()

    def held() -> bool:
        other = threading.Thread(target=try_lock)
        other.start()
        other.join()
        return not steps.pop()

    def start():
        assert held()
        return (lambda: held()), (lambda was_held: steps.append(("io held", was_held)))

    queue.submit(start, 0)
    queue.run_tasks()
    assert steps == [("io held", False)]


def test_output_is_gathered_and_bounded():
    written, wakes = [], []
    output = Output(lambda channel, data: written.append((channel, len(data))), lambda: wakes.append(1))
    for _ in range(10):
        output.put_byte("ttyS0", 65)
    assert written == [] and len(wakes) == 1 and output.waiting
    output.put("ttyS0", bytes(LIMIT))
    assert written == [("ttyS0", LIMIT + 10)] and not output.waiting


def state() -> MachineState:
    devices = {"pic": pic.Pic(lambda level: None).save(),
               "rtc": rtc.RtcState(1, bytes(range(128)), -5, 0, -1, 1 << 62)}
    return MachineState({"memory_bytes": 1 << 28}, {"tsc": (1 << 64) - 1}, ({"rip": 0, "nested": [1, {"x": b"y"}]},),
                        devices)


def test_state_goes_round_as_bytes():
    again = records.decode_state(records.encode_state(state()))
    assert again.devices == state().devices and again.clock == state().clock
    assert again.cpus[0]["nested"] == (1, {"x": b"y"})


@pytest.mark.parametrize("data", [b"", b"garbage", records.encode_state(state())[:-3],
                                  records.encode(5).SerializeToString()])
def test_damaged_state_is_refused(data):
    with pytest.raises(records.StateError):
        records.decode_state(data)


def test_a_newer_record_is_refused_and_an_unknown_field_is_not():
    value = records.encode(state())
    value.record.fields["devices"].record.fields["rtc"].record.fields["from_tomorrow"].unsigned = 1
    assert records.decode(value).devices["rtc"].index == 1
    value.record.fields["devices"].record.fields["rtc"].record.version = 2
    with pytest.raises(records.StateError, match="version 2"):
        records.decode(value)


@pytest.mark.parametrize("wish, path", [
    ({"cpus": 0}, "cpus"), ({"cpus": 1000}, "cpus"), ({"memory_bytes": 0}, "memory"),
    ({"memory_bytes": (16 << 20) + 1}, "memory"), ({"memory_bytes": 1 << 60}, "memory"), ({"clock": "lunar"}, "clock")])
def test_impossible_machines(wish, path):
    with pytest.raises(SpecError) as error:
        MachineSpec(kernel="k", **wish).check()
    assert error.value.path == path
