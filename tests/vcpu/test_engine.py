"""From block to block: what counts as retired, exact quanta, decoding at borders, prefixes, code that changes under the engine."""

import pytest
import vcpu
from guest_machine import CODE, GP, HANDLERS, PF, STACK, UD, End, LongMode, Protected, RealMode, asm

PAGE_END = 0x5000                # the border between two small pages that no test machine uses otherwise
LOOP = "mov ecx, 1000; 1: inc rax; test al, 1; jz 2f; inc rbx; 2: dec ecx; jnz 1b; hlt"


@pytest.fixture
def guest() -> LongMode:
    return LongMode()


def stop_after(guest: LongMode, instructions: int) -> int:
    """Run so many instructions; rip."""
    before = guest.cpu.retired_instructions
    exit_ = guest.cpu.run(guest.vmcs, quantum=instructions)
    assert exit_.reason == vcpu.EXIT_REASON_PREEMPTION_TIMER
    assert guest.cpu.retired_instructions - before == instructions
    return guest.cpu.get("rip")


def test_every_instruction_counts_once(guest: LongMode) -> None:
    guest.run("mov ecx, 10; 1: dec ecx; jnz 1b; cmp ecx, 0; jz 2f; nop; 2: hlt")
    assert guest.cpu.retired_instructions - guest.before == 1 + 20 + 2 + 1


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 65, 1000])
def test_quanta_of_any_size_give_the_same_end(guest: LongMode, step: int) -> None:
    """Stopping and going on, between any two instructions, changes nothing, also inside a fused comparison."""
    whole = LongMode()
    whole.run(LOOP)
    total = whole.cpu.retired_instructions - whole.before
    guest.load(LOOP)
    guest.vmcs[vcpu.GUEST_RIP], guest.vmcs[vcpu.GUEST_RSP] = CODE, STACK
    done = 0
    while total - done > step:
        stop_after(guest, step)
        done += step
    guest.cpu.run(guest.vmcs, quantum=step)
    for name in ("rax", "rbx", "rcx", "rip", "rflags"):
        assert guest.cpu.get(name) == whole.cpu.get(name), name


def test_a_repeated_string_instruction_counts_once(guest: LongMode) -> None:
    guest.run("mov edi, 0x30000; mov ecx, 5000; rep stosb; hlt", rax=0x5A)
    assert guest.cpu.retired_instructions - guest.before == 4
    assert guest.space.read(0x30000, 5001) == b"\x5a" * 5000 + b"\0"


def test_a_faulting_instruction_does_not_count_but_its_event_does(guest: LongMode) -> None:
    end = guest.run("nop; nop; ud2")
    assert end.vector == UD and end.rip == CODE + 2
    assert guest.cpu.retired_instructions - guest.before == 2 + 1 + 1       # two NOPs, the event, the handler's HLT


def test_kick_stops_a_loop(guest: LongMode) -> None:
    guest.load("jmp .")
    guest.vmcs[vcpu.GUEST_RIP] = CODE
    guest.cpu.kick()
    assert guest.cpu.run(guest.vmcs).reason == vcpu.EXIT_REASON_EXTERNAL_INTERRUPT


# ------------------------------------------------------------------ decoding

@pytest.mark.parametrize("split", range(1, 10))
def test_an_instruction_across_two_pages(guest: LongMode, split: int) -> None:
    code = asm("mov rax, 0x1122334455667788; hlt")
    guest.space.write(PAGE_END - split, code)
    guest.run(f"jmp {PAGE_END - split:#x}")
    assert guest.cpu.get("rax") == 0x1122334455667788
    guest.space.write(PAGE_END - split + 2, b"\x99")             # its first byte of data, in either page
    guest.run(f"jmp {PAGE_END - split:#x}", rax=0)
    assert guest.cpu.get("rax") == 0x1122334455667799


def test_a_fetch_from_the_second_page_faults_there(guest: LongMode) -> None:
    guest.space.write(PAGE_END - 2, b"\x48\xb8")
    guest.map(PAGE_END, 0)
    end = guest.run(f"nop; jmp {PAGE_END - 2:#x}")
    assert (end.vector, end.rip, guest.cpu.get("cr2")) == (PF, PAGE_END - 2, PAGE_END)


def test_the_second_page_is_another_one_now(guest: LongMode) -> None:
    """Remapped behind the decoded instruction's back, with a flush of the TLB and no store to the code."""
    code = asm("mov eax, 0x11111111; ret")
    guest.space.write(PAGE_END - 2, code)
    guest.space.write(0x40000, b"\x22\x22\x22\xc3")
    guest.run(f"call {PAGE_END - 2:#x}; mov ebx, eax; mov qword ptr [{0x23000 + (PAGE_END >> 12) * 8:#x}], 0x40007;"
              f"mov rcx, cr3; mov cr3, rcx; call {PAGE_END - 2:#x}; hlt")
    assert (guest.cpu.get("rbx"), guest.cpu.get("rax")) == (0x11111111, 0x22222211)


def run_bytes(guest: LongMode, code: bytes, **registers: int) -> End:
    guest.space.write(CODE, code)
    guest.vmcs[vcpu.GUEST_RIP], guest.vmcs[vcpu.GUEST_RSP] = CODE, STACK
    return guest.run(**registers)


def test_no_instruction_is_longer_than_15_bytes(guest: LongMode) -> None:
    assert run_bytes(guest, b"\x66" * 14 + b"\x90\xf4").vector is None
    end = run_bytes(guest, b"\x66" * 15 + b"\x90\xf4")
    assert (end.vector, end.error, end.rip) == (GP, 0, CODE)


@pytest.mark.parametrize("code", ["f0 90", "f0 01 c0", "f0 8b 03", "f0 39 03", "f0 a4", "f0 0f a3 03", "f0 e9 00 00 00 00"])
def test_lock_where_it_may_not_stand(guest: LongMode, code: str) -> None:
    end = run_bytes(guest, bytes.fromhex(code) + b"\xf4", rbx=0x30000)
    assert (end.vector, end.rip) == (UD, CODE)


@pytest.mark.parametrize(("code", "rax"), [
    ("48 66 05 01 00", 0x1_0000_0000),                           # a REX that is not last does not count: ADD AX, 1
    ("66 48 05 01 00 00 00", 0x1_0001_0000),                     # REX.W wins over 66
    ("2e 3e 26 36 05 01 00 00 00", 0x1_0000),                    # segment overrides without meaning: ADD EAX, 1
])
def test_prefixes(guest: LongMode, code: str, rax: int) -> None:
    run_bytes(guest, bytes.fromhex(code) + b"\xf4", rax=0x1_0000_FFFF)
    assert guest.cpu.get("rax") == rax


def test_pop_to_memory_uses_the_new_stack_pointer() -> None:
    for machine in (LongMode(), Protected()):
        size, register = (8, "rsp") if machine.bits == 64 else (4, "esp")
        machine.run(f"push 0x1234; pop {'qword' if size == 8 else 'dword'} ptr [{register} + 16]; hlt")
        assert machine.read(STACK + 16, size) == 0x1234
        assert machine.cpu.get("rsp") == STACK


@pytest.mark.parametrize("at", [0xF0000000, 0xFFFFFFF8, 0x1000000 - 1])
def test_code_where_no_ram_is(at: int) -> None:
    """An open bus reads as ones: FF FF is #UD. The last address is RAM's last byte."""
    machine = Protected()
    machine.space.write(0xFFFFFF, b"\xff")
    end = machine.run(f"mov eax, {at:#x}; jmp eax")
    assert (end.vector, end.rip) == (UD, at)
    machine.space.write(0xFFFFFF, b"\x90")
    machine.run("mov eax, 0xFFFFFF; jmp eax")
    assert machine.cpu.get("rip") == HANDLERS + 16 * UD + 1


# ------------------------------------------------------------------ code that changes

def test_a_store_into_the_running_block(guest: LongMode) -> None:
    guest.run("mov byte ptr [rip + 1f + 1], 0x42; nop; nop; 1: mov al, 0; hlt", rax=0)
    assert guest.cpu.get("rax") == 0x42


def test_code_written_over_and_over(guest: LongMode) -> None:
    """A loop that patches the constant it adds."""
    guest.run("""mov ecx, 200
        1: mov [rip + 2f + 2], cl
        2: add eax, 1
        dec ecx
        jnz 1b
        hlt""", rax=0)
    values = [n if n < 128 else n - 256 for n in range(1, 201)]
    assert guest.cpu.get("rax") == sum(values) & 0xFFFFFFFF
    assert guest.cpu.code_stats()["dropped"] >= 200


def test_a_device_writes_code(guest: LongMode) -> None:
    guest.run("mov eax, 1; hlt")
    guest.space.write(CODE, asm("mov eax, 2; hlt"))
    guest.vmcs[vcpu.GUEST_RIP] = CODE
    guest.run()
    assert guest.cpu.get("rax") == 2


def test_the_same_bytes_in_two_modes() -> None:
    """48 is a prefix in 64-bit mode and DEC eAX elsewhere: blocks are kept apart by mode."""
    results = []
    for machine in (LongMode(), Protected(), RealMode()):
        machine.space.write(CODE, b"\x48\x01\xd8\xf4")           # add rax, rbx / dec eax; add eax, ebx
        machine.vmcs[vcpu.GUEST_RIP] = CODE
        machine.run(rax=10, rbx=5)
        results.append(machine.cpu.get("rax"))
    assert results == [15, 14, 14]


def test_more_code_than_the_arena_holds(guest: LongMode) -> None:
    """16 MiB of NOPs, each page another block: the cache is emptied and goes on."""
    guest.space.write(0x200000, b"\x90" * 0x9FFFF0 + b"\xf4")
    end = guest.run("mov rax, 0x200000; jmp rax", limit=20_000_000)
    assert end.exit.reason == vcpu.EXIT_REASON_HLT
    assert guest.cpu.get("rip") == 0x200000 + 0x9FFFF0 + 1
    assert guest.cpu.code_stats()["flushed"] >= 1


# ------------------------------------------------------------------ strings

@pytest.mark.parametrize(("distance", "size", "letter"), [(1, 1, "b"), (1, 2, "w"), (3, 4, "d"), (7, 8, "q"), (8, 8, "q"), (1, 8, "q")])
def test_overlapping_moves_repeat_the_pattern(guest: LongMode, distance: int, size: int, letter: str) -> None:
    data = bytearray(range(200)) + bytearray(200)
    guest.space.write(0x30000, bytes(data))
    guest.run(f"mov esi, 0x30000; mov edi, {0x30000 + distance:#x}; mov ecx, 20; rep movs{letter}; hlt")
    for i in range(20):
        at = i * size
        data[at + distance:at + distance + size] = data[at:at + size]
    assert guest.space.read(0x30000, 400) == bytes(data)


@pytest.mark.parametrize("direction", ["cld", "std"])
def test_moves_across_pages(guest: LongMode, direction: str) -> None:
    data = bytes(i * 7 & 0xFF for i in range(9000))
    guest.space.write(0x30123, data)
    last = 8999 if direction == "std" else 0
    guest.run(f"{direction}; mov esi, {0x30123 + last:#x}; mov edi, {0x40456 + last:#x}; mov ecx, 9000; rep movsb; cld; hlt")
    assert guest.space.read(0x40455, 9002) == b"\0" + data + b"\0"
    assert guest.cpu.get("rcx") == 0


def test_a_fault_in_the_middle_of_a_move(guest: LongMode) -> None:
    """Registers say how far it came; after the handler it would go on."""
    guest.map(0x32000, 0)
    end = guest.run("mov esi, 0x40000; mov edi, 0x31F00; mov ecx, 0x1000; 1: rep movsb; hlt")
    assert (end.vector, guest.cpu.get("cr2")) == (PF, 0x32000)
    assert (guest.cpu.get("rcx"), guest.cpu.get("rdi"), guest.cpu.get("rsi")) == (0xF00, 0x32000, 0x40100)
    assert end.rip == CODE + 15


def test_searches_and_comparisons(guest: LongMode) -> None:
    guest.space.write(0x30000, b"a" * 5000 + b"z" + b"a" * 100)
    guest.space.write(0x40000, b"a" * 5100)
    guest.run("mov edi, 0x30000; mov al, 'z'; mov ecx, 6000; repne scasb; mov r8, rdi; mov r9, rcx;"
              "mov esi, 0x30000; mov edi, 0x40000; mov ecx, 6000; repe cmpsb; setb r10b; mov r11, rcx; hlt")
    assert (guest.cpu.get("r8"), guest.cpu.get("r9")) == (0x30000 + 5001, 999)
    assert (guest.cpu.get("r10") & 1, guest.cpu.get("r11")) == (0, 999)


def test_16_bit_strings_wrap_in_their_segment() -> None:
    machine = RealMode()
    machine.space.write(0xFFFE, b"\x01\x02")
    machine.space.write(0x0, b"\x03")
    machine.run("mov si, 0xFFFE; xor di, di; mov di, 0x5000; mov cx, 3; rep movsb; hlt")
    assert machine.space.read(0x5000, 3) == b"\x01\x02\x03"
    assert machine.cpu.get("rsi") == 1


def test_16_bit_jumps_wrap() -> None:
    machine = RealMode()
    machine.space.write(0xFFFE, b"\xeb\x10")                     # jmp +16: from 0 on
    machine.space.write(0x10, b"\xf4")
    machine.vmcs[vcpu.GUEST_RIP] = 0xFFFE
    machine.run()
    assert machine.cpu.get("rip") == 0x11
