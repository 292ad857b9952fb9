"""Unpacks the kernel inside a bzImage once, and keeps it by hash in the user's cache.

    payload ── magic ──► gzip | xz | lzma | bzip2 | zstd | lz4 legacy ──► vmlinux (ELF) ──► CACHE/kernels/<sha256>.elf

Owns:    the cache's files: written beside and renamed, so that a reader sees a whole file or none.
Never:   fails because the cache cannot be written: then the kernel is unpacked each time.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

MAX_KERNEL_BYTES = 1 << 30
LZ4_LEGACY_BLOCK = 8 << 20
ZSTD_STEP = 512                       # a block of 128 KiB can be packed into 4 bytes


class UnpackError(Exception):
    """The payload is damaged or packed in an unknown way."""


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "virga" / "kernels"


def unpacked(payload: bytes, folder: Path):
    """The kernel as a read-only buffer."""
    path = folder / f"{hashlib.sha256(payload).hexdigest()}.elf"
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        pass
    kernel = unpack(payload)
    store(path, kernel)
    return kernel


def store(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.rename(file.name, path)
            except OSError:
                os.unlink(file.name)
                raise
    except OSError:
        return                            # a full or read-only disk costs time, not the boot


def unpack(payload: bytes) -> bytes:
    for magic, method in METHODS:
        if payload.startswith(magic):
            try:
                kernel = method(payload)
            except UnpackError:
                raise
            except Exception as error:    # each library has its own; all mean the same
                raise UnpackError(f"its kernel is damaged ({error})") from None
            return kernel
    raise UnpackError(f"its kernel is packed in an unknown way (magic {payload[:4].hex(' ')})")


def knows(payload: bytes) -> bool:
    return any(payload.startswith(magic) for magic, _ in METHODS)


def check_size(size: int) -> None:
    """Before more of it is made: a few packed bytes can stand for more memory than the host has."""
    if size > MAX_KERNEL_BYTES:
        raise UnpackError(f"its kernel is larger than {MAX_KERNEL_BYTES >> 20} MiB")


def finish(decompressor, payload: bytes) -> bytes:
    data = decompressor.decompress(payload, MAX_KERNEL_BYTES + 1)
    check_size(len(data))
    if not decompressor.eof:
        raise UnpackError("its kernel is truncated")
    return data


def unpack_gzip(payload: bytes) -> bytes:
    return finish(zlib.decompressobj(31), payload)


def unpack_xz(payload: bytes) -> bytes:
    return finish(lzma.LZMADecompressor(lzma.FORMAT_XZ), payload)


def unpack_lzma(payload: bytes) -> bytes:
    return finish(lzma.LZMADecompressor(lzma.FORMAT_ALONE), payload)


def unpack_bzip2(payload: bytes) -> bytes:
    return finish(bz2.BZ2Decompressor(), payload)


def unpack_zstd(payload: bytes) -> bytes:
    import zstandard

    decompressor, parts, size = zstandard.ZstdDecompressor().decompressobj(), [], 0
    for at in range(0, len(payload), ZSTD_STEP):         # it takes no limit, so it gets little at a time
        parts.append(decompressor.decompress(payload[at:at + ZSTD_STEP]))
        size += len(parts[-1])
        check_size(size)
        if decompressor.eof:
            return b"".join(parts)
    raise UnpackError("its kernel is truncated")


def unpack_lz4(payload: bytes) -> bytes:
    """LZ4's legacy frames: a magic, then blocks of up to 8 MiB with their packed size before them."""
    import lz4.block

    parts, at, made = [], 4, 0
    while at + 4 <= len(payload):
        (size,) = struct.unpack_from("<I", payload, at)
        if payload[at:at + 4] == LZ4_MAGIC:          # frames can be joined
            at += 4
            continue
        if at + 4 + size > len(payload):
            if sum(map(len, parts)) & 0xFFFFFFFF == size and len(payload) - at == 4:
                break                                # the unpacked size, as the kernel's build appends it
            raise UnpackError("its kernel is truncated")
        parts.append(lz4.block.decompress(payload[at + 4:at + 4 + size], uncompressed_size=LZ4_LEGACY_BLOCK))
        made += len(parts[-1])
        check_size(made)
        at += 4 + size
    return b"".join(parts)


LZ4_MAGIC = b"\x02\x21\x4c\x18"
METHODS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", unpack_gzip), (b"\xfd7zXZ\0", unpack_xz), (b"\x5d\x00\x00", unpack_lzma), (b"BZh", unpack_bzip2),
    (b"\x28\xb5\x2f\xfd", unpack_zstd), (LZ4_MAGIC, unpack_lz4),
)
