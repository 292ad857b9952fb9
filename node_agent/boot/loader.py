"""Looks inside a kernel file and loads it the way it wants.

    (packed as a whole: unpacked first)
    multiboot header ─► multiboot     HdrS ─► bzImage     ELF, 64 bits ─► vmlinux     else: a clear error

Owns:    the order of these questions.
Never:   trusts a file's name.
"""

from __future__ import annotations

import struct
from pathlib import Path

from node_agent.boot import acpi_tables, elf, layout, linux, multiboot, unpack
from node_agent.boot.cpu_state import StartState
from node_agent.boot.layout import BootError

MAX_FILE_BYTES = 1 << 30


def read_file(path: str) -> bytes:
    try:
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise BootError(path, "is larger than 1 GiB: no kernel")
        return Path(path).read_bytes()
    except OSError as error:
        raise BootError(path, error.strerror or str(error)) from None


def unpacked_whole(data: bytes, path: str) -> bytes:
    """Some kernels lie on the disk as .gz and the like: boot loaders unpack those."""
    if not unpack.knows(data):
        return data
    try:
        return unpack.unpack(data)
    except unpack.UnpackError as error:
        raise BootError(path, str(error)) from None


def write_bios_data(space) -> None:
    """What a BIOS leaves at 0x400: ports of COM1 and COM2, the EBDA's segment, KiB of memory below it."""
    area = bytearray(0x100)
    struct.pack_into("<HH", area, 0x00, 0x3F8, 0x2F8)
    struct.pack_into("<H", area, 0x0E, layout.EBDA >> 4)
    struct.pack_into("<H", area, 0x13, layout.EBDA >> 10)
    space.write(layout.BIOS_DATA, bytes(area))
    space.write(layout.EBDA, b"\x01")                   # its own size in KiB


# real-mode code: IRET for what hardware raises; for the rest "there is no such function", CF = 1 in the caller's flags;
# INT 12h: KiB of low memory in AX
STUB_IGNORED = b"\xcf"
STUB_REFUSED = b"\x55\x89\xe5\x80\x4e\x06\x01\x5d\xcf"      # push bp; mov bp, sp; or byte [bp+6], 1; pop bp; iret
STUB_MEMORY = b"\xb8" + struct.pack("<H", layout.EBDA >> 10) + b"\xcf"


def write_bios_stubs(space) -> None:
    """Kernels that go back to real mode (Xen does) call a BIOS; ours knows next to nothing, but it returns."""
    at, vectors = layout.BIOS_STUBS & 0xFFFF, []
    for vector in range(256):
        hardware = vector < 0x10 or 0x70 <= vector < 0x78
        offset = at if hardware else at + 0x20 if vector == 0x12 else at + 0x10
        vectors.append(struct.pack("<HH", offset, 0xF000))
    space.write(0, b"".join(vectors))
    for offset, code in ((0, STUB_IGNORED), (0x10, STUB_REFUSED), (0x20, STUB_MEMORY)):
        space.write(layout.BIOS_STUBS + offset, code)


def load_kernel(space, cpus: int, kernel: str, initrd: str | None, append: str, modules: tuple[str, ...],
                cache: Path | None = None) -> StartState:
    """Kernel and what goes with it into memory, ACPI tables too; the boot processor's state. Raises BootError."""
    rsdp = acpi_tables.install(space, cpus)
    write_bios_data(space)
    write_bios_stubs(space)
    data = unpacked_whole(read_file(kernel), kernel)
    header = multiboot.find_header(data)
    if header and (header.addresses or data[:4] == elf.MAGIC):
        return multiboot.load(space, data, header, kernel, append, modules + ((initrd,) if initrd else ()))
    boot = linux.Boot(append, initrd, rsdp, cache or unpack.cache_folder())
    if linux.is_bzimage(data):
        return linux.load_bzimage(space, data, kernel, boot)
    if data[:4] == elf.MAGIC:
        return linux.load_vmlinux(space, data, kernel, boot)
    if not data:
        raise BootError(kernel, "is empty")
    raise BootError(kernel, "is no kernel: neither bzImage, nor vmlinux, nor multiboot 1")
