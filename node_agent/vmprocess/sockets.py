"""Unix sockets in folders of any depth.

A socket's address holds 107 bytes (unix(7)), a state folder may have a longer name. So the folder is opened, and the
socket is named by way of the descriptor: /proc/self/fd/N/NAME.

Owns:    binding and connecting.
Never:   leaves a socket open to other users: the folder is 0700.
Threads: any.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def listen(path: Path, backlog: int = 64) -> socket.socket:
    """A listening socket at `path`; what a dead process left there is removed (the caller holds the folder's lock)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        with _short(path) as name:
            sock.bind(name)
        os.chmod(path, 0o600)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def connect(path: Path, timeout_s: float | None = None) -> socket.socket:
    """Raises FileNotFoundError or ConnectionRefusedError where nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    try:
        with _short(path) as name:
            sock.connect(name)
    except BaseException:
        sock.close()
        raise
    return sock


async def open_stream(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """connect(2) of a unix socket does not wait for the peer's accept, so it may be made synchronously."""
    sock = connect(path)
    sock.setblocking(False)
    return await asyncio.open_unix_connection(sock=sock)
