"""Multiboot 1 kernels: 32-bit ELF, or any file with an address header. Source: Multiboot Specification 0.6.96.

    header, 4-aligned in the first 8 KiB:  0x1BADB002 | flags | checksum | [flag 16: header, load, load end, bss end, entry]

Owns:    the information structure, its strings, memory map and modules.
Never:   keeps state.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from node_agent.boot import elf, layout
from node_agent.boot.cpu_state import StartState, protected_mode
from node_agent.boot.layout import BootError

HEADER_MAGIC, BOOT_MAGIC = 0x1BADB002, 0x2BADB002
SEARCH = 8192
FLAG_VIDEO, FLAG_ADDRESSES, FLAGS_REQUIRED = 1 << 2, 1 << 16, 0xFFFF
FLAGS_UNDERSTOOD = 0x0007                  # page-aligned modules, memory map; video mode: there is only text
INFO_MEMORY, INFO_CMDLINE, INFO_MODS, INFO_MMAP, INFO_LOADER = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
INFO_SIZE = 88
LOADER_NAME = b"virga\0"


@dataclass(frozen=True)
class Header:
    at: int
    flags: int
    addresses: tuple[int, int, int, int, int] | None      # header, load, load end, bss end, entry


def find_header(data) -> Header | None:
    for at in range(0, min(len(data), SEARCH) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, at)
        if magic == HEADER_MAGIC and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            addresses = None
            if flags & FLAG_ADDRESSES and at + 32 <= len(data):
                addresses = struct.unpack_from("<5I", data, at + 12)
            return Header(at, flags, addresses)
    return None


def load(space, data: bytes, header: Header, path: str, command_line: str, modules: tuple[str, ...]) -> StartState:
    """Everything into memory; the state at the 32-bit entry: EAX the magic, EBX the information."""
    unknown = header.flags & FLAGS_REQUIRED & ~FLAGS_UNDERSTOOD
    if unknown:
        raise BootError(path, f"needs multiboot features that are not there (flags {unknown:#x})")
    if header.addresses:
        entry, end = load_by_addresses(space, data, header, path)
    else:
        program = elf.parse(data, path)
        elf.load(program, data, space, path)
        entry, end = program.physical_entry(), program.end
    if entry >= 1 << 32:
        raise BootError(path, "has an entry above 4 GiB")
    loaded = load_modules(space, modules, max(end, layout.HIGH_MEMORY))
    write_info(space, f"{path} {command_line}".rstrip(), loaded, path)
    return protected_mode(space, entry, {"rax": BOOT_MAGIC, "rbx": layout.MULTIBOOT_INFO})


def load_by_addresses(space, data: bytes, header: Header, path: str) -> tuple[int, int]:
    header_gpa, load_gpa, load_end, bss_end, entry = header.addresses
    first = header.at - (header_gpa - load_gpa)
    size = load_end - load_gpa if load_end else len(data) - first
    end = max(bss_end, load_gpa + size)
    if first < 0 or size < 0 or first + size > len(data):
        raise BootError(path, "is truncated: its multiboot addresses lie outside the file")
    if end > layout.low_ram_end(space.ram_bytes) or load_gpa < layout.HIGH_MEMORY:
        raise BootError(path, f"wants memory from {load_gpa:#x} to {end:#x}, which the machine doesn't have free")
    space.write(load_gpa, data[first:first + size])
    elf.zero(space, load_gpa + size, end - load_gpa - size)
    return entry, end


def load_modules(space, modules: tuple[str, ...], at: int) -> list[tuple[int, int, str]]:
    """Page-aligned, behind the kernel: (first, end, string)."""
    loaded = []
    for text in modules:
        path = text.split(" ", 1)[0]
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise BootError(path, error.strerror or str(error)) from None
        at = at + 0xFFF & ~0xFFF
        if at + len(data) > layout.low_ram_end(space.ram_bytes):
            raise BootError(path, f"doesn't fit in {space.ram_bytes >> 20} MiB of memory")
        space.write(at, data)
        loaded.append((at, at + len(data), text))
        at += len(data)
    return loaded


def write_info(space, command_line: str, modules: list[tuple[int, int, str]], path: str) -> None:
    """Structure, then memory map, module list and strings, all from MULTIBOOT_INFO on."""
    blob = bytearray(INFO_SIZE)

    def append(data: bytes) -> int:
        at = layout.MULTIBOOT_INFO + len(blob)
        blob.extend(data + bytes(-len(data) % 4))
        return at

    entries = layout.memory_map(space.ram_bytes)
    map_at = append(b"".join(struct.pack("<IQQI", 20, item.first, item.size, item.kind) for item in entries))
    strings = [append(text.encode() + b"\0") for _, _, text in modules]
    modules_at = append(b"".join(struct.pack("<IIII", first, end, string, 0)
                                 for (first, end, _), string in zip(modules, strings, strict=True)))
    command_at, loader_at = append(command_line.encode() + b"\0"), append(LOADER_NAME)
    if len(blob) > layout.COMMAND_LINE - layout.MULTIBOOT_INFO:
        raise BootError(path, "command line and modules' strings are longer than 64 KiB")
    upper_kib = (layout.low_ram_end(space.ram_bytes) - layout.HIGH_MEMORY) >> 10
    flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODS | INFO_MMAP | INFO_LOADER
    struct.pack_into("<IIIIIII", blob, 0, flags, layout.EBDA >> 10, upper_kib, 0, command_at, len(modules), modules_at)
    struct.pack_into("<II", blob, 44, 24 * len(entries), map_at)
    struct.pack_into("<I", blob, 64, loader_at)
    space.write(layout.MULTIBOOT_INFO, bytes(blob))
