"""Which frames to send, as arrays.

Owns:    bitmaps to runs of frames; telling frames that are all zero, or were never touched.
Never:   sends.
Threads: any; numpy lets go of the GIL while it reads memory.
"""

from __future__ import annotations

import errno
import os

import numpy as np

FRAME = 4096
_WORDS = FRAME // 8
SCAN_FRAMES = 1024               # frames looked at in one call: 4 MiB


def dirty_frames(bitmap: bytes | bytearray, frames: int) -> np.ndarray:
    """Boolean per frame; bit n of the bitmap, counted from the least significant of byte 0, is frame n."""
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    return bits[:frames].astype(bool)


def runs(mask: np.ndarray) -> np.ndarray:
    """Rows (first, count) of the stretches where the mask is true."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=np.int8(0), append=np.int8(0)))
    first, end = edges[0::2], edges[1::2]
    return np.stack([first, end - first], axis=1).astype(np.uint32)


def filled(memory: memoryview, first: int, count: int) -> np.ndarray:
    """Boolean per frame of [first, first + count): true where any byte is not zero."""
    words = np.frombuffer(memory, np.uint64, count * _WORDS, first * FRAME).reshape(count, _WORDS)
    return np.bitwise_or.reduce(words, axis=1) != 0


def backed(fd: int, frames: int) -> np.ndarray:
    """Boolean per frame of a memory file: false where it has a hole, which is zeros that cost nothing until somebody
    looks at them."""
    mask = np.zeros(frames, bool)
    at, end = 0, frames * FRAME
    while at < end:
        try:
            first = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:                    # no data behind `at`
                break
            raise
        at = os.lseek(fd, first, os.SEEK_HOLE)
        mask[first // FRAME:-(-at // FRAME)] = True
    return mask


def split(rows: np.ndarray, limit: int) -> np.ndarray:
    """The same frames, no run longer than `limit`."""
    if not len(rows) or rows[:, 1].max() <= limit:
        return rows
    out = []
    for first, count in rows.tolist():
        out.extend((at, min(limit, first + count - at)) for at in range(first, first + count, limit))
    return np.array(out, np.uint32)
