"""The processor's state at the first instruction, as a set of VMCS guest fields and general registers.

Owns:    the flat GDT and the identity page tables that go with it.
Never:   runs anything.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from node_agent.boot import layout

CR0_PE, CR0_NE, CR0_ET, CR0_PG = 1 << 0, 1 << 5, 1 << 4, 1 << 31
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
PTE_PRESENT, PTE_WRITE, PTE_LARGE = 1, 2, 128
# VMCS access rights (SDM 3C 25.4.1): type | S | DPL | P | AVL | L | D/B | G
RIGHTS_CODE64, RIGHTS_CODE32, RIGHTS_DATA, RIGHTS_TSS, RIGHTS_UNUSABLE = 0xA09B, 0xC09B, 0xC093, 0x008B, 0x10000
GDT_CODE64, GDT_CODE32, GDT_DATA = 0x00AF9B000000FFFF, 0x00CF9B000000FFFF, 0x00CF93000000FFFF
SELECTOR_CODE, SELECTOR_DATA = 0x10, 0x18


@dataclass(frozen=True)
class StartState:
    """`fields` by the manual's names (GUEST_RIP …), `registers` by theirs (rsi …)."""

    fields: dict[str, int] = field(default_factory=dict)
    registers: dict[str, int] = field(default_factory=dict)


def flat_segments(code_rights: int) -> dict[str, int]:
    fields = {"GUEST_CS_SELECTOR": SELECTOR_CODE, "GUEST_CS_BASE": 0, "GUEST_CS_LIMIT": 0xFFFFFFFF,
              "GUEST_CS_ACCESS_RIGHTS": code_rights}
    for name in ("DS", "ES", "SS", "FS", "GS"):
        fields |= {f"GUEST_{name}_SELECTOR": SELECTOR_DATA, f"GUEST_{name}_BASE": 0,
                   f"GUEST_{name}_LIMIT": 0xFFFFFFFF, f"GUEST_{name}_ACCESS_RIGHTS": RIGHTS_DATA}
    fields |= {"GUEST_TR_SELECTOR": 0, "GUEST_TR_BASE": 0, "GUEST_TR_LIMIT": 0xFFFF,
               "GUEST_TR_ACCESS_RIGHTS": RIGHTS_TSS, "GUEST_LDTR_SELECTOR": 0, "GUEST_LDTR_BASE": 0,
               "GUEST_LDTR_LIMIT": 0, "GUEST_LDTR_ACCESS_RIGHTS": RIGHTS_UNUSABLE,
               "GUEST_GDTR_BASE": layout.GDT, "GUEST_GDTR_LIMIT": 31, "GUEST_IDTR_BASE": 0, "GUEST_IDTR_LIMIT": 0,
               "GUEST_RFLAGS": 2, "GUEST_RSP": layout.STACK_TOP}
    return fields


def write_gdt(space, code: int) -> None:
    space.write(layout.GDT, struct.pack("<4Q", 0, 0, code, GDT_DATA))


def write_identity_tables(space) -> int:
    """Four GiB mapped one to one by 2 MiB pages; the value for CR3."""
    pml4 = layout.PAGE_TABLES
    pdpt, directories = pml4 + 0x1000, pml4 + 0x2000
    space.write(pml4, struct.pack("<Q", pdpt | PTE_PRESENT | PTE_WRITE).ljust(4096, b"\0"))
    space.write(pdpt, struct.pack("<4Q", *(directories + 0x1000 * i | PTE_PRESENT | PTE_WRITE for i in range(4)))
                .ljust(4096, b"\0"))
    space.write(directories, struct.pack("<2048Q", *(i << 21 | PTE_PRESENT | PTE_WRITE | PTE_LARGE
                                                     for i in range(2048))))
    return pml4


def long_mode(space, entry: int, registers: dict[str, int]) -> StartState:
    """64-bit mode with paging, as the 64-bit Linux boot protocol wants it (Documentation/x86/boot.rst)."""
    write_gdt(space, GDT_CODE64)
    fields = flat_segments(RIGHTS_CODE64)
    fields |= {"GUEST_CR0": CR0_PE | CR0_ET | CR0_NE | CR0_PG, "GUEST_CR3": write_identity_tables(space),
               "GUEST_CR4": CR4_PAE, "GUEST_IA32_EFER": EFER_LME | EFER_LMA, "GUEST_RIP": entry}
    return StartState(fields, registers)


def protected_mode(space, entry: int, registers: dict[str, int]) -> StartState:
    """32-bit protected mode without paging, as multiboot wants it (specification 0.6.96 §3.2)."""
    write_gdt(space, GDT_CODE32)
    fields = flat_segments(RIGHTS_CODE32)
    fields |= {"GUEST_CR0": CR0_PE | CR0_ET, "GUEST_CR3": 0, "GUEST_CR4": 0, "GUEST_IA32_EFER": 0, "GUEST_RIP": entry}
    return StartState(fields, registers)
