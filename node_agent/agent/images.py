"""Image files on a node: fetched when first needed, checked, kept by their hash.

A file under its hash is whole and was checked; whatever is on its way has the suffix .part and is gone on with.

Owns:    STATE/images.
Never:   lets a VM see a file whose hash does not fit.
Threads: the agent's loop; hashing in a worker thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

_SHA256 = re.compile(r"[0-9a-f]{64}")

Fetch = Callable[[str, int], AsyncIterator[bytes]]       # (sha256, offset) -> chunks


class ImageError(Exception):
    """The image cannot be had; `reason` is the stable word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Images:
    def __init__(self, folder: Path, fetch: Fetch, in_use: Callable[[], set[str]]) -> None:
        self._folder = folder
        self._fetch = fetch
        self._in_use = in_use
        self._locks: dict[str, asyncio.Lock] = {}

    def path(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise ImageError("IMAGE_FAILED", f"{sha256!r} is no SHA-256")
        return self._folder / sha256

    async def get(self, sha256: str, size: int) -> tuple[Path, bool]:
        """(path, it was there already). Raises ImageError; what the wire raises goes through (try again later)."""
        path = self.path(sha256)
        async with self._locks.setdefault(sha256, asyncio.Lock()):
            if path.exists() and path.stat().st_size == size:
                return path, True
            try:
                await self._download(path, sha256, size)
            except OSError as error:
                if error.errno is None:
                    raise
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise ImageError("IMAGE_FAILED", f"{error.filename or path}: {error.strerror}") from error
                if not self._evict():
                    raise ImageError("DISK_FULL", f"no room for an image file of {size} bytes in {self._folder}") \
                        from error
                return await self._once_more(path, sha256, size)
            return path, False

    async def _once_more(self, path: Path, sha256: str, size: int) -> tuple[Path, bool]:
        try:
            await self._download(path, sha256, size)
        except OSError as error:
            raise ImageError("DISK_FULL", f"{path}: {error.strerror}") from error
        return path, False

    async def _download(self, path: Path, sha256: str, size: int) -> None:
        part = path.with_suffix(".part")
        with open(part, "ab") as file:
            have = file.tell()
            if have > size:
                file.truncate(0)
                have = 0
            if size > have:
                try:
                    os.posix_fallocate(file.fileno(), 0, size)     # a full disk is known now, not at the end
                finally:
                    os.ftruncate(file.fileno(), have)
            if have < size:
                async with contextlib.aclosing(self._fetch(sha256, have)) as chunks:
                    async for chunk in chunks:
                        file.write(chunk)
                        if file.tell() > size:
                            break
            file.flush()
            os.fsync(file.fileno())
        if await asyncio.to_thread(_digest, part) != sha256:
            part.unlink()
            raise ImageError("IMAGE_FAILED", f"image file {sha256[:12]}… arrived with another checksum")
        os.replace(part, path)

    def _evict(self) -> bool:
        """Remove what no VM here is made of. True where that freed anything."""
        kept = self._in_use()
        freed = False
        for path in self._folder.iterdir():
            if path.stem not in kept and not self._locks.get(path.stem, asyncio.Lock()).locked():
                path.unlink(missing_ok=True)
                freed = True
        return freed


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
