"""Console output on its way out: gathered, so that a byte of the guest's is no call of the host's.

Owns:    one buffer a channel.
Never:   holds more than LIMIT bytes: whoever fills it empties it, and so waits for a slow reader.
Threads: any.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

LIMIT = 4096


class Output:
    """`write(channel, data)` is the host's; `wake` says that something waits to be flushed."""

    def __init__(self, write: Callable[[str, bytes], None], wake: Callable[[], None]) -> None:
        self._write = write
        self._wake = wake
        self._buffers: dict[str, bytearray] = {}
        self._order = Lock()             # held while writing, so that bytes stay in order

    @property
    def waiting(self) -> bool:
        return any(self._buffers.values())

    def put_byte(self, channel: str, value: int) -> None:
        buffer = self._buffers.setdefault(channel, bytearray())
        buffer.append(value)
        self._after(len(buffer), 1)

    def put(self, channel: str, data: bytes) -> None:
        buffer = self._buffers.setdefault(channel, bytearray())
        buffer += data
        self._after(len(buffer), len(data))

    def _after(self, size: int, added: int) -> None:
        if size >= LIMIT:
            self.flush()
        elif size == added:
            self._wake()

    def flush(self) -> None:
        with self._order:
            for channel, buffer in list(self._buffers.items()):
                size = len(buffer)
                if size:
                    data = bytes(buffer[:size])
                    del buffer[:size]
                    self._write(channel, data)
