"""Page walks, rights, A and D, error codes, the TLB's flushes (SDM 3A chapter 4)."""

import pytest
import vcpu
from guest_machine import CODE, PD, PDPT, PF, PML4, PT, UD, LongMode, Protected

PAGE = 0x100000                  # page 256 of the table; nothing lives there
SMEP, SMAP, PCIDE, PGE, PAE, PSE = 1 << 20, 1 << 21, 1 << 17, 1 << 7, 1 << 5, 1 << 4
NX = 1 << 63


@pytest.fixture
def guest() -> LongMode:
    return LongMode()


def cr4(guest: LongMode, bits: int) -> None:
    guest.vmcs[vcpu.GUEST_CR4] = guest.vmcs[vcpu.GUEST_CR4] | bits


READ, WRITE, CALL = f"mov rax, [{PAGE}]; hlt", f"mov qword ptr [{PAGE}], 1; hlt", f"mov eax, {PAGE}; call rax; hlt"


@pytest.mark.parametrize(("entry", "program", "user", "error"), [
    (0, READ, False, 0),
    (0, WRITE, False, 2),
    (0, READ, True, 4),
    (0, WRITE, True, 6),
    (PAGE | 1, WRITE, False, 3),               # CR0.WP
    (PAGE | 5, WRITE, True, 7),
    (PAGE | 3, READ, True, 5),                 # supervisor page
    (PAGE | 1 | 1 << 45, READ, False, 9),      # reserved: beyond MAXPHYADDR
    (PAGE | 3 | NX, CALL, False, 0x11),
    (PAGE | 7 | NX, CALL, True, 0x15),
    (0, CALL, False, 0x10),
])
def test_error_code(guest: LongMode, entry: int, program: str, user: bool, error: int) -> None:
    guest.map(PAGE, entry)
    end = (guest.user if user else guest.run)(program)
    assert (end.vector, end.error, guest.cpu.get("cr2")) == (PF, error, PAGE)


def test_a_fault_leaves_no_trace(guest: LongMode) -> None:
    guest.map(PAGE, 0)
    end = guest.run(f"push 5; pop qword ptr [{PAGE}]; hlt")
    assert end.vector == PF
    assert end.rip == CODE + 2
    assert end.rsp == 0xA000 - 8               # the pop's pointer is as before it


@pytest.mark.parametrize(("bits", "entry", "program", "error"), [
    (SMEP, PAGE | 7, CALL, 0x11),
    (SMAP, PAGE | 7, READ, 1),
    (SMAP, PAGE | 7, WRITE, 3),
])
def test_supervisor_protection(guest: LongMode, bits: int, entry: int, program: str, error: int) -> None:
    for at in range(0, 256):                   # the program's own pages become supervisor pages
        guest.write(PT + at * 8, at << 12 | 3)
    guest.map(PAGE, entry)
    cr4(guest, bits)
    end = guest.run(program)
    assert (end.vector, end.error) == (PF, error)


def test_smap_yields_to_ac(guest: LongMode) -> None:
    for at in range(0, 256):
        guest.write(PT + at * 8, at << 12 | 3)
    guest.map(PAGE, PAGE | 7)
    cr4(guest, SMAP)
    assert guest.run(f"stac; mov rax, [{PAGE}]; clac; hlt").vector is None
    assert guest.run(f"stac; clac; mov rax, [{PAGE}]; hlt").vector == PF


def test_write_protection_is_for_users_without_wp(guest: LongMode) -> None:
    guest.vmcs[vcpu.GUEST_CR0] = 0x80000033
    guest.map(PAGE, PAGE | 5)
    assert guest.run(WRITE).vector is None
    assert guest.user(WRITE).vector == PF


def test_accessed_and_dirty(guest: LongMode) -> None:
    guest.map(PAGE, PAGE | 7)
    guest.run(READ)
    assert guest.read(PT + 256 * 8) == PAGE | 0x27
    assert guest.read(PD) & 0x20
    guest.run(WRITE)
    assert guest.read(PT + 256 * 8) == PAGE | 0x67


def test_dirty_is_set_by_the_first_write_after_a_read(guest: LongMode) -> None:
    guest.map(PAGE, PAGE | 7)
    guest.run(f"mov rax, [{PAGE}]; mov [{PAGE}], rax; hlt")
    assert guest.read(PT + 256 * 8) & 0x40


def test_large_pages(guest: LongMode) -> None:
    guest.write(PD + 8, 0x400000 | 0x87)       # 2 MiB at 2 MiB -> 4 MiB
    guest.write(0x400000 + 0x12345 * 8, 77)
    guest.run(f"mov rax, [{0x200000 + 0x12345 * 8}]; hlt")
    assert guest.cpu.get("rax") == 77
    guest.write(PDPT + 8, 0x87)                # 1 GiB at 1 GiB -> 0
    guest.vmcs[vcpu.GUEST_CR3] = PML4
    guest.run(f"mov rax, [{0x40000000 + 0x400000 + 0x12345 * 8}]; hlt")
    assert guest.cpu.get("rax") == 77


def test_reserved_bits_of_a_large_page(guest: LongMode) -> None:
    guest.write(PD + 8, 0x87 | 1 << 13)
    end = guest.run("mov rax, [0x200000]; hlt")
    assert (end.vector, end.error) == (PF, 9)


def test_an_access_across_pages(guest: LongMode) -> None:
    guest.map(PAGE, 0x101007)
    guest.map(PAGE + 0x1000, 0x100007)
    guest.run(f"mov rax, 0x1122334455667788; mov [{PAGE + 0xFFD}], rax; mov rbx, [{PAGE + 0xFFD}]; hlt")
    assert guest.cpu.get("rbx") == 0x1122334455667788
    assert guest.read(0x101FFD, 3) == 0x667788
    assert guest.read(0x100000, 5) == 0x1122334455


def test_a_write_across_pages_faults_whole(guest: LongMode) -> None:
    guest.map(PAGE, PAGE | 7)
    guest.map(PAGE + 0x1000, 0)
    guest.write(PAGE + 0xFF8, 0)
    end = guest.run(f"mov rax, -1; mov [{PAGE + 0xFFD}], rax; hlt")
    assert (end.vector, end.error, guest.cpu.get("cr2")) == (PF, 2, PAGE + 0x1000)
    assert guest.read(PAGE + 0xFF8) == 0


def test_code_across_pages(guest: LongMode) -> None:
    guest.map(PAGE, PAGE | 7)
    guest.map(PAGE + 0x1000, 0)
    guest.space.write(PAGE + 0xFFE, b"\xb8\x01")          # mov eax, imm32, cut
    end = guest.run(f"mov eax, {PAGE + 0xFFE}; jmp rax")
    assert (end.vector, end.error, end.rip, guest.cpu.get("cr2")) == (PF, 0x10, PAGE + 0xFFE, PAGE + 0x1000)


def test_a_table_entry_beyond_ram_is_reserved(guest: LongMode) -> None:
    guest.write(PD + 8, 0x3FFF000000 | 7)
    end = guest.run("mov rax, [0x200000]; hlt")
    assert (end.vector, end.error) == (PF, 9)


def test_non_canonical(guest: LongMode) -> None:
    assert guest.run("mov rax, 0x800000000000; mov rbx, [rax]; hlt").vector == 13
    assert guest.run("mov rbp, 0x800000000000; mov rbx, [rbp]; hlt").vector == 12


STALE = f"""
    mov rbx, {PT + 256 * 8}
    mov rax, [{PAGE}]
    mov qword ptr [rbx], {0x101000 | 7}
    {{flush}}
    mov rcx, [{PAGE}]
    hlt
"""


@pytest.mark.parametrize("flush", [f"invlpg [{PAGE}]", "mov rax, cr3; mov cr3, rax",
                                   "mov rax, cr4; xor rax, 128; mov cr4, rax"])
def test_flushes(guest: LongMode, flush: str) -> None:
    guest.map(PAGE, PAGE | 7)
    guest.write(PAGE, 1)
    guest.write(0x101000, 2)
    guest.run(STALE.format(flush=flush))
    assert guest.cpu.get("rcx") == 2


def test_global_pages_outlive_cr3(guest: LongMode) -> None:
    guest.map(PAGE, PAGE | 0x107)
    guest.write(PAGE, 1)
    guest.write(0x101000, 2)
    guest.run(STALE.format(flush="mov rax, cr3; mov cr3, rax"))
    assert guest.cpu.get("rcx") == 1


def test_invlpg_drops_all_of_a_large_page(guest: LongMode) -> None:
    guest.write(0x300000, 1)
    guest.write(0x500000, 2)
    guest.run(f"""mov rax, [0x300000]; mov rbx, {PD + 8}; mov qword ptr [rbx], {0x400087}
        invlpg [0x200000]; mov rcx, [0x300000]; hlt""")
    assert guest.cpu.get("rcx") == 2


def test_pcids_keep_their_translations(guest: LongMode) -> None:
    guest.map(PAGE, PAGE | 7)
    guest.write(PAGE, 1)
    guest.write(0x101000, 2)
    cr4(guest, PCIDE)
    program = f"""
        mov rax, {PML4 | 1}; mov cr3, rax
        mov rcx, [{PAGE}]
        mov rax, {PML4 | 2}; mov cr3, rax
        mov qword ptr [{PT + 256 * 8}], {0x101007}
        mov rdx, [{PAGE}]
        mov rax, {PML4 | 1}; {{keep}} mov cr3, rax
        mov rsi, [{PAGE}]
        hlt"""
    guest.run(program.format(keep="bts rax, 63;"))
    assert [guest.cpu.get(r) for r in ("rcx", "rdx", "rsi")] == [1, 2, 1]
    guest.map(PAGE, PAGE | 7)
    guest.run(program.format(keep=""))
    assert [guest.cpu.get(r) for r in ("rcx", "rdx", "rsi")] == [1, 2, 2]


@pytest.mark.parametrize(("kind", "seen"), [(0, 2), (1, 2), (2, 2), (3, 2)])
def test_invpcid(guest: LongMode, kind: int, seen: int) -> None:
    guest.map(PAGE, PAGE | 7)
    guest.write(PAGE, 1)
    guest.write(0x101000, 2)
    guest.write(0x9000, 0, PAGE)
    guest.run(STALE.format(flush=f"mov eax, {kind}; invpcid rax, [0x9000]"))
    assert guest.cpu.get("rcx") == seen


# --- 32-bit paging and PAE

def paged(guest: Protected, cr4_bits: int, cr3: int) -> None:
    guest.vmcs[vcpu.GUEST_CR0] = 0x80010033
    guest.vmcs[vcpu.GUEST_CR4] = cr4_bits
    guest.vmcs[vcpu.GUEST_CR3] = cr3


def narrow_tables(guest: Protected) -> None:
    for i in range(1024):
        guest.space.write(PT + i * 4, (i << 12 | 7).to_bytes(4, "little"))
    guest.space.write(PD, (PT | 7).to_bytes(4, "little"))
    guest.space.write(PD + 4, (0x800000 | 0x87).to_bytes(4, "little"))
    paged(guest, PSE, PD)


def test_32_bit_paging() -> None:
    guest = Protected()
    narrow_tables(guest)
    guest.write(0x812344, 99)
    guest.run("mov eax, [0x412344]; mov dword ptr [0x101000], 5; hlt")
    assert guest.cpu.get("rax") == 99
    assert guest.read(PT + 0x101 * 4, 4) == 0x101067
    guest.space.write(PT + 0x100 * 4, bytes(4))
    guest.vmcs[vcpu.GUEST_CR3] = PD
    end = guest.run(f"mov dword ptr [{PAGE}], 5; hlt")
    assert (end.vector, end.error, guest.cpu.get("cr2")) == (PF, 2, PAGE)


def pae_tables(guest: Protected, top: int = PD | 1) -> None:
    guest.write(PDPT, top, 0, 0, 0)
    guest.write(PD, PT | 7, 0x800087)
    guest.write(PT, *(i << 12 | 7 for i in range(512)))
    paged(guest, PAE, PDPT)


def test_pae() -> None:
    guest = Protected()
    pae_tables(guest)
    guest.write(0x812344, 99)
    assert guest.run("mov eax, [0x212344]; hlt").vector is None
    assert guest.cpu.get("rax") == 99
    end = guest.run("mov eax, [0x40000000]; hlt")
    assert (end.vector, end.error) == (PF, 0)


def test_pae_pointers_have_reserved_bits() -> None:
    guest = Protected()
    pae_tables(guest)
    guest.write(0x9000, PD | 1 | 2, 0, 0, 0)
    assert guest.run("mov eax, 0x9000; mov cr3, eax; hlt").vector == 13


def test_fetch_from_nowhere_is_invalid(guest: LongMode) -> None:
    guest.write(PDPT + 8, 0xC0000087)          # 3 GiB: no RAM there
    assert guest.run("mov eax, 0x40000000; jmp rax").vector == UD


def test_a_locked_access_across_pages(guest: LongMode) -> None:
    guest.map(PAGE, 0x101007)
    guest.map(PAGE + 0x1000, 0x100007)
    guest.run(f"mov ecx, 300; 1: lock inc dword ptr [{PAGE + 0xFFF}]; loop 1b; hlt")
    assert (guest.read(0x101FFF, 1), guest.read(0x100000, 3)) == (300 & 0xFF, 300 >> 8)


def test_user_pages_by_all_levels(guest: LongMode) -> None:
    """U and W count at each level, not at the last alone."""
    guest.write(PDPT + 8, 0x24000 | 7)
    guest.write(0x24000, 0x25000 | 3)          # the directory says supervisor
    guest.write(0x25000, PAGE | 7)
    assert guest.user("mov rax, [0x40000000]").error == 5
    guest.write(0x24000, 0x25000 | 5)          # … or read-only
    guest.vmcs[vcpu.GUEST_CR3] = PML4
    assert guest.user("mov rax, [0x40000000]; ud2").vector == UD
    assert guest.user("mov [0x40000000], rax").error == 7
