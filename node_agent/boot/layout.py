"""Where things are in the guest's physical memory when it starts.

    0x00000000 interrupt vectors of real mode
    0x00000400 BIOS data      0x00000500 GDT        0x00007000 zero page (Linux)      0x00009000 page tables (4 GiB)
    0x00010000 multiboot information, its memory map and strings
    0x00020000 command line (64 KiB)                            0x0009FC00 EBDA (reserved)
    0x000E0000 ACPI tables (reserved)    0x000FFF00 BIOS stubs   0x00100000 memory, to at most 3 GiB
    0xC0000000 PCI window, to 0xFEC00000 I/O APIC, 0xFEE00000 local APICs
    0x1_00000000 the memory above 3 GiB                         0x80_00000000 window of 64-bit BARs (4 GiB)
"""

from __future__ import annotations

from dataclasses import dataclass

BIOS_DATA = 0x400
GDT = 0x500
STACK_TOP = 0x7000
ZERO_PAGE = 0x7000
PAGE_TABLES = 0x9000
MULTIBOOT_INFO = 0x10000
COMMAND_LINE = 0x20000
COMMAND_LINE_MAX = 0x10000
EBDA = 0x9FC00
ACPI = 0xE0000
BIOS_STUBS = 0xFFF00                 # F000:FF00
HIGH_MEMORY = 0x100000
LOW_RAM_END = 0xC0000000             # RAM ends here at the latest and goes on at 4 GiB
PCI_WINDOW = (0xC0000000, 0xFEC00000)
PCI_WINDOW_64 = (0x80_0000_0000, 0x81_0000_0000)
FOUR_GIB = 1 << 32

E820_RAM, E820_RESERVED = 1, 2


@dataclass(frozen=True)
class MapEntry:
    first: int
    size: int
    kind: int


def low_ram_end(memory_bytes: int) -> int:
    return min(memory_bytes, LOW_RAM_END)


def memory_map(memory_bytes: int) -> list[MapEntry]:
    """What a BIOS answers to INT 15h, AX=E820h."""
    entries = [
        MapEntry(0, EBDA, E820_RAM),
        MapEntry(EBDA, 0xA0000 - EBDA, E820_RESERVED),
        MapEntry(ACPI, HIGH_MEMORY - ACPI, E820_RESERVED),
        MapEntry(HIGH_MEMORY, low_ram_end(memory_bytes) - HIGH_MEMORY, E820_RAM),
    ]
    if memory_bytes > LOW_RAM_END:
        entries.append(MapEntry(FOUR_GIB, memory_bytes - LOW_RAM_END, E820_RAM))
    return entries


class BootError(Exception):
    """The file cannot be booted on this machine: which file, and why. Shown to whoever asked."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why
