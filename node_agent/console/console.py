"""The console of a running VM: from the guest into the ring, from the ring to whoever reads.

Readers keep an offset and read the ring, so a slow one costs nothing and a fast guest fills no queue: it overwrites
its own past, and the reader is told how much it missed. One connection at a time may write.

Owns:    the ring's writer, the milestones seen on the console (kernel, user space).
Never:   blocks the guest: a byte is a copy into mapped memory and, once per wake-up, a nudge to the loop.
Threads: `write` from any thread; the rest on the loop's.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from pathlib import Path

from node_agent.console.ring import DEFAULT_CAPACITY, Piece, RingReader, RingWriter

_LINUX = re.compile(rb"Linux version (\S+)")
_KEEP = 512                  # bytes of a scanned piece that may hold the beginning of what is looked for
_CHANNELS = frozenset({"ttyS0", "hvc0", "debug"})

Milestone = Callable[[str, str], None]       # name, detail


class Milestones:
    """Looks for the kernel's first word and the image's ready marker in the console's stream."""

    def __init__(self, marker: str, seen: Milestone) -> None:
        self._marker = marker.encode()
        self._seen = seen
        self._tail = b""
        self._kernel: bytes | None = None
        self._ready = not marker
        self._budget = 1 << 16               # a version that is not in the first bytes is none

    @property
    def done(self) -> bool:
        return self._ready and bool(self._kernel)

    def feed(self, data: bytes) -> None:
        text = self._tail + data
        self._budget -= len(data)
        if not self._kernel:
            self._look_for_kernel(text)
        if not self._ready and self._marker in text:
            self._ready = True
            self._seen("user_space", "")
        self._tail = text[-max(_KEEP, len(self._marker)):]

    def _look_for_kernel(self, text: bytes) -> None:
        found = _LINUX.search(text)
        if found and found.end() < len(text):            # not cut off within the version
            self._kernel = found[1]
            self._seen("kernel", "Linux " + found[1].decode(errors="replace"))
        elif self._kernel is None:
            self._kernel = b""
            self._seen("kernel", "")
        elif self._budget < 0:
            self._kernel = b"other"


class Console:
    def __init__(self, path: Path, capacity: int, milestones: Milestones, loop: asyncio.AbstractEventLoop) -> None:
        self._ring = RingWriter(path, capacity or DEFAULT_CAPACITY)
        self._reader = RingReader(path)
        self._milestones = milestones
        self._loop = loop
        self._lock = threading.Lock()
        self._nudged = False
        self._scanned = self._ring.written
        self._waiting: set[asyncio.Event] = set()

    @property
    def written(self) -> int:
        return self._ring.written

    def write(self, channel: str, data: bytes) -> None:
        if channel not in _CHANNELS:
            return
        with self._lock:
            self._ring.write(data)
            if self._nudged:
                return
            self._nudged = True
        try:
            self._loop.call_soon_threadsafe(self._pump)
        except RuntimeError:                 # the loop has ended, and with it every reader
            pass

    def continue_from(self, written: int, tail: bytes) -> None:
        """Target of a migration: the source's history becomes ours."""
        with self._lock:
            self._ring.continue_at(written, tail)
        self._scanned = written

    def tail(self, size: int) -> tuple[int, bytes]:
        """(bytes ever written, the last `size` of them)."""
        piece = self._reader.read(-size, size)
        return piece.offset + len(piece.data), piece.data

    def _pump(self) -> None:
        self._nudged = False
        while not self._milestones.done:
            piece = self._reader.read(self._scanned)
            if not piece.data:
                break
            self._scanned = piece.offset + len(piece.data)
            self._milestones.feed(piece.data)
        for event in self._waiting:
            event.set()

    async def follow(self, offset: int):
        """Yield Pieces from `offset` on (< 0: counted from the end), for as long as the caller likes."""
        news = asyncio.Event()
        self._waiting.add(news)
        try:
            while True:
                news.clear()
                piece: Piece = self._reader.read(offset)
                offset = piece.offset + len(piece.data)
                if piece.data or piece.lost:
                    yield piece
                else:
                    await news.wait()
        finally:
            self._waiting.discard(news)

    def close(self) -> None:
        self._reader.close()
        self._ring.close()
