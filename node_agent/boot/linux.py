"""Linux by its 64-bit boot protocol, from a bzImage or a vmlinux. Source: Documentation/arch/x86/boot.rst, zero-page.rst.

    bzImage:  0x1F1 setup header | (setup_sects + 1) × 512: protected-mode part, in it the packed vmlinux (payload)

The payload is unpacked on the host and entered at its own entry. Where it cannot be unpacked here, the kernel's own
decompressor is entered instead (0x200 behind the protected-mode part's start).

Owns:    the zero page and where the initrd goes.
Never:   keeps state.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from node_agent.boot import elf, layout
from node_agent.boot.cpu_state import StartState, long_mode
from node_agent.boot.layout import BootError
from node_agent.boot.unpack import UnpackError, knows, unpacked

SETUP_HEADER, SETUP_SECTS, BOOT_FLAG, HEADER_MAGIC = 0x1F1, 0x1F1, 0x1FE, 0x202
VERSION, TYPE_OF_LOADER, LOADFLAGS, CODE32_START = 0x206, 0x210, 0x211, 0x214
RAMDISK_IMAGE, RAMDISK_SIZE, CMD_LINE_PTR, INITRD_ADDR_MAX = 0x218, 0x21C, 0x228, 0x22C
KERNEL_ALIGNMENT, XLOADFLAGS, CMDLINE_SIZE, PAYLOAD_OFFSET, PAYLOAD_LENGTH = 0x230, 0x236, 0x238, 0x248, 0x24C
PREF_ADDRESS, INIT_SIZE = 0x258, 0x260
ACPI_RSDP_ADDR, E820_ENTRIES, SENTINEL, E820_TABLE = 0x070, 0x1E8, 0x1EF, 0x2D0
XLF_KERNEL_64 = 1
LOADED_HIGH, LOADER_UNDEFINED = 1, 0xFF
PROTOCOL_2_12 = 0x020C
INITRD_ADDR_MAX_DEFAULT = 0x7FFFFFFF


@dataclass(frozen=True)
class BzImage:
    data: bytes
    header: bytes                 # from SETUP_HEADER on
    start: int                    # of the protected-mode part in the file

    def field(self, offset: int, size: int) -> int:
        return int.from_bytes(self.data[offset:offset + size], "little")


def is_bzimage(data: bytes) -> bool:
    return len(data) > 0x268 and data[HEADER_MAGIC:HEADER_MAGIC + 4] == b"HdrS" and data[BOOT_FLAG:0x200] == b"\x55\xaa"


def parse_bzimage(data: bytes, path: str) -> BzImage:
    version = int.from_bytes(data[VERSION:VERSION + 2], "little")
    if version < PROTOCOL_2_12 or not data[XLOADFLAGS] & XLF_KERNEL_64:
        raise BootError(path, f"is a Linux kernel without a 64-bit entry (boot protocol {version >> 8}.{version & 255})")
    header_end = 0x202 + data[0x201]
    start = ((data[SETUP_SECTS] or 4) + 1) * 512
    image = BzImage(data, data[SETUP_HEADER:header_end], start)
    if start + image.field(PAYLOAD_OFFSET, 4) + image.field(PAYLOAD_LENGTH, 4) > len(data):
        raise BootError(path, f"is truncated: its kernel ends behind the file's {len(data)} bytes")
    return image


def load_bzimage(space, data: bytes, path: str, boot: Boot) -> StartState:
    image = parse_bzimage(data, path)
    at = image.start + image.field(PAYLOAD_OFFSET, 4)
    payload = data[at:at + image.field(PAYLOAD_LENGTH, 4)]
    if knows(payload):
        try:
            kernel = unpacked(payload, boot.cache)
        except UnpackError as error:
            raise BootError(path, str(error)) from None
        program = elf.parse(kernel, path)
        elf.load(program, kernel, space, path)
        entry, end = program.physical_entry(), program.end
    else:
        entry, end = load_packed(space, image, path)
    end = max(end, image.field(PREF_ADDRESS, 8) + image.field(INIT_SIZE, 4))
    return finish(space, image.header, entry, end, path, boot)


def load_packed(space, image: BzImage, path: str) -> tuple[int, int]:
    """The kernel unpacks itself: entry and end of what it needs."""
    first = image.field(PREF_ADDRESS, 8)
    end = first + max(image.field(INIT_SIZE, 4), len(image.data) - image.start)
    if end > layout.low_ram_end(space.ram_bytes):
        raise BootError(path, f"needs memory up to {end >> 20} MiB, the machine has {space.ram_bytes >> 20} MiB")
    space.write(first, image.data[image.start:])
    return first + 0x200, end


def load_vmlinux(space, data: bytes, path: str, boot: Boot) -> StartState:
    program = elf.parse(data, path)
    if program.machine != elf.EM_X86_64:
        raise BootError(path, "is a 32-bit ELF file without a multiboot header")
    elf.load(program, data, space, path)
    return finish(space, made_header(), program.physical_entry(), program.end, path, boot)


def made_header() -> bytes:
    """The setup header that a bare vmlinux doesn't have."""
    header = bytearray(0x268 - SETUP_HEADER)

    def put(offset: int, value: bytes) -> None:
        header[offset - SETUP_HEADER:offset - SETUP_HEADER + len(value)] = value

    put(BOOT_FLAG, b"\x55\xaa")
    put(HEADER_MAGIC, b"HdrS" + struct.pack("<H", 0x020F))
    put(0x201, bytes([0x268 - 0x202]))
    put(KERNEL_ALIGNMENT, struct.pack("<I", 0x200000))
    put(INITRD_ADDR_MAX, struct.pack("<I", INITRD_ADDR_MAX_DEFAULT))
    put(CMDLINE_SIZE, struct.pack("<I", 2047))
    put(XLOADFLAGS, struct.pack("<H", XLF_KERNEL_64))
    return bytes(header)


@dataclass(frozen=True)
class Boot:
    """What goes with the kernel."""

    command_line: str
    initrd: str | None
    rsdp: int
    cache: Path


def finish(space, header: bytes, entry: int, kernel_end: int, path: str, boot: Boot) -> StartState:
    """Zero page, command line and initrd; then the state at the entry."""
    page = bytearray(4096)
    page[SETUP_HEADER:SETUP_HEADER + len(header)] = header

    def put(offset: int, fmt: str, value: int) -> None:
        struct.pack_into(fmt, page, offset, value)

    maximum = struct.unpack_from("<I", page, CMDLINE_SIZE)[0] or 255
    text = boot.command_line.encode()
    if len(text) > min(maximum, layout.COMMAND_LINE_MAX - 1):
        raise BootError(path, f"takes a command line of {maximum} bytes, this one has {len(text)}")
    space.write(layout.COMMAND_LINE, text + b"\0")
    put(CMD_LINE_PTR, "<I", layout.COMMAND_LINE)
    put(TYPE_OF_LOADER, "<B", LOADER_UNDEFINED)
    page[LOADFLAGS] |= LOADED_HIGH
    put(ACPI_RSDP_ADDR, "<Q", boot.rsdp)
    if boot.initrd:
        limit = struct.unpack_from("<I", page, INITRD_ADDR_MAX)[0] or INITRD_ADDR_MAX_DEFAULT
        where, size = load_initrd(space, boot.initrd, kernel_end, limit)
        put(RAMDISK_IMAGE, "<I", where)
        put(RAMDISK_SIZE, "<I", size)
    entries = layout.memory_map(space.ram_bytes)
    put(E820_ENTRIES, "<B", len(entries))
    for index, item in enumerate(entries):
        struct.pack_into("<QQI", page, E820_TABLE + 20 * index, item.first, item.size, item.kind)
    page[SENTINEL] = 0
    space.write(layout.ZERO_PAGE, bytes(page))
    return long_mode(space, entry, {"rsi": layout.ZERO_PAGE})


def load_initrd(space, path: str, kernel_end: int, addr_max: int) -> tuple[int, int]:
    """As high as it may be, page-aligned, above the kernel."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BootError(path, error.strerror or str(error)) from None
    top = min(layout.low_ram_end(space.ram_bytes), addr_max + 1)
    where = top - len(data) & ~0xFFF
    if where < kernel_end:
        raise BootError(path, f"initrd of {len(data) >> 10} KiB and kernel (to {kernel_end >> 20} MiB) don't fit in "
                              f"{space.ram_bytes >> 20} MiB of memory")
    space.write(where, data)
    return where, len(data)
