"""Events through the IDT: frames, privilege, priorities, double and triple faults, debug (SDM 3A chapter 6, 3B 18)."""

import pytest
import vcpu
from guest_machine import (AC, BP, CODE, CODE32, DATA, DB, DE, DESCRIPTORS, DF, FREE, GP, HANDLERS, IDT, IST1, KERNEL_CODE, KERNEL_STACK,
                           NM, NP, OF, PF, SS, STACK, UD, USER64, USER_CODE, USER_DATA, USER_STACK, LongMode, Protected,
                           RealMode)


@pytest.fixture
def guest() -> LongMode:
    return LongMode()


@pytest.mark.parametrize(("program", "vector", "offset"), [
    ("ud2", UD, 0),
    ("int3", BP, 1),
    ("int 0x80", 0x80, 2),
    (".byte 0xf1", DB, 1),
    ("xor eax, eax; div eax", DE, 2),
    ("mov eax, 0x12345; mov ecx, 0x7777; rdmsr", GP, 10),
    ("mov rax, 8; mov cr0, rax", GP, 7),
    ("mov rax, 1; mov cr8, rax; mov rax, 16; mov cr8, rax", GP, 18),
    (".byte 0xf0, 0x90", UD, 0),                    # LOCK NOP
    (".byte 0x06", UD, 0),                          # PUSH ES in 64-bit mode
    ("nop;" + ".byte " + ",".join(["0x66"] * 15) + ",0x90", GP, 1),      # more than 15 bytes
])
def test_vector_and_return_address(guest: LongMode, program: str, vector: int, offset: int) -> None:
    end = guest.run(program)
    assert (end.vector, end.rip) == (vector, CODE + offset)


def test_frame_from_user_mode(guest: LongMode) -> None:
    end = guest.user("stc; ud2")
    assert (end.vector, end.rip, end.cs & 3) == (UD, USER_CODE + 1, 3)
    assert (end.rsp, end.ss) == (USER_STACK, USER_DATA | 3)
    assert end.flags & 0x10001 == 0x10001           # CF, and RF because it is a fault
    assert guest.cpu.get("rsp") == KERNEL_STACK - 40
    assert guest.cpu.get("ss") == 0


def test_interrupt_gates_clear_if_and_trap_gates_do_not(guest: LongMode) -> None:
    guest.gate(0x80, HANDLERS + 16 * 0x80, kind=0xE)
    guest.gate(0x81, HANDLERS + 16 * 0x81, kind=0xF)
    guest.run("sti; nop; int 0x80")
    assert not guest.cpu.get("rflags") & 0x200
    guest.run("sti; nop; int 0x81")
    assert guest.cpu.get("rflags") & 0x200


def test_ist(guest: LongMode) -> None:
    guest.gate(UD, HANDLERS + 16 * UD, ist=1)
    end = guest.run("ud2")
    assert (end.vector, guest.cpu.get("rsp"), end.rsp) == (UD, IST1 - 40, STACK)


def test_the_stack_is_aligned(guest: LongMode) -> None:
    end = guest.run("push 1; ud2")
    assert guest.cpu.get("rsp") == STACK - 16 - 40
    assert end.rsp == STACK - 8


@pytest.mark.parametrize(("change", "program", "vector", "error"), [
    ({"dpl": 0}, "int 0x80", GP, 0x80 * 8 + 2),
    ({"dpl": 3}, "int 0x80", 0x80, None),
    ({"dpl": 3, "cs": 0}, "int 0x80", GP, 0),
    ({"dpl": 3, "cs": DATA}, "int 0x80", GP, DATA),
    ({"dpl": 3, "cs": CODE32}, "int 0x80", GP, CODE32),
    ({"dpl": 3, "kind": 0xC}, "int 0x80", GP, 0x80 * 8 + 2),
    ({"dpl": 3, "target": 1 << 47}, "int 0x80", GP, 0),
])
def test_gates_are_checked(guest: LongMode, change: dict[str, int], program: str, vector: int,
                           error: int | None) -> None:
    guest.gate(0x80, change.pop("target", HANDLERS + 16 * 0x80), **change)
    end = guest.user(program)
    assert (end.vector, end.error) == (vector, error)
    assert end.rip == USER_CODE + (2 if vector == 0x80 else 0)


def test_a_gate_that_is_not_present(guest: LongMode) -> None:
    guest.write(IDT + 16 * 0x80, guest.read(IDT + 16 * 0x80) & ~(0x80 << 40))
    end = guest.run("int 0x80")
    assert (end.vector, end.error) == (NP, 0x80 * 8 + 2)


def test_beyond_the_idt(guest: LongMode) -> None:
    guest.vmcs[vcpu.GUEST_IDTR_LIMIT] = 16 * 32 - 1
    end = guest.run("int 0x80")
    assert (end.vector, end.error) == (GP, 0x80 * 8 + 2)


def test_double_fault(guest: LongMode) -> None:
    guest.write(IDT + 16 * PF, 0)
    end = guest.run("mov rax, [0x40000000]")
    assert (end.vector, end.error, end.rip) == (DF, 0, CODE)
    assert guest.cpu.get("cr2") == 0x40000000


def test_a_benign_fault_is_replaced(guest: LongMode) -> None:
    guest.write(IDT + 16 * UD, 0)
    end = guest.run("ud2")
    assert (end.vector, end.error) == (GP, UD * 8 + 3)


def test_triple_fault(guest: LongMode) -> None:
    guest.vmcs[vcpu.GUEST_IDTR_LIMIT] = 0
    end = guest.run("ud2")
    assert end.exit.reason == vcpu.EXIT_REASON_TRIPLE_FAULT
    assert end.rip == CODE


def test_a_stack_that_is_not_there(guest: LongMode) -> None:
    end = guest.run("mov rsp, 0x40000000; push rax")
    assert end.exit.reason == vcpu.EXIT_REASON_TRIPLE_FAULT      # #PF cannot be pushed, nor #DF
    guest.gate(DF, HANDLERS + 16 * DF, ist=1)
    end = guest.run("mov rsp, 0x40000000; push rax")
    assert (end.vector, guest.cpu.get("cr2")) == (DF, 0x40000000 - 48)


def test_non_canonical_stack(guest: LongMode) -> None:
    guest.gate(SS, HANDLERS + 16 * SS, ist=1)
    end = guest.run("mov rsp, 0x800000000008; push rax")
    assert (end.vector, end.error) == (SS, 0)


def test_iret_returns_to_the_user(guest: LongMode) -> None:
    guest.gate(0x80, 0xD000, dpl=3)
    guest.load("inc r8; iretq", 0xD000)
    end = guest.user("int 0x80; int 0x80; ud2", r8=0)
    assert (end.vector, guest.cpu.get("r8"), end.rip) == (UD, 2, USER_CODE + 4)


def test_iret_to_a_bad_selector_faults_before_it_changes_anything(guest: LongMode) -> None:
    guest.write(STACK, USER_CODE, DATA | 3, 2, USER_STACK, USER_DATA | 3)
    end = guest.run("iretq")
    assert (end.vector, end.error, end.rip, end.cs, end.rsp) == (GP, DATA, CODE, KERNEL_CODE, STACK)


@pytest.mark.parametrize(("frame", "vector", "error"), [
    ((1 << 47, 43, 2, USER_STACK, 35), GP, 0),
    ((USER_CODE, 43, 2, USER_STACK, 43), GP, 40),
    ((USER_CODE, 43, 2, USER_STACK, 0), GP, 0),
    ((USER_CODE, 0, 2, USER_STACK, 35), GP, 0),
    ((USER_CODE, 0x1003, 2, USER_STACK, 35), GP, 0x1000),
])
def test_iret_checks(guest: LongMode, frame: tuple[int, ...], vector: int, error: int) -> None:
    guest.write(STACK, *frame)
    end = guest.run("iretq")
    assert (end.vector, end.error) == (vector, error)


def test_user_flags_are_guarded(guest: LongMode) -> None:
    end = guest.user("push 0x3302; popfq; pushfq; pop rax; ud2", flags=2)
    assert guest.cpu.get("rax") & 0x3200 == 0       # neither IF nor IOPL
    assert guest.cpu.get("rax") & 0x100 == 0 or end.vector == DB


def test_user_may_not(guest: LongMode) -> None:
    for program in ("hlt", "cli", "sti", "mov rax, cr0", "mov cr3, rax", "invlpg [rax]", "wrmsr", "rdmsr", "lgdt [rsp]",
                    "lldt ax", "ltr ax", "clts", "swapgs", "mov rax, dr7", "wbinvd", "in al, 0x80", "out 0x80, al",
                    "sysretq", "lmsw ax"):
        end = guest.user(program, rax=0)
        assert (end.vector, end.error, end.rip) == (GP, 0, USER_CODE), program
    assert guest.user("clac").vector == UD


def test_single_step(guest: LongMode) -> None:
    end = guest.run("pushfq; or qword ptr [rsp], 0x100; popfq; nop; nop; hlt")
    assert (end.vector, end.rip) == (DB, CODE + 11)     # behind the instruction that follows POPF
    assert guest.cpu.get("dr6") & 0x4000
    assert end.flags & 0x100
    assert not guest.cpu.get("rflags") & 0x100


def test_single_step_of_a_user_program(guest: LongMode) -> None:
    guest.gate(DB, 0xD000)
    guest.load("inc r8; iretq", 0xD000)
    end = guest.user("nop; mov eax, 1; add eax, 2; nop; ud2", flags=0x102, r8=0)
    assert (end.vector, guest.cpu.get("r8")) == (UD, 4)


def test_instruction_breakpoint(guest: LongMode) -> None:
    program = "nop; nop; inc rax; hlt"
    end = guest.run(f"mov rbx, {CODE + 20}; mov dr0, rbx; mov ebx, 0x401; mov dr7, rbx; nop; {program}", rax=0)
    assert (end.vector, end.rip) == (DB, CODE + 20)
    assert guest.cpu.get("dr6") & 0xF == 1
    assert end.flags & 0x10000


def test_data_breakpoint(guest: LongMode) -> None:
    end = guest.run("""mov rbx, 0x9004; mov dr1, rbx; mov ebx, 0xD00404; mov dr7, rbx
        mov rax, [0x9000]; mov word ptr [0x9002], 1; mov byte ptr [0x9007], 1; nop; hlt""")
    assert end.vector == DB
    assert guest.cpu.get("dr6") & 0xF == 2
    assert guest.read(0x9000) == 0x0100000000010000


def test_general_detect(guest: LongMode) -> None:
    end = guest.run("mov eax, 0x2400; mov dr7, rax; mov rbx, dr0; hlt")
    assert (end.vector, guest.cpu.get("dr6") & 0x2000) == (DB, 0x2000)
    assert not guest.cpu.get("dr7") & 0x2000


def test_alignment_check(guest: LongMode) -> None:
    guest.vmcs[vcpu.GUEST_CR0] = 0x80050033
    end = guest.user("mov eax, [0x9001]; hlt", flags=0x40002)
    assert (end.vector, end.error) == (AC, 0)
    assert guest.user("mov eax, [0x9004]; ud2", flags=0x40002).vector == UD
    assert guest.user("mov eax, [0x9001]; ud2", flags=2).vector == UD


def test_device_not_available(guest: LongMode) -> None:
    guest.vmcs[vcpu.GUEST_CR0] = 0x8001003B             # TS
    assert guest.run("fnop").vector == NM
    assert guest.run("addps xmm0, xmm1").vector == NM
    assert guest.run("clts; addps xmm0, xmm1; hlt").vector is None


def test_syscall_and_sysret(guest: LongMode) -> None:
    """SYSCALL loads CS and SS from STAR[47:32], SYSRET from STAR[63:48]: data at + 8, 64-bit code at + 16."""
    guest.descriptor(FREE + 8, DESCRIPTORS[USER_DATA])
    guest.descriptor(FREE + 16, DESCRIPTORS[USER64])
    guest.load("mov r12, r11; mov r13, rcx; mov r14, cs; sysretq", 0xD000)
    guest.load("stc; syscall; mov rbx, rcx; ud2", USER_CODE)
    guest.write(STACK, USER_CODE, FREE + 16 | 3, 0x202, USER_STACK, FREE + 8 | 3)
    end = guest.run(f"""mov ecx, 0xC0000081; mov edx, {FREE << 16 | KERNEL_CODE}; xor eax, eax; wrmsr
        mov ecx, 0xC0000082; xor edx, edx; mov eax, 0xD000; wrmsr
        mov ecx, 0xC0000084; mov eax, 0x200; wrmsr; iretq""")
    assert (end.vector, end.rip) == (UD, USER_CODE + 6)
    assert (guest.cpu.get("r12"), guest.cpu.get("r14")) == (0x203, KERNEL_CODE)
    assert guest.cpu.get("r13") == guest.cpu.get("rbx") == USER_CODE + 3
    assert (end.cs, end.ss, end.flags & 0x200) == (FREE + 16 | 3, FREE + 8 | 3, 0x200)


def test_sti_shadow(guest: LongMode) -> None:
    """An interrupt that waits comes behind the instruction that follows STI."""
    guest.vmcs[vcpu.CPU_BASED_VM_EXEC_CONTROL] = vcpu.INTERRUPT_WINDOW_EXITING
    end = guest.run("sti; nop; nop; hlt")
    assert end.exit.reason == vcpu.EXIT_REASON_INTERRUPT_WINDOW
    assert end.rip == CODE + 2


# --- protected and real mode

def test_protected_frames() -> None:
    guest = Protected()
    end = guest.user("stc; int3")
    assert end.vector == GP                             # DPL 0
    guest.gate(BP, HANDLERS + 16 * BP, dpl=3)
    end = guest.user("stc; int3")
    assert (end.vector, end.rip, end.rsp, end.ss) == (BP, USER_CODE + 2, USER_STACK, USER_DATA | 3)
    assert guest.cpu.get("rsp") == KERNEL_STACK - 20


def test_16_bit_gates() -> None:
    guest = Protected()
    guest.gate(BP, 0xD000, kind=6)
    guest.load("mov ax, [esp]; mov bx, [esp + 2]; hlt", 0xD000)
    guest.run("int3")
    assert (guest.cpu.get("rax") & 0xFFFF, guest.cpu.get("rbx") & 0xFFFF) == (CODE + 1, CODE32)
    assert guest.cpu.get("rsp") == STACK - 6


def test_virtual_8086_mode() -> None:
    guest = Protected()
    guest.load("mov ax, ds; mov bx, [0x10]; int 0x21", 0x20000, bits=16)
    guest.space.write(0x30010, b"\x34\x12")
    frame = (0, 0x2000, 0x23002, 0xFFE, 0x4000, 0x3000, 0x3000, 0, 0)      # IOPL 3
    guest.space.write(STACK, b"".join(v.to_bytes(4, "little") for v in frame))
    end = guest.run("iretd")
    assert (end.vector, end.error) == (GP, 0x21 * 8 + 2)
    assert guest.cpu.get("rbx") & 0xFFFF == 0x1234
    assert guest.cpu.get("rax") & 0xFFFF == 0x3000
    assert guest.cpu.get("ds") == 0                     # zeroed on the way into the monitor
    assert (end.cs, end.flags & 0x20000) == (0x2000, 0x20000)


def test_task_gate_and_back() -> None:
    guest = Protected()
    task = 0x7800
    guest.descriptor(128, task << 16 | 0x67 | 0x89 << 40)
    image = [0] * 26
    image[7], image[8], image[9], image[14] = 0, 0xD000, 2, 0x1D000
    image[18:24] = [DATA, CODE32, DATA, DATA, DATA, DATA]
    guest.space.write(task, b"".join(v.to_bytes(4, "little") for v in image))
    guest.write(IDT + 8 * 0x80, 128 << 16 | 0x85 << 40)
    guest.load("mov edi, 77; iretd; mov esi, 88; iretd", 0xD000)
    end = guest.run("mov edi, 1; int 0x80; mov ecx, edi; int 0x80; hlt")
    assert end.exit.reason == vcpu.EXIT_REASON_HLT and end.vector is None
    assert guest.cpu.get("rcx") == 1                    # this task's EDI came back
    assert guest.read(task + 0x44, 4) == 77             # the other's was saved
    assert guest.read(task + 0x40, 4) == 88
    assert guest.read(0x6000 + 128) >> 40 & 0xF == 9    # not busy any more
    assert guest.cpu.get("tr") == 48


def test_real_mode_interrupts() -> None:
    guest = RealMode()
    guest.run("mov sp, 0x8000; stc; int 0x21")
    assert guest.cpu.get("cs") == HANDLERS >> 4
    assert guest.cpu.get("rip") == 16 * 0x21 + 1
    assert guest.read(0x7FFA, 2) == CODE + 6
    assert guest.read(0x7FFE, 2) & 1


def test_from_real_to_long_mode() -> None:
    long = LongMode()
    guest = RealMode()
    for at in (0x6000, 0x7000, 0x8000, 0x20000, 0x21000, 0x22000, 0x23000):
        guest.space.write(at, long.space.read(at, 4096))
    guest.space.write(0x9000, (255).to_bytes(2, "little") + (0x6000).to_bytes(4, "little"))
    guest.load("mov rax, 0x1122334455667788; hlt", 0xD000, bits=64)
    guest.run(f"""cli; .byte 0x66; lgdt [0x9000]; mov eax, cr4; or eax, 0x20; mov cr4, eax
        mov eax, 0x20000; mov cr3, eax; mov ecx, 0xC0000080; rdmsr; or eax, 0x100; wrmsr
        mov eax, cr0; or eax, 0x80000001; mov cr0, eax; .byte 0x66, 0xea; .long 0xD000; .word {KERNEL_CODE}""")
    assert guest.cpu.get("rax") == 0x1122334455667788
    assert guest.cpu.get("efer") == 0x500


def test_overflow_trap() -> None:
    guest = Protected()
    guest.gate(OF, HANDLERS + 16 * OF, dpl=3)
    assert guest.run("mov al, 0x7f; add al, 1; into").vector == OF
    assert guest.run("xor eax, eax; into; hlt").vector is None
