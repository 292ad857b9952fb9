"""What every device is given, and the shape that every device has.

    ports = (PortRange(0x70, 2),)     where it answers; `wide` says that it understands accesses of 2 and 4 bytes
    read(port, size) -> int           write(port, size, value) -> None
    reset() -> None                   the state after power-on
    save() -> XyzState                load(state)          a frozen record; VERSION in its type

Owns:    the interfaces between devices and the machine.
Never:   knows a particular device.
Threads: the bus calls read and write under the machine's lock; timers, tasks and lines are called under it as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

NS_PER_S = 1_000_000_000


@dataclass(frozen=True)
class PortRange:
    first: int
    count: int


@dataclass(frozen=True)
class FrameRange:
    gpa: int
    size: int


class Line(Protocol):
    """One input of an interrupt controller, seen from the device that drives it."""

    def set(self, level: bool) -> None: ...
    def pulse(self) -> None: ...


class Timer(Protocol):
    def cancel(self) -> None: ...


class Timers(Protocol):
    """Guest time and its alarm clock."""

    def now_ns(self) -> int: ...
    def at(self, deadline_ns: int, callback: Callable[[], None]) -> Timer: ...


class Tasks(Protocol):
    """Work that must not hold up the guest's instruction: the I/O thread, or a fixed guest time later."""

    def submit(self, work: Callable[[], None], delay_ns: int) -> None: ...


class Memory(Protocol):
    """Guest memory as a device sees it: ValueError where there is none."""

    def read(self, gpa: int, size: int) -> bytes: ...
    def write(self, gpa: int, data: bytes) -> None: ...


class Device(Protocol):
    ports: tuple[PortRange, ...]

    def read(self, port: int, size: int) -> int: ...
    def write(self, port: int, size: int, value: int) -> None: ...
    def reset(self) -> None: ...
    def save(self) -> Any: ...
    def load(self, state: Any) -> None: ...
