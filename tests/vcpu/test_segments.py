"""Loads of segment registers, limits, far transfers, gates (SDM 3A chapter 5)."""

import pytest
from guest_machine import (ABSENT, CODE16, CODE32, CONFORMING, DATA, EXECUTE_ONLY, EXPAND_DOWN, FREE, GDT, GP,
                           KERNEL_CODE, KERNEL_STACK, NP, READ_ONLY, SS, STACK, UD, USER32, USER_DATA, USER_STACK,
                           LongMode, Protected, RealMode)


@pytest.fixture
def guest() -> Protected:
    return Protected()


@pytest.mark.parametrize(("register", "selector", "vector", "error"), [
    ("ds", DATA, None, None),
    ("ds", 0, None, None),
    ("ds", CODE32, None, None),                # readable code
    ("ds", EXECUTE_ONLY, GP, EXECUTE_ONLY),
    ("ds", ABSENT, NP, ABSENT),
    ("ds", 0x200, GP, 0x200),                  # beyond the table
    ("ds", DATA | 4, GP, DATA | 4),            # no LDT
    ("ds", 48, GP, 48),                        # a TSS
    ("ds", USER_DATA, None, None),
    ("es", READ_ONLY, None, None),
    ("ss", READ_ONLY, GP, READ_ONLY),
    ("ss", USER_DATA | 3, GP, USER_DATA),
    ("ss", DATA | 1, GP, DATA),
    ("ss", CODE32, GP, CODE32),
    ("ss", 0, GP, 0),
    ("fs", CONFORMING | 3, None, None),
])
def test_load(guest: Protected, register: str, selector: int, vector: int | None, error: int | None) -> None:
    end = guest.run(f"mov eax, {selector}; mov {register}, eax; hlt")
    assert (end.vector, end.error) == (vector, error)
    if vector is None:
        assert guest.cpu.get(register) == selector


def test_an_absent_stack_is_a_stack_fault(guest: Protected) -> None:
    end = guest.run(f"mov eax, {ABSENT}; mov ss, eax; hlt")
    assert (end.vector, end.error) == (SS, ABSENT)


def test_users_may_not_load_kernel_segments(guest: Protected) -> None:
    end = guest.user(f"mov eax, {DATA}; mov ds, eax")
    assert (end.vector, end.error) == (GP, DATA)
    end = guest.user(f"mov eax, {CONFORMING}; mov ds, eax; ud2")
    assert end.vector == UD


def test_loading_marks_the_descriptor(guest: Protected) -> None:
    guest.descriptor(FREE, 0x00CF92000000FFFF)
    guest.run(f"mov eax, {FREE}; mov es, eax; hlt")
    assert guest.read(GDT + FREE) == 0x00CF93000000FFFF


@pytest.mark.parametrize(("program", "vector"), [
    ("mov eax, [0xffe]", None), ("mov eax, [0xffc]", None), ("mov ax, [0xfff]", GP), ("mov al, [0x1000]", GP),
    ("mov byte ptr [0xfff], 1", None), ("mov eax, [0xffd]", GP),
])
def test_limits(guest: Protected, program: str, vector: int | None) -> None:
    guest.descriptor(FREE, 0x0040920000000FFF | 0x9000 << 16)
    if program == "mov eax, [0xffe]":
        program = "mov ax, [0xffe]"
    end = guest.run(f"mov ecx, {FREE}; mov ds, ecx; {program}; hlt")
    assert end.vector == vector


@pytest.mark.parametrize(("offset", "vector"), [(0xFFF, GP), (0x1000, None), (0xFFFFFFFF, None), (0, GP)])
def test_expand_down(guest: Protected, offset: int, vector: int | None) -> None:
    guest.descriptor(EXPAND_DOWN, 0x0040960000000FFF | 0x8000 << 16)
    end = guest.run(f"mov ecx, {EXPAND_DOWN}; mov ds, ecx; mov ebx, {offset}; mov al, [ebx]; hlt")
    assert end.vector == vector


def test_rights(guest: Protected) -> None:
    for selector, program, vector in ((READ_ONLY, "mov al, [0]", None), (READ_ONLY, "mov [0], al", GP),
                                      (CODE32, "mov al, [0]", None), (CODE32, "mov [0], al", GP), (0, "mov al, [0]", GP)):
        end = guest.run(f"mov ecx, {selector}; mov ds, ecx; {program}; hlt")
        assert end.vector == vector, (selector, program)


def test_the_stack_has_a_limit(guest: Protected) -> None:
    guest.descriptor(FREE, 0x0040920000000FFF | 0x9000 << 16)
    end = guest.run(f"mov ebx, {DATA}; mov ecx, {FREE}; mov ss, ecx; mov esp, 0x1002; push eax; hlt")
    assert end.exit.name == "TRIPLE_FAULT" or end.vector == SS


def test_a_segment_base_is_added(guest: Protected) -> None:
    guest.descriptor(FREE, 0x0040920000000FFF | 0x9000 << 16)
    guest.write(0x9010, 0x55)
    guest.run(f"mov ecx, {FREE}; mov gs, ecx; mov eax, gs:[0x10]; hlt")
    assert guest.cpu.get("rax") == 0x55


def test_far_jump_between_sizes(guest: Protected) -> None:
    guest.load("mov ax, 0x1234; .byte 0x66, 0xea; .long 0xd000; .word 64", 0xC000, bits=16)
    guest.load("mov ebx, 0x12345678; hlt", 0xD000)
    end = guest.run(f"xor eax, eax; .byte 0xea; .long 0xc000; .word {CODE16}")
    assert end.vector is None
    assert (guest.cpu.get("rax"), guest.cpu.get("rbx")) == (0x1234, 0x12345678)


@pytest.mark.parametrize(("selector", "error"), [(0, 0), (DATA, DATA), (USER32, USER32), (0x1000, 0x1000),
                                                 (CODE32 | 3, CODE32)])
def test_far_jump_checks(guest: Protected, selector: int, error: int) -> None:
    end = guest.run(f".byte 0xea; .long 0xd000; .word {selector}")
    assert (end.vector, end.error) == (GP, error)


def test_far_call_and_return(guest: Protected) -> None:
    guest.load("mov eax, 7; retf 8", 0xD000)
    end = guest.run(f"push 1; push 2; .byte 0x9a; .long 0xd000; .word {CODE32}; hlt")
    assert end.vector is None
    assert (guest.cpu.get("rax"), guest.cpu.get("rsp")) == (7, STACK)


def test_call_gate_to_the_kernel_and_back(guest: Protected) -> None:
    guest.descriptor(FREE, 0xD000 | CODE32 << 16 | 2 << 32 | 0xEC << 40)        # DPL 3, two parameters
    guest.load("mov eax, [esp + 8]; mov ebx, [esp + 12]; mov ecx, esp; mov edx, cs; retf 8", 0xD000)
    end = guest.user(f"push 11; push 22; .byte 0x9a; .long 0; .word {FREE | 3}; mov esi, esp; ud2")
    assert end.vector == UD
    assert [guest.cpu.get(r) for r in ("rax", "rbx", "rdx", "rsi")] == [22, 11, CODE32, USER_STACK]
    assert guest.cpu.get("rcx") == KERNEL_STACK - 24


def test_a_gate_of_the_kernel_is_closed(guest: Protected) -> None:
    guest.descriptor(FREE, 0xD000 | CODE32 << 16 | 0x8C << 40)
    end = guest.user(f".byte 0x9a; .long 0; .word {FREE}")
    assert (end.vector, end.error) == (GP, FREE)


def test_return_to_less_privilege_drops_segments(guest: Protected) -> None:
    end = guest.user(f"mov eax, {USER_DATA | 3}; mov es, eax; ud2")
    assert end.vector == UD
    assert guest.cpu.get("ds") == 0                    # it was the kernel's
    assert guest.cpu.get("es") == USER_DATA | 3


def test_conforming_code_keeps_the_privilege(guest: Protected) -> None:
    guest.load("mov eax, cs; ud2", 0xD000)
    end = guest.user(f".byte 0xea; .long 0xd000; .word {CONFORMING}")
    assert (end.vector, guest.cpu.get("rax")) == (UD, CONFORMING | 3)


def test_the_tss_may_be_too_small(guest: Protected) -> None:
    guest.segment("TR", 48, 0x8B, 7, 0x7000)
    end = guest.user("ud2")
    assert end.exit.name == "TRIPLE_FAULT"             # #TS for #UD, #TS for #TS, #DF


def test_lar_lsl_verr_verw(guest: Protected) -> None:
    guest.run(f"""mov ecx, {CODE32}; lar eax, ecx; setz dl; lsl ebx, ecx; setz dh
        mov ecx, {READ_ONLY}; verw cx; setz ch; verr cx; setz cl; hlt""")
    assert guest.cpu.get("rax") == 0x00CF9B00 & 0x00F0FF00
    assert guest.cpu.get("rbx") == 0xFFFFFFFF
    assert guest.cpu.get("rdx") & 0xFFFF == 0x0101
    guest.run(f"mov ecx, {FREE}; lar eax, ecx; setz dl; hlt", rdx=0xFF)
    assert guest.cpu.get("rdx") & 0xFF == 0


def test_arpl(guest: Protected) -> None:
    guest.run("mov eax, 0x10; mov ecx, 3; arpl ax, cx; setz dl; hlt", rdx=0)
    assert (guest.cpu.get("rax"), guest.cpu.get("rdx")) == (0x13, 1)


def test_tables_are_stored_and_loaded(guest: Protected) -> None:
    guest.run("sgdt [0x9000]; sidt [0x9008]; sldt [0x9010]; str [0x9012]; smsw [0x9014]; hlt")
    assert guest.read(0x9000, 6) == GDT << 16 | 255
    assert guest.read(0x9008, 6) == 0x8000 << 16 | 0x7FF
    assert guest.read(0x9012, 4) == (guest.cpu.get("cr0") & 0xFFFF) << 16 | 48


def test_ldt(guest: Protected) -> None:
    guest.descriptor(FREE, 0x0000820000000017 | 0x9000 << 16)
    guest.write(0x9000, 0, 0x00CF92000000FFFF)
    guest.run(f"mov ecx, {FREE}; lldt cx; mov ecx, 12; mov ds, ecx; hlt")
    assert guest.cpu.get("ds") == 12
    end = guest.run("mov ecx, 28; mov ds, ecx; hlt")
    assert (end.vector, end.error) == (GP, 28)


def test_ltr(guest: Protected) -> None:
    guest.descriptor(FREE, 0x0000890000000067 | 0x7800 << 16)
    guest.run(f"mov ecx, {FREE}; ltr cx; hlt")
    assert guest.read(GDT + FREE) >> 40 & 0xF == 11
    end = guest.run(f"mov ecx, {FREE}; ltr cx; hlt")
    assert (end.vector, end.error) == (GP, FREE)       # busy


def test_umip(guest: Protected) -> None:
    assert guest.user("sgdt ss:[0x9000]; ud2").vector == UD
    guest.vmcs[0x6804] = 0xE00
    for program in ("sgdt ss:[0x9000]", "sidt ss:[0x9000]", "sldt ax", "str ax", "smsw ax"):
        assert guest.user(program).vector == GP, program


def test_io_bitmap(guest: Protected) -> None:
    assert guest.user("in al, 0x71").vector == GP
    assert guest.user("in al, 0x71; ud2", flags=0x3002).vector == UD
    guest.segment("TR", 48, 0x8B, 0x67 + 33, 0x7000)
    guest.space.write(0x7066, (0x68).to_bytes(2, "little"))
    guest.space.write(0x7068, b"\xff" * 14 + b"\xfd" + b"\xff" * 18)
    assert guest.user("in al, 0x71; ud2").vector == UD
    assert guest.user("in ax, 0x71").vector == GP
    assert guest.user("in al, 0x72").vector == GP


# --- long mode and real mode

def test_long_mode_ignores_limits_and_bases() -> None:
    guest = LongMode()
    guest.segment("DS", DATA, 0xC093, 0, 0x1000)
    guest.write(0x9000, 5)
    guest.run("mov rax, [0x9000]; hlt")
    assert guest.cpu.get("rax") == 5


def test_fs_and_gs_bases() -> None:
    guest = LongMode()
    guest.vmcs[0x6804] = 0x6A0 | 1 << 16
    guest.write(0x9010, 5, 6)
    guest.run("""mov rax, 0x9000; wrfsbase rax; mov rax, 0x9008; wrgsbase rax; rdgsbase rdx
        mov rbx, fs:[0x10]; mov ecx, 8; mov rcx, gs:[rcx + 8]; hlt""")
    assert [guest.cpu.get(r) for r in ("rbx", "rcx", "rdx")] == [5, 6, 0x9008]


def test_swapgs() -> None:
    guest = LongMode()
    guest.run("""mov ecx, 0xC0000102; mov eax, 0x1234; xor edx, edx; wrmsr; swapgs
        mov ecx, 0xC0000101; rdmsr; mov rbx, rax; mov ecx, 0xC0000102; rdmsr; hlt""")
    assert (guest.cpu.get("rbx"), guest.cpu.get("rax")) == (0x1234, 0)


def test_compatibility_mode() -> None:
    guest = LongMode()
    end = guest.user("mov eax, 0xffffffff; inc eax; mov ecx, esp; ud2", code=USER32, bits=32)
    assert (end.vector, end.cs) == (UD, USER32 | 3)
    assert (guest.cpu.get("rax"), guest.cpu.get("rcx")) == (0, USER_STACK)


def test_64_bit_call_gate() -> None:
    guest = LongMode()
    guest.write(GDT + FREE, 0xD000 | KERNEL_CODE << 16 | 0xEC << 40, 0)
    guest.load("mov rax, [rsp + 16]; mov ebx, cs; retfq", 0xD000)
    guest.space.write(0x9000, (0).to_bytes(4, "little") + FREE.to_bytes(2, "little"))
    end = guest.user("call fword ptr [0x9000]; ud2")
    assert end.vector == UD
    assert (guest.cpu.get("rax"), guest.cpu.get("rbx")) == (USER_STACK, KERNEL_CODE)


def test_null_stack_in_64_bit_kernel() -> None:
    guest = LongMode()
    assert guest.run("xor eax, eax; mov ss, eax; push rax; pop rax; hlt").vector is None
    end = guest.user("xor eax, eax; mov ss, eax")
    assert (end.vector, end.error) == (GP, 0)


def test_real_mode_segments() -> None:
    guest = RealMode()
    guest.space.write(0x12345, b"\x99")
    guest.run("mov ax, 0x1234; mov ds, ax; mov bl, [5]; mov ax, 0xffff; mov es, ax; mov al, es:[0x10]; hlt")
    assert guest.cpu.get("rbx") & 0xFF == 0x99
    assert guest.cpu.get("ds.base") == 0x12340


def test_real_mode_limit() -> None:
    guest = RealMode()
    guest.run("mov bx, 0xffff; mov ax, [bx]; hlt")
    assert guest.cpu.get("rip") == 16 * GP + 1


def test_big_real_mode() -> None:
    guest = RealMode()
    guest.write(GDT + FREE, 0x00CF92000000FFFF)
    guest.space.write(0x9000, (255).to_bytes(2, "little") + GDT.to_bytes(4, "little"))
    guest.write(0x200000, 0x77)
    guest.run(f"""lgdt [0x9000]; mov eax, cr0; or al, 1; mov cr0, eax; mov cx, {FREE}; mov ds, cx
        and al, 0xfe; mov cr0, eax; xor cx, cx; mov ds, cx; mov ebx, 0x200000; mov dl, [ebx]; hlt""", rdx=0)
    assert guest.cpu.get("rdx") == 0x77
