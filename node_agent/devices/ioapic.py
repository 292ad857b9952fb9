"""82093AA I/O APIC, 24 inputs, frame 0xFEC00000. Source: 82093AA data sheet; messages: Intel SDM 3A 11.11.

    redirection entry:  63..56 destination | 16 mask | 15 level | 14 remote IRR | 13 low | 12 pending
                        11 logical | 10..8 delivery mode | 7..0 vector

An input becomes a message to the local APICs (address 0xFEE…, data as an MSI has it). A level input waits for its
vector's EOI, which the local APICs broadcast (`end_of_interrupt`).

Owns:    the redirection table and the inputs' levels.
Never:   waits; knows processors.
Threads: under the machine's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node_agent.devices.base import FrameRange

PINS = 24
VERSION_REGISTER = 0x11 | (PINS - 1) << 16
IOREGSEL, IOWIN = 0x00, 0x10
RTE_VECTOR = 0xFF
RTE_LOGICAL = 1 << 11
RTE_REMOTE_IRR = 1 << 14
RTE_LEVEL = 1 << 15
RTE_MASK = 1 << 16
RTE_READ_ONLY = 1 << 12 | RTE_REMOTE_IRR
MSI_ADDRESS = 0xFEE00000


@dataclass(frozen=True)
class IoapicState:
    VERSION = 1
    select: int
    id: int
    levels: int
    entries: tuple[int, ...]


class Ioapic:
    frames = (FrameRange(0xFEC00000, 0x1000),)
    wide = True

    def __init__(self, deliver: Callable[[int, int], None]) -> None:
        self._deliver = deliver
        self.reset()

    def reset(self) -> None:
        self._select = 0
        self._id = 0
        self._levels = 0
        self._entries = [RTE_MASK] * PINS

    def set_pin(self, pin: int, level: bool) -> None:
        bit = 1 << pin
        rose = level and not self._levels & bit
        self._levels = self._levels | bit if level else self._levels & ~bit
        if rose:
            self._service(pin)

    def end_of_interrupt(self, vector: int) -> None:
        """A local APIC finished `vector`: level inputs that still ask are sent again."""
        for pin, entry in enumerate(self._entries):
            if entry & RTE_REMOTE_IRR and entry & RTE_VECTOR == vector:
                self._entries[pin] = entry & ~RTE_REMOTE_IRR
                if self._levels & (1 << pin):
                    self._service(pin)

    def _service(self, pin: int) -> None:
        entry = self._entries[pin]
        if entry & RTE_MASK:
            return
        if entry & RTE_LEVEL:
            if entry & RTE_REMOTE_IRR:
                return
            self._entries[pin] = entry | RTE_REMOTE_IRR
        destination = entry >> 56 & 0xFF
        address = MSI_ADDRESS | destination << 12 | (4 if entry & RTE_LOGICAL else 0)
        self._deliver(address, entry & 0x7FF | (1 << 14) | (entry & RTE_LEVEL))

    def read(self, gpa: int, size: int) -> int:
        offset = gpa & 0xFF
        if offset == IOREGSEL:
            return self._select
        if offset != IOWIN:
            return 0
        if self._select in (0, 2):
            return self._id << 24
        if self._select == 1:
            return VERSION_REGISTER
        pin, high = divmod(self._select - 0x10, 2)
        if 0 <= pin < PINS:
            return self._entries[pin] >> (32 * high) & 0xFFFFFFFF
        return 0

    def write(self, gpa: int, size: int, value: int) -> None:
        offset = gpa & 0xFF
        if offset == IOREGSEL:
            self._select = value & 0xFF
        elif offset == IOWIN:
            self._write_register(value & 0xFFFFFFFF)

    def _write_register(self, value: int) -> None:
        if self._select == 0:
            self._id = value >> 24 & 0x0F
            return
        pin, high = divmod(self._select - 0x10, 2)
        if not 0 <= pin < PINS:
            return
        entry = self._entries[pin]
        if high:
            entry = entry & 0xFFFFFFFF | value << 32
        else:
            entry = entry & (0xFFFFFFFF << 32 | RTE_READ_ONLY) | value & 0x1FFFF & ~RTE_READ_ONLY
            if not entry & RTE_LEVEL:
                entry &= ~RTE_REMOTE_IRR
        self._entries[pin] = entry
        if entry & RTE_LEVEL and self._levels & (1 << pin):
            self._service(pin)

    def save(self) -> IoapicState:
        return IoapicState(self._select, self._id, self._levels, tuple(self._entries))

    def load(self, state: IoapicState) -> None:
        self._select = state.select
        self._id = state.id
        self._levels = state.levels
        self._entries = list(state.entries)
