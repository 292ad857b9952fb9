"""The console's ring on disk.

    page 0      magic "VIRGACON" | version u32 | page size u32 | capacity u64 | written u64 | ...
    page 1 ...  `capacity` bytes; byte number n of the console's life stands at n % capacity

`written` counts every byte ever written, so a reader keeps its place as one number and knows exactly what it missed.
The writer first stores the bytes, then `written`; a reader reads `written` again after copying and drops what was
overwritten meanwhile. All blocks are allocated when the ring is made: a full disk is an error then, not a SIGBUS later.

Owns:    the file's layout.
Never:   blocks the guest, or grows.
Threads: one writer (callers hold a lock of their own); readers anywhere, also in other processes.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

PAGE = 4096
DEFAULT_CAPACITY = 1 << 20
MIN_CAPACITY, MAX_CAPACITY = PAGE, 1 << 30
MAGIC = b"VIRGACON"
VERSION = 1
_HEAD = struct.Struct("<8sIIQQ")
_WRITTEN = struct.Struct("<Q")
_WRITTEN_AT = 24


class CorruptRing(Exception):
    """The file is no ring of this version."""


@dataclass(frozen=True)
class Piece:
    offset: int              # of the first byte, counted from the console's first
    data: bytes
    lost: int                # bytes between the place asked for and `offset`


class RingWriter:
    """Makes the ring, or goes on with one that is there. OSError where the disk is full."""

    def __init__(self, path: Path, capacity: int = DEFAULT_CAPACITY) -> None:
        if not MIN_CAPACITY <= capacity <= MAX_CAPACITY or capacity % PAGE:
            raise ValueError(f"a console ring of {capacity} bytes: must be whole pages, {MIN_CAPACITY} to {MAX_CAPACITY}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            head = os.pread(fd, PAGE, 0)
            new = not any(head)                   # also one whose maker was killed before the header
            if not new:
                capacity = _check(head, os.fstat(fd).st_size)[0]
            try:
                os.posix_fallocate(fd, 0, PAGE + capacity)
            except OSError:
                if new:
                    path.unlink(missing_ok=True)  # half made
                raise
            self._map = mmap.mmap(fd, PAGE + capacity)
        finally:
            os.close(fd)
        self._capacity = capacity
        if new:
            self._map[:_HEAD.size] = _HEAD.pack(MAGIC, VERSION, PAGE, capacity, 0)
        (self.written,) = _WRITTEN.unpack_from(self._map, _WRITTEN_AT)

    def write(self, data: bytes) -> None:
        capacity = self._capacity
        start = self.written
        if len(data) > capacity:
            start += len(data) - capacity
            data = data[-capacity:]
        at = start % capacity
        first = min(len(data), capacity - at)
        self._map[PAGE + at:PAGE + at + first] = data[:first]
        if first < len(data):
            self._map[PAGE:PAGE + len(data) - first] = data[first:]
        self.written = start + len(data)
        _WRITTEN.pack_into(self._map, _WRITTEN_AT, self.written)

    def continue_at(self, written: int, tail: bytes) -> None:
        """Take over another ring's history: `tail` are the last bytes of `written` ones."""
        if len(tail) > written:
            raise ValueError("a tail longer than what was written")
        self.written = written - len(tail)
        self.write(tail)

    def close(self) -> None:
        self._map.close()


class RingReader:
    """Reads a ring that someone may be writing. Raises FileNotFoundError or CorruptRing."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            self._capacity, _ = _check(os.pread(fd, PAGE, 0), size)
            self._map = mmap.mmap(fd, PAGE + self._capacity, prot=mmap.PROT_READ)
        finally:
            os.close(fd)

    @property
    def written(self) -> int:
        return _WRITTEN.unpack_from(self._map, _WRITTEN_AT)[0]

    def read(self, offset: int, limit: int = 1 << 16) -> Piece:
        """At most `limit` bytes from `offset` on (< 0: so many before the end); empty where nothing is new."""
        if offset < 0:
            offset = max(0, self.written + offset)
        wanted = offset
        for ahead in (0, self._capacity // 2, self._capacity * 7 // 8):   # a flood overtakes whoever starts at the edge
            written = self.written
            start = max(offset, written - self._capacity + (ahead if offset < written - self._capacity else 0))
            data = self._copy(start, min(limit, max(0, written - start)))
            overrun = self.written - self._capacity - start               # overwritten while we copied
            if overrun < len(data) or not data:
                break
        if overrun > 0:
            data, start = data[overrun:], start + overrun
        return Piece(start, data, start - wanted)

    def _copy(self, start: int, size: int) -> bytes:
        at = start % self._capacity
        first = min(size, self._capacity - at)
        return self._map[PAGE + at:PAGE + at + first] + self._map[PAGE:PAGE + size - first]

    def close(self) -> None:
        self._map.close()


def _check(head: bytes, size: int) -> tuple[int, int]:
    """(capacity, written) of a ring's first page, or CorruptRing."""
    if len(head) < _HEAD.size:
        raise CorruptRing("too short for a console ring")
    magic, version, page, capacity, written = _HEAD.unpack_from(head)
    if magic == b"\0" * 8:
        raise CorruptRing("an empty console ring: whoever made it was interrupted")
    if magic != MAGIC or version != VERSION or page != PAGE:
        raise CorruptRing("no console ring of this version")
    if not MIN_CAPACITY <= capacity <= MAX_CAPACITY or capacity % PAGE or size < PAGE + capacity:
        raise CorruptRing(f"a console ring of {size} bytes that claims to hold {capacity}")
    return capacity, written
