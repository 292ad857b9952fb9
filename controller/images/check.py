"""Is this file what its image says it is?

Owns:    the shallow checks that can be made without booting: magic numbers, and that nothing is cut off.
Never:   executes or unpacks anything; reads more than headers.
Threads: pure but for reading the file it is given.

Sources: Linux Documentation/arch/x86/boot.rst (bzImage), ELF-64 object file format, Multiboot specification 0.6.96 §3.1.
"""

import struct
from pathlib import Path

from controller.errors import BadField
from controller.model.records import FileRole, ImageFile, ImageKind

HEAD = 64 << 10
BOOT_FLAG, HDRS = 0xAA55, b"HdrS"
MULTIBOOT_MAGIC, MULTIBOOT_SEARCH = 0x1BADB002, 8192
EM_386, EM_X86_64 = 3, 62
SECTOR = 512


def check_file(kind: ImageKind, file: ImageFile, path: Path) -> None:
    """Raises BadField, NOT_A_KERNEL or FILE_TRUNCATED."""
    if file.role is FileRole.KERNEL:
        with open(path, "rb") as stream:
            head = stream.read(HEAD)
        (check_linux if kind is ImageKind.LINUX else check_multiboot)(head, file.size_bytes)
    elif file.role is FileRole.DISK and file.size_bytes % SECTOR:
        raise BadField("files.disk", f"{file.size_bytes} bytes are no whole sectors of {SECTOR}", "NOT_A_DISK")


def check_linux(head: bytes, size: int) -> None:
    if head[:4] == b"\x7fELF":
        _check_elf(head, size, want_64=True)
        return
    if len(head) < 0x268 or struct.unpack_from("<H", head, 0x1FE)[0] != BOOT_FLAG or head[0x202:0x206] != HDRS:
        raise BadField("files.kernel", "is neither a bzImage nor a 64-bit ELF kernel", "NOT_A_KERNEL")
    setup_sects = head[0x1F1] or 4
    (syssize,) = struct.unpack_from("<I", head, 0x1F4)
    whole = (setup_sects + 1) * SECTOR + syssize * 16
    # syssize is rounded up to 16 bytes, and the file's last paragraph may be shorter
    if whole - 16 >= size:
        raise BadField("files.kernel", f"the bzImage is cut off: {whole} bytes by its header, {size} in the file",
                       "FILE_TRUNCATED")


def check_multiboot(head: bytes, size: int) -> None:
    words = min(len(head), MULTIBOOT_SEARCH) // 4
    for index, word in enumerate(struct.unpack_from(f"<{words}I", head)):
        if word == MULTIBOOT_MAGIC and index + 2 < words:
            flags, checksum = struct.unpack_from("<II", head, index * 4 + 4)
            if (word + flags + checksum) & 0xFFFFFFFF == 0:
                break
    else:
        raise BadField("files.kernel", "has no multiboot 1 header in its first 8 KiB", "NOT_A_KERNEL")
    if head[:4] == b"\x7fELF":
        _check_elf(head, size, want_64=False)


def _check_elf(head: bytes, size: int, *, want_64: bool) -> None:
    """Every loadable segment lies within the file."""
    is_64 = head[4:5] == b"\x02"
    if len(head) < 64 or (want_64 and not is_64) or head[5] != 1:
        raise BadField("files.kernel", "is no little-endian 64-bit ELF", "NOT_A_KERNEL")
    machine = struct.unpack_from("<H", head, 18)[0]
    if machine not in ((EM_X86_64,) if want_64 else (EM_386, EM_X86_64)):
        raise BadField("files.kernel", f"is for another processor (ELF machine {machine})", "NOT_A_KERNEL")
    (phoff,) = struct.unpack_from("<Q" if is_64 else "<I", head, 32 if is_64 else 28)
    entry_size, count = struct.unpack_from("<HH", head, 54 if is_64 else 42)
    for index in range(count):
        at = phoff + index * entry_size
        if at + (56 if is_64 else 32) > len(head):
            if at + entry_size > size:
                raise BadField("files.kernel", "the ELF is cut off in its program headers", "FILE_TRUNCATED")
            return                                        # far behind: left to the node, which loads it
        offset, length = struct.unpack_from("<QxxxxxxxxxxxxxxxxQ" if is_64 else "<IxxxxxxxxI", head,
                                            at + (8 if is_64 else 4))
        if offset + length > size:
            raise BadField("files.kernel", f"the ELF is cut off: a segment ends at {offset + length}, the file at {size}",
                           "FILE_TRUNCATED")
