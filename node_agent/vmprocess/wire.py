"""Frames on a stream: 4 bytes length, big endian, then one protobuf message.

Owns:    the framing and its limit, for asyncio streams and for blocking sockets.
Never:   knows what the messages mean.
Threads: a stream belongs to one reader and one writer.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

MAX_FRAME = 16 << 20
_LENGTH = struct.Struct(">I")

M = TypeVar("M", bound=Message)


class WireError(Exception):
    """The other side does not speak this protocol, or broke off inside a frame."""


class Closed(WireError):
    """The other side is gone, between two frames."""


def encode(message: Message) -> bytes:
    body = message.SerializeToString()
    if len(body) > MAX_FRAME:
        raise WireError(f"a message of {len(body)} bytes is too long for a frame")
    return _LENGTH.pack(len(body)) + body


def decode(kind: type[M], body: bytes) -> M:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise WireError(f"not a {kind.__name__}: {error}") from error


def _length(header: bytes) -> int:
    (length,) = _LENGTH.unpack(header)
    if length > MAX_FRAME:
        raise WireError(f"a frame of {length} bytes is announced; {MAX_FRAME} is the limit")
    return length


async def read(reader: asyncio.StreamReader, kind: type[M]) -> M:
    try:
        header = await reader.readexactly(_LENGTH.size)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise WireError("broken off inside a frame") from error
        raise Closed("closed") from error
    except OSError as error:
        raise Closed(str(error)) from error
    try:
        return decode(kind, await reader.readexactly(_length(header)))
    except (asyncio.IncompleteReadError, OSError) as error:
        raise WireError("broken off inside a frame") from error


def receive(sock: socket.socket, kind: type[M]) -> M:
    """Blocking; raises Closed, WireError or the socket's own time-out."""
    header = _receive_exactly(sock, _LENGTH.size, at_start=True)
    return decode(kind, _receive_exactly(sock, _length(header), at_start=False))


def send(sock: socket.socket, message: Message) -> None:
    sock.sendall(encode(message))


def _receive_exactly(sock: socket.socket, size: int, at_start: bool) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    got = 0
    while got < size:
        n = sock.recv_into(view[got:])
        if n == 0:
            if at_start and got == 0:
                raise Closed("closed")
            raise WireError("broken off inside a frame")
        got += n
    return bytes(data)
