"""What devices are wired to in their tests: a clock that is set by hand, lines that remember, memory, a bus."""

from __future__ import annotations

import heapq
import itertools

import pytest


class FakeLine:
    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def set(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level

    def pulse(self) -> None:
        self.set(True)
        self.set(False)


class FakeAlarm:
    def __init__(self, callback) -> None:
        self.callback = callback

    def cancel(self) -> None:
        self.callback = None


class FakeTimers:
    """Guest time moves only by advance_to; tasks run at once, I/O included."""

    def __init__(self) -> None:
        self.time_ns = 0
        self._heap = []
        self._age = itertools.count()

    def now_ns(self) -> int:
        return self.time_ns

    def at(self, deadline_ns: int, callback) -> FakeAlarm:
        alarm = FakeAlarm(callback)
        heapq.heappush(self._heap, (deadline_ns, next(self._age), alarm))
        return alarm

    def advance_to(self, ns: int) -> None:
        while self._heap and self._heap[0][0] <= ns:
            deadline_ns, _, alarm = heapq.heappop(self._heap)
            self.time_ns = max(self.time_ns, deadline_ns)
            if alarm.callback:
                alarm.callback()
        self.time_ns = ns

    def submit(self, work, delay_ns: int) -> None:
        step = work()
        while step:
            io, done = step
            step = done(io())


class FakeMemory:
    def __init__(self, size: int) -> None:
        self.ram_bytes = size
        self.ram = bytearray(size)

    def _check(self, gpa: int, size: int) -> None:
        if gpa < 0 or gpa + size > self.ram_bytes:
            raise ValueError(f"{size} bytes at {gpa:#x} are not RAM")

    def read(self, gpa: int, size: int) -> bytes:
        self._check(gpa, size)
        return bytes(self.ram[gpa:gpa + size])

    def write(self, gpa: int, data) -> None:
        self._check(gpa, len(data))
        self.ram[gpa:gpa + len(data)] = data


class FakeWindows:
    def __init__(self) -> None:
        self.mapped = {}

    def map_frames(self, where, device) -> None:
        for other in self.mapped:
            if where.gpa < other.gpa + other.size and other.gpa < where.gpa + where.size:
                raise ValueError("overlap")
        self.mapped[where] = device

    def unmap_frames(self, where) -> None:
        del self.mapped[where]


@pytest.fixture
def line():
    return FakeLine()


@pytest.fixture
def timers():
    return FakeTimers()


@pytest.fixture
def memory():
    return FakeMemory(1 << 20)


@pytest.fixture
def windows():
    return FakeWindows()
