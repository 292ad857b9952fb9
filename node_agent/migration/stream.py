"""The memory stream: what goes over the wire from source to target.

    source → target   Offer                          (framed protobuf)
    target → source   OfferReply
    source → target   frames: header, body
        PAGES       count × (first u32, frames u32), then the frames' bytes
        ZEROS       count × (first u32, frames u32)
        ROUND       nothing; the target echoes 8 bytes when everything before it is in memory
        STANDSTILL  a Standstill message of `length` bytes: the end
    target → source   Ready                          (framed protobuf)

    header, 16 bytes, little endian: kind u32 | count u32 | length of the body u64

Off loopback the stream speaks TLS, both sides with certificates; the one-time token is checked as well.

Owns:    the frames, the sockets' options.
Never:   decides when to stop; trusts a length or a frame number that it read.
Threads: one thread per side, blocking; big reads and writes let go of the GIL.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import struct

import numpy as np

from node_agent.migration import pages
from node_agent.migration.pages import FRAME
from virga.vmm.v1 import vmm_pb2 as pb

PROTOCOL = 1
PAGES, ZEROS, ROUND, STANDSTILL = 1, 2, 3, 4
HEADER = struct.Struct("<IIQ")
ACK = struct.Struct("<Q")
MAX_RUNS = 500                       # per frame: with header and table below IOV_MAX = 1024
MAX_RUN_FRAMES = 256                 # 1 MiB
MAX_STANDSTILL = 64 << 20
SOCKET_BUFFER = 4 << 20


class StreamError(Exception):
    """The other side does not speak this protocol, or something is out of bounds."""


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_tls(host: str, tls: pb.TlsFiles) -> bool:
    """Whether to speak TLS. Raises StreamError where one must and cannot."""
    if tls.cert:
        return True
    if not is_loopback(host):
        raise StreamError(f"{host} is not loopback: the memory stream needs TLS certificates there")
    return False


def secure(sock: socket.socket, tls: pb.TlsFiles, server: bool, host: str) -> socket.socket:
    purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
    context = ssl.create_default_context(purpose, cafile=tls.ca)
    context.load_cert_chain(tls.cert, tls.key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context.wrap_socket(sock, server_side=server, server_hostname=None if server else host)


def tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)


class Sender:
    """Source's half. `memory` is the RAM by file offset."""

    def __init__(self, sock: socket.socket, memory: memoryview) -> None:
        self._sock = sock
        self._memory = memory
        self.bytes = 0

    def send_frames(self, mask: np.ndarray, first_round: bool = False) -> None:
        """Send the frames of the mask. In the first round zeros need no word: the target's memory is new."""
        for at in range(0, len(mask), pages.SCAN_FRAMES):
            part = mask[at:at + pages.SCAN_FRAMES]
            if not part.any():
                continue
            full = np.zeros(len(part), bool)
            for first, count in pages.runs(part).tolist():
                full[first:first + count] = pages.filled(self._memory, at + first, count)
            self._pages(self._absolute(full, at))
            if not first_round:
                self._zeros(self._absolute(part & ~full, at))

    @staticmethod
    def _absolute(mask: np.ndarray, at: int) -> np.ndarray:
        rows = pages.runs(mask)
        rows[:, 0] += np.uint32(at)
        return pages.split(rows, MAX_RUN_FRAMES)

    def _pages(self, rows: np.ndarray) -> None:
        for at in range(0, len(rows), MAX_RUNS):
            table = np.ascontiguousarray(rows[at:at + MAX_RUNS], "<u4")
            views = [self._memory[first * FRAME:(first + count) * FRAME] for first, count in table.tolist()]
            size = table.nbytes + sum(len(view) for view in views)
            self._send([HEADER.pack(PAGES, len(table), size), table.tobytes(), *views])

    def _zeros(self, rows: np.ndarray) -> None:
        for at in range(0, len(rows), MAX_RUNS):
            table = np.ascontiguousarray(rows[at:at + MAX_RUNS], "<u4")
            self._send([HEADER.pack(ZEROS, len(table), table.nbytes), table.tobytes()])

    def round(self) -> None:
        """Returns when the target has everything sent so far in its memory."""
        self._send([HEADER.pack(ROUND, 0, 0)])
        receive_exactly(self._sock, memoryview(bytearray(ACK.size)))

    def standstill(self, message: pb.Standstill) -> None:
        body = message.SerializeToString()
        self._send([HEADER.pack(STANDSTILL, 0, len(body)), body])

    def _send(self, buffers: list[bytes | memoryview]) -> None:
        size = sum(len(buffer) for buffer in buffers)
        self.bytes += size
        if isinstance(self._sock, ssl.SSLSocket):            # knows no sendmsg
            for buffer in buffers:
                self._sock.sendall(buffer)
            return
        sent = self._sock.sendmsg(buffers)
        if sent < size:
            for buffer in buffers:
                if sent >= len(buffer):
                    sent -= len(buffer)
                    continue
                self._sock.sendall(memoryview(buffer)[sent:])
                sent = 0


class Receiver:
    """Target's half: fills `memory` until the standstill comes."""

    def __init__(self, sock: socket.socket, memory: memoryview) -> None:
        self._sock = sock
        self._memory = memory
        self._frames = len(memory) // FRAME
        self._header = bytearray(HEADER.size)
        self.bytes = 0
        self.rounds = 0

    def run(self) -> pb.Standstill:
        while True:
            receive_exactly(self._sock, memoryview(self._header))
            kind, count, length = HEADER.unpack(self._header)
            self.bytes += HEADER.size + length
            if kind == PAGES:
                self._pages(count, length)
            elif kind == ZEROS:
                self._zeros(count, length)
            elif kind == ROUND:
                self.rounds += 1
                self._sock.sendall(ACK.pack(self.rounds))
            elif kind == STANDSTILL:
                return self._standstill(length)
            else:
                raise StreamError(f"a frame of unknown kind {kind}")

    def _table(self, count: int, length: int) -> list[list[int]]:
        if not 0 < count <= MAX_RUNS or length < 8 * count:
            raise StreamError(f"a frame with {count} runs in {length} bytes")
        raw = bytearray(8 * count)
        receive_exactly(self._sock, memoryview(raw))
        table = np.frombuffer(raw, "<u4").reshape(count, 2).astype(np.uint64)
        if (table[:, 1] > MAX_RUN_FRAMES).any():
            raise StreamError(f"a run of more than {MAX_RUN_FRAMES} frames")
        if (table.sum(axis=1) > self._frames).any():
            raise StreamError(f"a frame beyond the {self._frames} of this machine")
        return table.tolist()

    def _pages(self, count: int, length: int) -> None:
        table = self._table(count, length)
        if length != 8 * count + sum(n for _, n in table) * FRAME:
            raise StreamError("a frame whose length does not fit its runs")
        views = [self._memory[first * FRAME:(first + n) * FRAME] for first, n in table]
        if isinstance(self._sock, ssl.SSLSocket):
            for view in views:
                receive_exactly(self._sock, view)
        else:
            _receive_into(self._sock, views)

    def _zeros(self, count: int, length: int) -> None:
        if length != 8 * count:
            raise StreamError("a frame whose length does not fit its runs")
        for first, n in self._table(count, length):
            self._memory[first * FRAME:(first + n) * FRAME] = bytes(n * FRAME)

    def _standstill(self, length: int) -> pb.Standstill:
        if length > MAX_STANDSTILL:
            raise StreamError(f"a machine's state of {length} bytes")
        body = bytearray(length)
        receive_exactly(self._sock, memoryview(body))
        return pb.Standstill.FromString(bytes(body))


def receive_exactly(sock: socket.socket, view: memoryview) -> None:
    while len(view):
        n = sock.recv_into(view)
        if n == 0:
            raise StreamError("the other side broke off")
        view = view[n:]


def _receive_into(sock: socket.socket, views: list[memoryview]) -> None:
    """Fill all views, in order, with few calls."""
    at = 0
    while at < len(views):
        n = sock.recvmsg_into(views[at:])[0]
        if n == 0:
            raise StreamError("the other side broke off")
        while n:
            take = min(n, len(views[at]))
            views[at] = views[at][take:]
            n -= take
            if not len(views[at]):
                at += 1
