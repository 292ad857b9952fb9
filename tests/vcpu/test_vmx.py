"""Entries and exits as a hypervisor sees them (SDM 3C chapters 25-28)."""

import pytest
import vcpu
from guest_machine import BP, CODE, DF, GP, IDT, PF, UD, LongMode, Protected, RealMode


@pytest.fixture
def guest() -> LongMode:
    return LongMode()


def controls(guest: LongMode, primary: int, secondary: int = 0) -> None:
    guest.vmcs[vcpu.CPU_BASED_VM_EXEC_CONTROL] = primary | (vcpu.ACTIVATE_SECONDARY_CONTROLS if secondary else 0)
    guest.vmcs[vcpu.SECONDARY_VM_EXEC_CONTROL] = secondary


@pytest.mark.parametrize(("primary", "secondary", "program", "reason", "qualification", "length"), [
    (vcpu.HLT_EXITING, 0, "hlt", vcpu.EXIT_REASON_HLT, 0, 1),
    (vcpu.PAUSE_EXITING, 0, "pause", vcpu.EXIT_REASON_PAUSE, 0, 2),
    (0, 0, "vmcall", vcpu.EXIT_REASON_VMCALL, 0, 3),
    (vcpu.RDTSC_EXITING, 0, "rdtsc", vcpu.EXIT_REASON_RDTSC, 0, 2),
    (vcpu.RDTSC_EXITING, 0, "rdtscp", vcpu.EXIT_REASON_RDTSCP, 0, 3),
    (vcpu.RDPMC_EXITING, 0, "rdpmc", vcpu.EXIT_REASON_RDPMC, 0, 2),
    (vcpu.INVLPG_EXITING, 0, "invlpg [0x9123]", vcpu.EXIT_REASON_INVLPG, 0x9123, 8),
    (vcpu.CR3_LOAD_EXITING, 0, "mov cr3, rsi", vcpu.EXIT_REASON_CR_ACCESS, 0x603, 3),
    (vcpu.CR3_STORE_EXITING, 0, "mov r9, cr3", vcpu.EXIT_REASON_CR_ACCESS, 0x913, 4),
    (vcpu.CR8_LOAD_EXITING, 0, "mov cr8, rax", vcpu.EXIT_REASON_CR_ACCESS, 8, 4),
    (vcpu.CR8_STORE_EXITING, 0, "mov rbx, cr8", vcpu.EXIT_REASON_CR_ACCESS, 0x318, 4),
    (vcpu.MOV_DR_EXITING, 0, "mov dr3, rcx", vcpu.EXIT_REASON_DR_ACCESS, 0x103, 3),
    (vcpu.MOV_DR_EXITING, 0, "mov rcx, dr7", vcpu.EXIT_REASON_DR_ACCESS, 0x117, 3),
    (vcpu.UNCONDITIONAL_IO_EXITING, 0, "in al, 0x42", vcpu.EXIT_REASON_IO_INSTRUCTION, 0x420048, 2),
    (vcpu.UNCONDITIONAL_IO_EXITING, 0, "out dx, eax", vcpu.EXIT_REASON_IO_INSTRUCTION, 0x3, 1),
    (vcpu.UNCONDITIONAL_IO_EXITING, 0, "rep insb", vcpu.EXIT_REASON_IO_INSTRUCTION, 0x38, 2),
    (0, vcpu.WBINVD_EXITING, "wbinvd", vcpu.EXIT_REASON_WBINVD, 0, 2),
    (0, vcpu.RDRAND_EXITING, "rdrand eax", vcpu.EXIT_REASON_RDRAND, 0, 3),
    (0, vcpu.DESCRIPTOR_TABLE_EXITING, "lgdt [0x9000]", vcpu.EXIT_REASON_GDTR_IDTR, 0, 8),
    (0, vcpu.DESCRIPTOR_TABLE_EXITING, "str ax", vcpu.EXIT_REASON_LDTR_TR, 0, 4),
    (0, vcpu.VIRGA_CPUID_EXITING, "cpuid", vcpu.EXIT_REASON_CPUID, 0, 2),
])
def test_exit(guest: LongMode, primary: int, secondary: int, program: str, reason: int, qualification: int,
              length: int) -> None:
    controls(guest, primary, secondary)
    end = guest.run(f"nop; {program}; hlt", rdx=0, rcx=0)
    assert (end.exit.reason, end.exit.qualification, end.exit.instruction_length) == (reason, qualification, length)
    assert end.rip == CODE + 1
    assert guest.cpu.retired_instructions - guest.before == 1
    assert guest.vmcs[vcpu.VM_EXIT_REASON] == reason


def test_the_hypervisor_goes_on_behind_the_instruction(guest: LongMode) -> None:
    controls(guest, 0, vcpu.VIRGA_CPUID_EXITING)
    end = guest.run("mov eax, 5; cpuid; mov ebx, eax; hlt")
    guest.cpu.set("rax", 0x1234)
    guest.vmcs[vcpu.GUEST_RIP] = guest.vmcs[vcpu.GUEST_RIP] + end.exit.instruction_length
    end = guest.run()
    assert (end.exit.reason, guest.cpu.get("rbx")) == (vcpu.EXIT_REASON_HLT, 0x1234)
    assert guest.cpu.exit_counts()[vcpu.EXIT_REASON_CPUID] == 1


def test_without_the_controls_everything_is_served_inside(guest: LongMode) -> None:
    end = guest.run("xor eax, eax; cpuid; in al, 0x42; mov rcx, cr3; mov cr3, rcx; mov ecx, 0x277; rdmsr; hlt")
    assert end.exit.reason == vcpu.EXIT_REASON_HLT and end.vector is None
    counts = guest.cpu.exit_counts()
    assert [counts[reason] for reason in (vcpu.EXIT_REASON_CPUID, vcpu.EXIT_REASON_IO_INSTRUCTION,
                                          vcpu.EXIT_REASON_CR_ACCESS, vcpu.EXIT_REASON_MSR_READ,
                                          vcpu.EXIT_REASON_HLT)] == [1, 1, 1, 1, 1]


def test_exception_bitmap(guest: LongMode) -> None:
    guest.vmcs[vcpu.EXCEPTION_BITMAP] = 1 << UD | 1 << BP | 1 << PF
    end = guest.run("ud2")
    assert (end.exit.reason, end.exit.intr_info) == (vcpu.EXIT_REASON_EXCEPTION_NMI, 0x80000306)
    end = guest.run("nop; int3")
    assert (end.exit.intr_info, end.exit.instruction_length, end.rip) == (0x80000603, 1, CODE + 1)
    cr2 = guest.cpu.get("cr2")
    end = guest.run("mov qword ptr [0x40000000], 1")
    assert (end.exit.intr_info, end.exit.intr_error, end.exit.qualification) == (0x80000B0E, 2, 0x40000000)
    assert guest.cpu.get("cr2") == cr2                  # the guest has not seen it


def test_page_faults_by_error_code(guest: LongMode) -> None:
    guest.vmcs[vcpu.EXCEPTION_BITMAP] = 1 << PF
    guest.vmcs[vcpu.PAGE_FAULT_ERROR_CODE_MASK] = 2
    guest.vmcs[vcpu.PAGE_FAULT_ERROR_CODE_MATCH] = 2
    assert guest.run("mov rax, [0x40000000]").vector == PF
    assert guest.run("mov [0x40000000], rax").exit.reason == vcpu.EXIT_REASON_EXCEPTION_NMI


def test_a_fault_while_delivering_names_the_first(guest: LongMode) -> None:
    guest.vmcs[vcpu.EXCEPTION_BITMAP] = 1 << GP
    guest.write(IDT + 16 * 0x80, 0)
    end = guest.run("int 0x80")
    assert (end.exit.intr_info, end.exit.intr_error) == (0x80000B0D, 0x80 * 8 + 2)
    assert end.exit.idt_vectoring_info == 0x80000480
    guest.vmcs[vcpu.EXCEPTION_BITMAP] = 1 << DF
    guest.write(IDT + 16 * PF, 0)
    end = guest.run("mov rax, [0x40000000]")
    assert end.exit.intr_info == 0x80000B08
    assert end.exit.idt_vectoring_info == 0x80000B0E


def test_cr0_and_cr4_masks(guest: LongMode) -> None:
    guest.vmcs[vcpu.CR0_GUEST_HOST_MASK] = 8
    guest.vmcs[vcpu.CR0_READ_SHADOW] = 0
    end = guest.run("mov rax, cr0; mov rbx, rax; or rax, 8; mov cr0, rax; hlt")
    assert (end.exit.reason, end.exit.qualification) == (vcpu.EXIT_REASON_CR_ACCESS, 0)
    guest.vmcs[vcpu.CR0_READ_SHADOW] = 8
    guest.run("mov rax, cr0; hlt")
    assert guest.cpu.get("rax") & 8
    assert not guest.cpu.get("cr0") & 8
    guest.vmcs[vcpu.CR4_GUEST_HOST_MASK] = 1 << 13
    assert guest.run("mov rax, cr4; bts rax, 13; mov cr4, rax").exit.reason == vcpu.EXIT_REASON_CR_ACCESS


def test_lmsw_and_clts_exits(guest: LongMode) -> None:
    guest.vmcs[vcpu.CR0_GUEST_HOST_MASK] = 8
    guest.vmcs[vcpu.CR0_READ_SHADOW] = 8
    assert guest.run("clts").exit.qualification == 2 << 4
    guest.vmcs[vcpu.CR0_READ_SHADOW] = 0
    assert guest.run("mov eax, 0xb; lmsw ax").exit.qualification == 3 << 4 | 0xB << 16


def test_cr3_targets(guest: LongMode) -> None:
    controls(guest, vcpu.CR3_LOAD_EXITING)
    guest.vmcs[vcpu.CR3_TARGET_COUNT] = 1
    guest.vmcs[vcpu.CR3_TARGET_VALUE0] = 0x20000
    assert guest.run("mov eax, 0x20000; mov cr3, rax; hlt").exit.reason == vcpu.EXIT_REASON_HLT
    assert guest.run("mov eax, 0x20008; mov cr3, rax; hlt").exit.reason == vcpu.EXIT_REASON_CR_ACCESS


def test_io_bitmap(guest: LongMode) -> None:
    controls(guest, vcpu.USE_IO_BITMAPS)
    guest.vmcs.io_bitmap = bytes(0x42 >> 3) + b"\x04" + bytes(8192 - (0x42 >> 3) - 1)
    assert guest.run("in al, 0x41; hlt").exit.reason == vcpu.EXIT_REASON_HLT
    assert guest.run("in al, 0x42; hlt").exit.reason == vcpu.EXIT_REASON_IO_INSTRUCTION
    assert guest.run("in ax, 0x41; hlt").exit.reason == vcpu.EXIT_REASON_IO_INSTRUCTION


def test_msr_bitmap(guest: LongMode) -> None:
    controls(guest, vcpu.USE_MSR_BITMAPS)
    bitmap = bytearray(4096)
    bitmap[0x277 >> 3] |= 1 << (0x277 & 7)
    bitmap[0xC00 + (0x80 >> 3)] |= 1
    guest.vmcs.msr_bitmap = bitmap
    assert guest.run("mov ecx, 0x277; rdmsr; hlt").exit.reason == vcpu.EXIT_REASON_MSR_READ
    assert guest.run("mov ecx, 0xC0000080; rdmsr; wrmsr; hlt").exit.reason == vcpu.EXIT_REASON_MSR_WRITE
    assert guest.run("mov ecx, 0x12345; rdmsr").exit.reason == vcpu.EXIT_REASON_MSR_READ     # outside the bitmaps
    assert guest.run("mov ecx, 0x10; rdmsr; hlt").exit.reason == vcpu.EXIT_REASON_HLT


def test_ept_violation(guest: LongMode) -> None:
    guest.space.open_bus = False
    guest.write(0x21000 + 8, 0xC0000087)                # 1 GiB at 3 GiB: nobody's
    end = guest.run("mov eax, 0x40000010; mov [rax], rcx")
    assert end.exit.reason == vcpu.EXIT_REASON_EPT_VIOLATION
    assert (end.exit.gpa, end.exit.gla, end.exit.qualification & 7) == (0xC0000010, 0x40000010, 2)
    end = guest.run("mov eax, 0x40000010; jmp rax")
    assert (end.exit.gpa, end.exit.qualification & 7) == (0xC0000010, 4)
    guest.space.open_bus = True
    guest.run("mov eax, 0x40000010; mov rbx, [rax]; hlt")
    assert guest.cpu.get("rbx") == 2**64 - 1


def inject(guest: LongMode, info: int, error: int = 0, length: int = 0) -> None:
    guest.vmcs[vcpu.VM_ENTRY_INTR_INFO_FIELD] = vcpu.INTR_INFO_VALID | info
    guest.vmcs[vcpu.VM_ENTRY_EXCEPTION_ERROR_CODE] = error
    guest.vmcs[vcpu.VM_ENTRY_INSTRUCTION_LEN] = length


def test_injection(guest: LongMode) -> None:
    inject(guest, vcpu.INTR_TYPE_HARDWARE_EXCEPTION | vcpu.INTR_INFO_DELIVER_ERROR_CODE | GP, 0x18)
    end = guest.run("nop")
    assert (end.vector, end.error, end.rip) == (GP, 0x18, CODE)
    assert not guest.vmcs[vcpu.VM_ENTRY_INTR_INFO_FIELD] >> 31
    guest.vmcs[vcpu.GUEST_RFLAGS] = 0x202
    inject(guest, vcpu.INTR_TYPE_EXTERNAL | 0x90)
    end = guest.run("nop")
    assert (end.vector, end.rip, end.flags) == (0x90, CODE, 0x202)
    inject(guest, vcpu.INTR_TYPE_SOFTWARE_INTERRUPT | 0x80, length=2)
    assert guest.run("int 0x80").rip == CODE + 2


def test_an_injected_nmi_blocks_the_next(guest: LongMode) -> None:
    guest.gate(2, 0xD000)
    guest.load("mov r8, [rsp]; iretq", 0xD000)
    inject(guest, vcpu.INTR_TYPE_NMI | 2)
    controls(guest, vcpu.NMI_WINDOW_EXITING)
    end = guest.run("nop; hlt")
    assert end.exit.reason == vcpu.EXIT_REASON_NMI_WINDOW
    assert (end.rip, guest.cpu.get("r8")) == (CODE, CODE)


@pytest.mark.parametrize(("field", "value", "part"), [
    (vcpu.GUEST_CR0, 0x80000000, "CR0.PG"),
    (vcpu.GUEST_CR4, 1 << 13 | 0x20, "CR4"),
    (vcpu.GUEST_IA32_EFER, 0x100, "LMA"),
    (vcpu.GUEST_RFLAGS, 0x8002, "RFLAGS"),
    (vcpu.GUEST_RIP, 1 << 50, "RIP"),
    (vcpu.GUEST_CS_AR_BYTES, 0xE09B, "CS"),
    (vcpu.GUEST_CS_AR_BYTES, 0x10000, "CS"),
    (vcpu.GUEST_SS_AR_BYTES, 0xC091, "SS"),
    (vcpu.GUEST_TR_AR_BYTES, 0x10000, "TR"),
    (vcpu.GUEST_FS_BASE, 1 << 50, "canonical"),
    (vcpu.GUEST_ACTIVITY_STATE, 9, "activity"),
    (vcpu.GUEST_INTERRUPTIBILITY_INFO, 3, "interruptibility"),
    (vcpu.GUEST_CR3, 1 << 45, "CR3"),
    (vcpu.VM_ENTRY_INTR_INFO_FIELD, 1 << 31 | 1 << 8, "event"),
    (vcpu.VM_ENTRY_INTR_INFO_FIELD, 1 << 31 | 3 << 8 | 40, "event"),
    (vcpu.VM_ENTRY_INTR_INFO_FIELD, 1 << 31 | 0x90, "interrupt"),
])
def test_entry_fails(guest: LongMode, field: int, value: int, part: str) -> None:
    guest.load("hlt")
    guest.vmcs[vcpu.GUEST_RIP] = CODE
    guest.vmcs[vcpu.GUEST_CS_AR_BYTES] = 0xA09B         # checked again with every field below
    guest.vmcs[field] = value
    exit_ = guest.cpu.run(guest.vmcs)
    assert exit_.reason == 0x80000000 | vcpu.EXIT_REASON_INVALID_STATE
    assert part in exit_.detail


def test_fields(guest: LongMode) -> None:
    guest.run("mov rsp, 0x9990; std; hlt")
    assert guest.vmcs[vcpu.GUEST_RSP] == 0x9990
    assert guest.vmcs[vcpu.GUEST_RFLAGS] & 0x400
    assert guest.vmcs[vcpu.GUEST_CS_SELECTOR] == 8
    with pytest.raises(KeyError):
        guest.vmcs[0x9999] = 1
    with pytest.raises(KeyError):
        guest.vmcs[vcpu.VM_EXIT_REASON] = 1
    with pytest.raises(ValueError):
        guest.vmcs[vcpu.GUEST_CS_SELECTOR] = 1 << 16
    with pytest.raises(ValueError):
        guest.vmcs.io_bitmap = b"short"


def test_a_vmcs_belongs_to_one_processor(guest: LongMode) -> None:
    guest.run("hlt")
    other = LongMode()
    with pytest.raises(ValueError):
        other.cpu.run(guest.vmcs)


def test_interrupt_window(guest: LongMode) -> None:
    controls(guest, vcpu.INTERRUPT_WINDOW_EXITING)
    end = guest.run("nop; sti; nop; hlt")
    assert (end.exit.reason, end.rip) == (vcpu.EXIT_REASON_INTERRUPT_WINDOW, CODE + 3)


def test_preemption_timer(guest: LongMode) -> None:
    guest.vmcs[vcpu.PIN_BASED_VM_EXEC_CONTROL] = vcpu.PREEMPTION_TIMER
    guest.vmcs[vcpu.VMX_PREEMPTION_TIMER_VALUE] = 1000
    end = guest.run("1: inc rax; jmp 1b", rax=0)
    assert end.exit.reason == vcpu.EXIT_REASON_PREEMPTION_TIMER
    assert guest.cpu.get("rax") == 500                  # virtual clock: one instruction, one nanosecond


def test_tsc_offset(guest: LongMode) -> None:
    controls(guest, vcpu.USE_TSC_OFFSETTING)
    guest.vmcs[vcpu.TSC_OFFSET] = -(1 << 40)
    guest.run("rdtsc; shl rdx, 32; or rax, rdx; hlt")
    assert guest.cpu.get("rax") > 1 << 63


def test_a_kick_from_another_thread() -> None:
    guest = LongMode("real")
    guest.load("1: jmp 1b")
    guest.vmcs[vcpu.GUEST_RIP] = CODE
    guest.cpu.kick()
    assert guest.cpu.run(guest.vmcs).reason == vcpu.EXIT_REASON_EXTERNAL_INTERRUPT


def test_nmi_exiting() -> None:
    guest = LongMode("real")
    guest.vmcs[vcpu.PIN_BASED_VM_EXEC_CONTROL] = vcpu.NMI_EXITING
    guest.space.deliver_msi(0xFEE00000, 4 << 8)
    end = guest.run("1: jmp 1b")
    assert (end.exit.reason, end.exit.intr_info) == (vcpu.EXIT_REASON_EXCEPTION_NMI, 0x80000202)


def test_other_modes_enter() -> None:
    assert Protected().run("nop; hlt").exit.reason == vcpu.EXIT_REASON_HLT
    assert RealMode().run("nop; hlt").exit.reason == vcpu.EXIT_REASON_HLT
