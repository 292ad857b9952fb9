"""Image files, by their SHA-256.

Owns:    STATE/images: one file per hash, and uploads under way (.upload-*).
Never:   knows which image a file belongs to; lets a file be seen before its hash was checked.
Threads: one event loop; disk work goes to threads.
"""

import asyncio
import errno
import hashlib
import logging
import os
from collections.abc import AsyncGenerator, Callable
from io import IOBase
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from controller import errors
from controller.model import names

log = logging.getLogger(__name__)
CHUNK = 1 << 20
KEEP_UNUSED_S = 3600.0               # an upload in two calls finds what the first one brought
T = TypeVar("T")


class ImageFiles:
    def __init__(self, folder: Path, token: Callable[[], str]) -> None:
        self._folder, self._token = folder, token

    def prepare(self) -> None:
        """Make the folder; remove what an earlier life left half-uploaded."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for leftover in self._folder.glob(".upload-*"):
            leftover.unlink(missing_ok=True)

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def path(self, sha256: str) -> Path:
        names.check("sha256", sha256, names.SHA256)
        return self._folder / sha256

    def upload(self, sha256: str, size: int) -> "Upload":
        return Upload(self._folder / f".upload-{self._token()}", self.path(sha256), sha256, size)

    async def read(self, sha256: str, offset: int) -> AsyncGenerator[tuple[int, bytes, int], None]:
        """(offset, data, size of the file), from offset on; one empty piece where offset is the end."""
        path = self.path(sha256)
        try:
            file = await asyncio.to_thread(open, path, "rb")
        except FileNotFoundError:
            raise errors.NotFound("file", sha256) from None
        except OSError as error:
            raise errors.Corrupt("FILE_UNREADABLE", f"{sha256}: {error.strerror}") from error
        try:
            size = os.fstat(file.fileno()).st_size
            if offset > size:
                raise errors.BadField("offset", f"is {offset}, but the file has {size} bytes")
            file.seek(offset)
            while data := await _disk(file.read, CHUNK):
                yield offset, data, size
                offset += len(data)
            if offset == size:
                yield offset, b"", size
        finally:
            file.close()

    def collect(self, used: set[str], now: float) -> int:
        """Remove files that nothing refers to and that have been here a while."""
        removed = 0
        for path in self._folder.iterdir():
            if path.name in used or path.name.startswith("."):
                continue
            if now - path.stat().st_mtime > KEEP_UNUSED_S:
                path.unlink(missing_ok=True)
                removed += 1
        return removed


class Upload:
    """One file on its way in; `async with` removes it where it was not finished."""

    def __init__(self, temporary: Path, final: Path, sha256: str, size: int) -> None:
        self.path = temporary
        self._final, self._sha256, self._size = final, sha256, size
        self._hash, self._written = hashlib.sha256(), 0
        self._file: BinaryIO | None = None

    async def __aenter__(self) -> "Upload":
        self._file = await _disk(open, self.path, "xb")
        try:
            await _disk(self._reserve)
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self._file:
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _reserve(self) -> None:
        """A disk that is too small is found out now, not at the last chunk."""
        if self._size and self._file:
            os.posix_fallocate(self._file.fileno(), 0, self._size)

    async def write(self, offset: int, data: bytes) -> None:
        if offset != self._written:
            raise errors.BadField("chunk.offset", f"is {offset}, but {self._written} bytes have come", "CHUNK_GAP")
        if offset + len(data) > self._size:
            raise errors.BadField("chunk.data", f"more than the {self._size} bytes that were announced", "FILE_TOO_LONG")
        await _disk(self._append, data)
        self._written += len(data)

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        self._hash.update(data)
        self._file.write(data)

    async def check(self) -> None:
        """All is there, and is what was announced."""
        assert self._file is not None
        if self._written != self._size:
            raise errors.BadField("chunk", f"the file ends after {self._written} of {self._size} bytes",
                                  "FILE_TRUNCATED")
        if self._hash.hexdigest() != self._sha256:
            raise errors.BadField("files.sha256", f"the bytes have {self._hash.hexdigest()}, not {self._sha256}",
                                  "CHECKSUM_MISMATCH")
        await _disk(self._file.flush)

    async def finish(self) -> None:
        """Visible from now on, and after a crash."""
        assert self._file is not None
        await _disk(os.fsync, self._file.fileno())
        await _disk(os.replace, self.path, self._final)


async def _disk(work: Callable[..., T], *args: Any) -> T:
    working = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])                   # the file is closed only when nobody works on it
        if not working.cancelled() and working.exception() is None and isinstance(opened := working.result(), IOBase):
            opened.close()
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise errors.Exhausted("DISK_FULL", "the controller's disk is full") from error
        raise errors.Corrupt("DISK_FAILED", f"the controller's disk: {error.strerror}") from error
