"""ELF executables: header and loadable segments, 32 and 64 bits. Source: System V ABI, chapter 4 and 5.

Owns:    the checks that keep a damaged file from being loaded in part.
Never:   loads above the guest's memory or writes before everything was checked.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from node_agent.boot.layout import ACPI, HIGH_MEMORY, BootError, low_ram_end

MAGIC = b"\x7fELF"
PT_LOAD = 1
EM_386, EM_X86_64 = 3, 62


@dataclass(frozen=True)
class LoadSegment:
    offset: int
    paddr: int
    vaddr: int
    file_size: int
    memory_size: int


@dataclass(frozen=True)
class Elf:
    machine: int
    entry: int
    segments: tuple[LoadSegment, ...]

    @property
    def first(self) -> int:
        return min(segment.paddr for segment in self.segments)

    @property
    def end(self) -> int:
        return max(segment.paddr + segment.memory_size for segment in self.segments)

    def physical_entry(self) -> int:
        """e_entry, as physical address also where the file gives a virtual one."""
        for segment in self.segments:
            if segment.paddr <= self.entry < segment.paddr + segment.memory_size:
                return self.entry
        for segment in self.segments:
            if segment.vaddr <= self.entry < segment.vaddr + segment.memory_size:
                return self.entry - segment.vaddr + segment.paddr
        return self.entry


def parse(data, path: str) -> Elf:
    """`data`: bytes or a memory map of the whole file."""
    if len(data) < 52 or data[:4] != MAGIC:
        raise BootError(path, "is no ELF file")
    is_64 = data[4] == 2
    if data[5] != 1 or data[4] not in (1, 2) or (is_64 and len(data) < 64):
        raise BootError(path, "is no little-endian ELF file")
    if is_64:
        kind, machine, entry, table, entry_size, count = (
            *struct.unpack_from("<HH", data, 16), *struct.unpack_from("<QQ", data, 24),
            *struct.unpack_from("<HH", data, 54))
    else:
        kind, machine, entry, table, entry_size, count = (
            *struct.unpack_from("<HH", data, 16), *struct.unpack_from("<II", data, 24),
            *struct.unpack_from("<HH", data, 42))
    if kind not in (2, 3) or machine not in (EM_386, EM_X86_64):
        raise BootError(path, "is an ELF file, but no executable for x86")
    if entry_size < (56 if is_64 else 32) or table + entry_size * count > len(data):
        raise BootError(path, "is truncated: its program headers lie behind its end")
    segments = tuple(segment for segment in (read_segment(data, table + entry_size * index, is_64)
                                             for index in range(count)) if segment)
    if not segments:
        raise BootError(path, "has nothing to load")
    for segment in segments:
        if segment.offset + segment.file_size > len(data):
            raise BootError(path, f"is truncated: a segment needs {segment.offset + segment.file_size} bytes, "
                                  f"the file has {len(data)}")
        if segment.file_size > segment.memory_size:
            raise BootError(path, "is damaged: a segment is larger in the file than in memory")
    return Elf(machine, entry, segments)


def read_segment(data, at: int, is_64: bool) -> LoadSegment | None:
    if is_64:
        kind, _, offset, vaddr, paddr, file_size, memory_size = struct.unpack_from("<IIQQQQQ", data, at)
    else:
        kind, offset, vaddr, paddr, file_size, memory_size = struct.unpack_from("<IIIIII", data, at)
    return LoadSegment(offset, paddr, vaddr, file_size, memory_size) if kind == PT_LOAD and memory_size else None


def load(elf: Elf, data, space, path: str) -> None:
    """Copy the segments; what is behind the file's part is zero."""
    limit = low_ram_end(space.ram_bytes)
    for segment in elf.segments:
        end = segment.paddr + segment.memory_size
        if end > limit:
            raise BootError(path, f"needs memory up to {end >> 20} MiB, the machine has {space.ram_bytes >> 20} MiB")
        if segment.paddr < HIGH_MEMORY and end > ACPI:
            raise BootError(path, f"wants the BIOS area ({segment.paddr:#x} to {end:#x})")
    view = memoryview(data)
    for segment in elf.segments:
        space.write(segment.paddr, view[segment.offset:segment.offset + segment.file_size])
        zero(space, segment.paddr + segment.file_size, segment.memory_size - segment.file_size)
    view.release()


def zero(space, gpa: int, size: int) -> None:
    piece = bytes(1 << 20)
    for at in range(0, size, len(piece)):
        space.write(gpa + at, piece[:size - at])
