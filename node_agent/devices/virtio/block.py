"""Block device on a raw file or host block device. Source: virtio 1.2 §5.2.

    request:  type (4) | reserved (4) | sector (8) | data … | status (1, written by us)

Requests are taken one after the other, in the order of the ring; the file is read and written on the I/O thread without
the machine's lock. A request that was begun before the driver reset the device is forgotten when it ends.

Owns:    the file's descriptor.
Never:   reads or writes outside the file; answers a flush before the host has the data.
Threads: under the machine's lock, but for `_perform`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

from node_agent.devices.base import Memory, Tasks
from node_agent.devices.virtio.queue import Chain, QueueError, Segment
from node_agent.devices.virtio.transport import Backend

SECTOR = 512
PIECE = 1 << 20
T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2
F_SEG_MAX, F_RO, F_BLK_SIZE, F_FLUSH, F_DISCARD, F_WRITE_ZEROES = 1 << 2, 1 << 5, 1 << 6, 1 << 9, 1 << 13, 1 << 14
SEG_MAX = 126
MAX_SECTORS = 1 << 22                      # of one discard or write-zeroes segment
HEADER = struct.Struct("<IIQ")
RANGE = struct.Struct("<QII")
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 1, 2
DELAY_NS = 100_000

_libc = ctypes.CDLL(None, use_errno=True)


def punch_hole(fd: int, offset: int, size: int) -> None:
    """Give the range back to the host's file system; it reads as zeroes afterwards."""
    mode = FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE
    if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(size)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@dataclass(frozen=True)
class Request:
    chain: Chain
    kind: int
    sector: int
    readable: tuple[Segment, ...]          # without the header
    writable: tuple[Segment, ...]          # without the status byte
    status_gpa: int
    epoch: int


class Block(Backend):
    device_id = 2
    class_code = 0x018000
    queue_sizes = (128,)

    def __init__(self, path: str, read_only: bool, memory: Memory, tasks: Tasks) -> None:
        self._fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        self._size = os.lseek(self._fd, 0, os.SEEK_END) // SECTOR * SECTOR
        self._read_only = read_only
        self._id = os.path.basename(path).encode(errors="replace")[:20].ljust(20, b"\0")
        self._memory = memory
        self._tasks = tasks
        self._epoch = 0
        self._busy = False
        self.features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | (F_RO if read_only else F_DISCARD | F_WRITE_ZEROES)

    def close(self) -> None:
        os.close(self._fd)

    def config(self) -> bytes:
        return struct.pack("<QIIHBBIBBHIBBHIIIIIB3x",
                           self._size // SECTOR, 0, SEG_MAX, 0, 0, 0, SECTOR, 0, 0, 0, 0, 1, 0, 1,
                           MAX_SECTORS, SEG_MAX, 1, MAX_SECTORS, SEG_MAX, 1)

    def reset(self) -> None:
        self._epoch += 1
        self._busy = False

    def notify(self, queue: int) -> None:
        if not self._busy:
            self._busy = True
            self._tasks.submit(self._take, DELAY_NS)

    # taking and finishing: under the machine's lock

    def _take(self) -> tuple[Callable[[], int], Callable[[int], object]] | None:
        """The next request as (work without the lock, what to do with its result), or None."""
        return self.transport.guarded(self._take_next) if self.transport.running else self._idle()

    def _idle(self) -> None:
        self._busy = False

    def _take_next(self) -> tuple[Callable[[], int], Callable[[int], object]] | None:
        queue = self.transport.queues[0]
        chain = queue.pop()
        if chain is None:
            return self._idle()
        request = self._parse(chain)
        return lambda: self._perform(request), lambda result: self._finish(request, result)

    def _parse(self, chain: Chain) -> Request:
        if not chain.writable or chain.writable[-1].size < 1:
            raise QueueError("no room for the status")
        header = self.transport.queues[0].gather(chain.readable, HEADER.size)
        if len(header) < HEADER.size:
            raise QueueError("short header")
        kind, _, sector = HEADER.unpack(header)
        last = chain.writable[-1]
        writable = (*chain.writable[:-1], Segment(last.gpa, last.size - 1))
        return Request(chain, kind, sector, skip(chain.readable, HEADER.size), writable, last.gpa + last.size - 1,
                       self._epoch)

    def _finish(self, request: Request, result: int) -> object:
        """`result`: bytes put into the guest's memory, or minus the status."""
        if request.epoch != self._epoch:
            return None
        queue = self.transport.queues[0]

        def answer() -> None:
            queue.scatter((Segment(request.status_gpa, 1),), bytes((-result if result < 0 else S_OK,)))
            queue.push(request.chain, max(result, 0) + 1)
            self.transport.interrupt(0)

        self.transport.guarded(answer)
        self._tasks.submit(self._take, 0)      # not at once: a busy disk leaves room for timers and the others' tasks
        return None

    # the work: on the I/O thread, without the lock

    def _perform(self, request: Request) -> int:
        try:
            return self._dispatch(request)
        except (OSError, ValueError, OverflowError, QueueError):
            return -S_IOERR

    def _dispatch(self, request: Request) -> int:
        kind = request.kind
        if kind == T_IN:
            return self._read(request)
        if kind == T_FLUSH:
            os.fdatasync(self._fd)
            return 0
        if kind == T_GET_ID:
            return self.transport.queues[0].scatter(request.writable, self._id)
        if kind not in (T_OUT, T_DISCARD, T_WRITE_ZEROES):
            return -S_UNSUPP
        if self._read_only:
            return -S_IOERR
        return self._write(request) if kind == T_OUT else self._clear(request)

    def _check(self, offset: int, size: int) -> None:
        if size % SECTOR or offset + size > self._size:
            raise OSError(errno.EINVAL, "outside the disk")

    def _read(self, request: Request) -> int:
        offset = request.sector * SECTOR
        total = sum(segment.size for segment in request.writable)
        self._check(offset, total)
        for gpa, size in pieces(request.writable):
            data = os.pread(self._fd, size, offset)
            if len(data) != size:
                raise OSError(errno.EIO, "the file became shorter")
            self._memory.write(gpa, data)
            offset += size
        return total

    def _write(self, request: Request) -> int:
        offset = request.sector * SECTOR
        self._check(offset, sum(segment.size for segment in request.readable))
        for gpa, size in pieces(request.readable):
            data = memoryview(self._memory.read(gpa, size))
            while data:
                done = os.pwrite(self._fd, data, offset)
                offset += done
                data = data[done:]
        return 0

    def _clear(self, request: Request) -> int:
        ranges = self.transport.queues[0].gather(request.readable, RANGE.size * SEG_MAX)
        if not ranges or len(ranges) % RANGE.size:
            return -S_IOERR
        for sector, count, flags in RANGE.iter_unpack(ranges):
            if flags & ~1 or (request.kind == T_DISCARD and flags) or count > MAX_SECTORS:
                return -S_UNSUPP
            offset, size = sector * SECTOR, count * SECTOR
            self._check(offset, size)
            if size:
                self._zero(offset, size, must=request.kind == T_WRITE_ZEROES)
        return 0

    def _zero(self, offset: int, size: int, must: bool) -> None:
        try:
            punch_hole(self._fd, offset, size)
        except OSError:                    # a file system without holes: a discard is only a hint
            if must:
                for at in range(offset, offset + size, PIECE):
                    os.pwrite(self._fd, bytes(min(PIECE, offset + size - at)), at)


def skip(segments: tuple[Segment, ...], count: int) -> tuple[Segment, ...]:
    """The segments behind the first `count` bytes."""
    rest = []
    for segment in segments:
        cut = min(count, segment.size)
        count -= cut
        if segment.size > cut:
            rest.append(Segment(segment.gpa + cut, segment.size - cut))
    return tuple(rest)


def pieces(segments: tuple[Segment, ...]):
    """(gpa, size) with no size above PIECE, so that a request never holds more memory than that."""
    for segment in segments:
        for at in range(0, segment.size, PIECE):
            yield segment.gpa + at, min(PIECE, segment.size - at)
