"""Two ports for tests: debug exit at 0xF4 (as QEMU's isa-debug-exit) and the debug console at 0xE9 (as Bochs').

Owns:    nothing that lasts.
Never:   ends the machine itself: it calls `exit_machine`.
Threads: under the machine's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node_agent.devices.base import PortRange

CONSOLE_PRESENT = 0xE9


@dataclass(frozen=True)
class DebugState:
    VERSION = 1


class DebugExit:
    """A write ends the machine; `virga run` leaves with (value << 1) | 1."""

    ports = (PortRange(0xF4, 4),)
    wide = True

    def __init__(self, exit_machine: Callable[[int], None]) -> None:
        self._exit_machine = exit_machine

    def read(self, port: int, size: int) -> int:
        return 0

    def write(self, port: int, size: int, value: int) -> None:
        self._exit_machine(value)

    def reset(self) -> None: ...

    def save(self) -> DebugState:
        return DebugState()

    def load(self, state: DebugState) -> None: ...


class DebugConsole:
    """A write is a character; a read says that the port is there."""

    ports = (PortRange(0xE9, 1),)

    def __init__(self, sink: Callable[[int], None]) -> None:
        self._sink = sink

    def read(self, port: int, size: int) -> int:
        return CONSOLE_PRESENT

    def write(self, port: int, size: int, value: int) -> None:
        self._sink(value & 0xFF)

    def reset(self) -> None: ...

    def save(self) -> DebugState:
        return DebugState()

    def load(self, state: DebugState) -> None: ...
