"""The initramfs archive: cpio, "newc" format (Linux Documentation/driver-api/early-userspace/buffer-format.rst).

Owns:    the bytes of the archive. The same entries give the same bytes: no times, no inode numbers of the host.
Never:   reads the host's files by itself.
Threads: none.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One file; mode holds type and rights as in stat(2); data is a file's content or a link's target."""

    path: str
    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)


def directory(path: str) -> Entry:
    return Entry(path, stat.S_IFDIR | 0o755)


def file(path: str, data: bytes, executable: bool = False) -> Entry:
    return Entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data)


def symlink(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def char_device(path: str, major: int, minor: int) -> Entry:
    return Entry(path, stat.S_IFCHR | 0o600, b"", (major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of the entries in the order given, parents made where nobody named them."""
    named = list(entries)
    seen = {entry.path for entry in named}
    out = bytearray()
    done: set[str] = set()
    for entry in named:
        parts = entry.path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            parent = "/".join(parts[:depth])
            if parent not in seen and parent not in done:
                done.add(parent)
                _append(out, directory(parent), len(done) + len(seen))
        done.add(entry.path)
        _append(out, entry, len(done) + len(seen))
    _append(out, Entry("TRAILER!!!", 0), 0)
    return bytes(out + b"\0" * (-len(out) % 512))


def _append(out: bytearray, entry: Entry, inode: int) -> None:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.rdev, len(name), 0)
    out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
    out += b"\0" * (-len(out) % 4)
    out += entry.data
    out += b"\0" * (-len(out) % 4)
