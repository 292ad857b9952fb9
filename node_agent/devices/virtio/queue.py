"""Split virtqueue, the device's side. Source: virtio 1.2 §2.7.

    descriptor, 16 bytes: address | length | flags | next
    available ring:  flags, idx, ring[size], used_event        used ring:  flags, idx, ring[size] × (id, length), avail_event

Owns:    where the rings are and how far we are in them.
Never:   trusts what is in them: whatever cannot be is a QueueError, and the device asks to be reset.
Threads: under the machine's lock.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields

from node_agent.devices.base import Memory

DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT = 1, 2, 4
AVAIL_F_NO_INTERRUPT = 1
MAX_CHAIN = 1024
DESCRIPTOR = struct.Struct("<QIHH")


class QueueError(Exception):
    """The driver broke the rules of the ring."""


@dataclass(frozen=True)
class QueueState:
    VERSION = 1
    size: int
    ready: int
    vector: int
    descriptors: int
    available: int
    used: int
    next_available: int
    next_used: int
    event_idx: int
    notified_used: int


@dataclass(frozen=True)
class Segment:
    gpa: int
    size: int


@dataclass(frozen=True)
class Chain:
    """One request: what the device reads, then what it writes."""

    head: int
    readable: tuple[Segment, ...]
    writable: tuple[Segment, ...]


class Queue:
    def __init__(self, memory: Memory, max_size: int) -> None:
        self._memory = memory
        self.max_size = max_size
        self.reset()

    def reset(self) -> None:
        self.size = self.max_size
        self.ready = 0
        self.vector = 0xFFFF
        self.descriptors = self.available = self.used = 0
        self.next_available = self.next_used = self.notified_used = 0
        self.event_idx = 0

    # taking requests

    def pop(self) -> Chain | None:
        """The next request, or None; with EVENT_IDX, asks to be told of the one after."""
        if not self.ready:
            return None
        if self._waiting() == 0:
            if not self.event_idx:
                return None
            # ask first, then look again, so that nothing slips between (§2.7.7)
            self._write(self.used + 4 + 8 * self.size, self.next_available.to_bytes(2, "little"))
            if self._waiting() == 0:
                return None
        slot = self.next_available % self.size
        (head,) = struct.unpack("<H", self._read(self.available + 4 + 2 * slot, 2))
        chain = self._walk(head)
        self.next_available = self.next_available + 1 & 0xFFFF
        return chain

    def _waiting(self) -> int:
        """Requests on the available ring that were not taken; never more than it has slots."""
        waiting = int.from_bytes(self._read(self.available + 2, 2), "little") - self.next_available & 0xFFFF
        if waiting > self.size:
            raise QueueError(f"{waiting} requests on a ring of {self.size}")
        return waiting

    def _walk(self, head: int) -> Chain:
        table, count, index = self.descriptors, self.size, head
        readable: list[Segment] = []
        writable: list[Segment] = []
        inside = False
        for _ in range(MAX_CHAIN):
            if index >= count:
                raise QueueError(f"descriptor {index} of {count}")
            gpa, size, flags, following = DESCRIPTOR.unpack(self._read(table + 16 * index, 16))
            if flags & DESC_F_INDIRECT:
                if inside or flags & DESC_F_NEXT or size % 16 or not 0 < size <= 16 * MAX_CHAIN:
                    raise QueueError("bad indirect table")
                table, count, index, inside = gpa, size // 16, 0, True
                continue
            if flags & DESC_F_WRITE:
                writable.append(Segment(gpa, size))
            elif writable:
                raise QueueError("readable descriptor after a writable one")
            else:
                readable.append(Segment(gpa, size))
            if not flags & DESC_F_NEXT:
                return Chain(head, tuple(readable), tuple(writable))
            index = following
        raise QueueError("descriptor chain without end")

    # giving them back

    def push(self, chain: Chain, written: int) -> None:
        slot = self.next_used % self.size
        self._write(self.used + 4 + 8 * slot, struct.pack("<II", chain.head, written))
        self.next_used = self.next_used + 1 & 0xFFFF
        self._write(self.used + 2, self.next_used.to_bytes(2, "little"))

    def wants_interrupt(self) -> bool:
        """After pushing: does the driver want to know? (§2.7.7)"""
        before, self.notified_used = self.notified_used, self.next_used
        if before == self.next_used:
            return False
        if self.event_idx:
            event = int.from_bytes(self._read(self.available + 4 + 2 * self.size, 2), "little")
            return (self.next_used - event - 1) & 0xFFFF < (self.next_used - before) & 0xFFFF
        flags = int.from_bytes(self._read(self.available, 2), "little")
        return not flags & AVAIL_F_NO_INTERRUPT

    # memory

    def _read(self, gpa: int, size: int) -> bytes:
        try:
            return self._memory.read(gpa, size)
        except (ValueError, OverflowError) as error:
            raise QueueError(str(error)) from None

    def _write(self, gpa: int, data: bytes) -> None:
        try:
            self._memory.write(gpa, data)
        except (ValueError, OverflowError) as error:
            raise QueueError(str(error)) from None

    def gather(self, segments: tuple[Segment, ...], limit: int = 1 << 20) -> bytes:
        """What the driver wrote, up to `limit` bytes."""
        parts, left = [], limit
        for segment in segments:
            parts.append(self._read(segment.gpa, min(segment.size, left)))
            left -= len(parts[-1])
            if left <= 0:
                break
        return b"".join(parts)

    def scatter(self, segments: tuple[Segment, ...], data: bytes) -> int:
        """Put `data` into the segments; how much fitted."""
        done = 0
        for segment in segments:
            piece = data[done:done + segment.size]
            if not piece:
                break
            self._write(segment.gpa, piece)
            done += len(piece)
        return done

    def save(self) -> QueueState:
        return QueueState(**{field.name: getattr(self, field.name) for field in fields(QueueState)})

    def load(self, state: QueueState) -> None:
        for field in fields(QueueState):
            setattr(self, field.name, getattr(state, field.name))
        if not 0 < self.size <= self.max_size or self.size & (self.size - 1):
            raise ValueError(f"queue size {self.size}")
