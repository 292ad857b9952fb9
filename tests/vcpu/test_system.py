"""CPUID, MSRs, control registers, ports, time, randomness."""

import pytest
import vcpu
from guest_machine import CODE, GP, UD, LongMode, Protected


@pytest.fixture
def guest() -> LongMode:
    return LongMode()


def cpuid(guest: LongMode, leaf: int, sub: int = 0) -> tuple[int, int, int, int]:
    guest.run(f"mov eax, {leaf}; mov ecx, {sub}; cpuid; hlt")
    return tuple(guest.cpu.get(name) for name in ("rax", "rbx", "rcx", "rdx"))


def test_maker_and_brand(guest: LongMode) -> None:
    _, b, c, d = cpuid(guest, 0)
    assert b"".join(v.to_bytes(4, "little") for v in (b, d, c)) == b"GenuineIntel"
    brand = b"".join(v.to_bytes(4, "little") for leaf in (2, 3, 4) for v in cpuid(guest, 0x80000000 + leaf))
    assert brand.rstrip(b"\0").decode().startswith("Virga")


# an instruction for each feature that is announced: (leaf, sub, register, bit, program)
FEATURES = [
    (1, 0, 2, 0, "addsubps xmm0, xmm1"), (1, 0, 2, 1, "pclmulqdq xmm0, xmm1, 0"), (1, 0, 2, 9, "pshufb xmm0, xmm1"),
    (1, 0, 2, 13, "cmpxchg16b [0x9000]"), (1, 0, 2, 19, "pmuldq xmm0, xmm1"), (1, 0, 2, 20, "pcmpgtq xmm0, xmm1"),
    (1, 0, 2, 22, "movbe eax, [0x9000]"), (1, 0, 2, 23, "popcnt eax, eax"), (1, 0, 2, 25, "aesenc xmm0, xmm1"),
    (1, 0, 2, 26, "mov rax, cr4; bts rax, 18; mov cr4, rax; xor ecx, ecx; xgetbv"), (1, 0, 2, 30, "rdrand eax"),
    (1, 0, 3, 0, "fld1"), (1, 0, 3, 4, "rdtsc"), (1, 0, 3, 5, "mov ecx, 0x10; rdmsr"),
    (1, 0, 3, 8, "cmpxchg8b [0x9000]"), (1, 0, 3, 15, "cmovz eax, eax"), (1, 0, 3, 19, "clflush [0x9000]"),
    (1, 0, 3, 23, "paddb mm0, mm1; emms"), (1, 0, 3, 24, "fxsave [0x9000]"), (1, 0, 3, 25, "addps xmm0, xmm1"),
    (1, 0, 3, 26, "addpd xmm0, xmm1"),
    (7, 0, 1, 0, "mov rax, cr4; bts rax, 16; mov cr4, rax; rdfsbase rax"), (7, 0, 1, 1, "mov ecx, 0x3b; rdmsr"),
    (7, 0, 1, 7, "mov rax, cr4; bts rax, 20; mov cr4, rax; btr rax, 20; mov cr4, rax"),
    (7, 0, 1, 10, "mov eax, 2; invpcid rax, [0x9000]"), (7, 0, 1, 20, "stac; clac"),
    (7, 0, 2, 2, "mov rax, cr4; bts rax, 11; mov cr4, rax"), (7, 0, 3, 26, "mov ecx, 0x48; rdmsr; wrmsr"),
    (7, 0, 3, 29, "mov ecx, 0x10a; rdmsr"), (7, 2, 3, 4, "mov ecx, 0x48; mov eax, 0x400; xor edx, edx; wrmsr"),
    (0xD, 1, 0, 0, "mov rax, cr4; bts rax, 18; mov cr4, rax; mov eax, 3; xor edx, edx; xsaveopt [0x9000]"),
    (0xD, 1, 0, 1, "mov rax, cr4; bts rax, 18; mov cr4, rax; mov eax, 3; xor edx, edx; xsavec [0x9000]"),
    (0x80000001, 0, 2, 0, "lahf"), (0x80000001, 0, 2, 5, "lzcnt eax, ebx"), (0x80000001, 0, 2, 8, "prefetchw [0x9000]"),
    (0x80000001, 0, 3, 27, "rdtscp"),
]
ABSENT = [
    (1, 0, 2, 3, "monitor"), (1, 0, 2, 5, "vmxoff"), (1, 0, 2, 12, "vfmadd132ps xmm0, xmm1, xmm2"),
    (1, 0, 2, 28, "vaddps xmm0, xmm1, xmm2"), (7, 0, 1, 3, "andn eax, ebx, ecx"), (7, 0, 1, 11, "xbegin 1f; 1:"),
    (7, 0, 1, 18, "rdseed eax"), (7, 0, 1, 19, "adcx eax, ebx"), (7, 0, 1, 29, "sha1msg1 xmm0, xmm1"),
    (7, 0, 2, 22, "rdpid rax"), (0xD, 1, 0, 3, "xsaves [0x9000]"),
]


@pytest.mark.parametrize(("leaf", "sub", "register", "bit", "program"), FEATURES)
def test_what_is_announced_works(leaf: int, sub: int, register: int, bit: int, program: str) -> None:
    guest = LongMode()
    assert cpuid(guest, leaf, sub)[register] >> bit & 1
    assert guest.run(f"{program}; hlt").vector is None


@pytest.mark.parametrize(("leaf", "sub", "register", "bit", "program"), ABSENT)
def test_what_is_not_announced_does_not_exist(leaf: int, sub: int, register: int, bit: int, program: str) -> None:
    guest = LongMode()
    assert not cpuid(guest, leaf, sub)[register] >> bit & 1
    assert guest.run(f"{program}; hlt").vector == UD


def test_osxsave_and_syscall_follow_the_state(guest: LongMode) -> None:
    assert not cpuid(guest, 1)[2] >> 27 & 1
    guest.run("mov rax, cr4; bts rax, 18; mov cr4, rax; hlt")
    assert cpuid(guest, 1)[2] >> 27 & 1
    assert cpuid(guest, 0x80000001)[3] >> 11 & 1
    protected = Protected()
    protected.run("mov eax, 0x80000001; cpuid; hlt")
    assert not protected.cpu.get("rdx") >> 11 & 1


@pytest.mark.parametrize(("msr", "value", "allowed"), [
    (0x277, 0x0007040600070406, True), (0x277, 0x0307040600070406, False), (0xC0000082, 1 << 63 | 1 << 47, False),
    (0xC0000082, 0xFFFF800000000000, True), (0xC0000080, 0xD01, True), (0xC0000080, 0xD03, False),
    (0xC0000080, 0x501, True), (0xC0000080, 0x401, False), (0xC0000100, 1 << 50, False), (0x2FF, 0xC06, True), (0x2FF, 0x1C06, False),
    (0x200, 0x6, True), (0x200, 0x2, False), (0x201, 0xFFFFFFF800, True), (0x201, 1 << 45, False), (0x250, 0x0606060606060606, True),
    (0x250, 0x0606060606060602, False), (0x1A0, 1, True), (0x1A0, 1 << 30, False), (0x10A, 1, False), (0xFE, 1, False),
    (0x176, 1 << 50, False), (0x48, 1, True), (0x48, 2, False), (0x49, 1, True), (0xDEADBEEF, 1, False),
    (0xC0000103, 0x12345678, True), (0xC0000103, 1 << 32, False),
])
def test_wrmsr(guest: LongMode, msr: int, value: int, allowed: bool) -> None:
    program = f"mov ecx, {msr}; mov eax, {value & 0xFFFFFFFF}; mov edx, {value >> 32}; wrmsr; rdmsr; hlt"
    if msr == 0x49:
        program = program.replace("rdmsr;", "")
    end = guest.run(program)
    assert end.vector == (None if allowed else GP)
    if allowed:
        assert guest.cpu.get("rax") | guest.cpu.get("rdx") << 32 == value


@pytest.mark.parametrize(("program", "vector"), [
    ("mov rax, 0x80010032; mov cr0, rax", GP),                 # PG without PE
    ("mov rax, 0xA0010033; mov cr0, rax", GP),                 # NW without CD
    ("mov rax, cr0; btr rax, 31; mov cr0, rax", GP),           # PG off in 64-bit mode
    ("mov rax, cr4; btr rax, 5; mov cr4, rax", GP),            # PAE off in long mode
    ("mov rax, cr4; bts rax, 13; mov cr4, rax", GP),           # VMXE
    ("mov rax, cr4; bts rax, 0; mov cr4, rax", GP),            # VME
    ("mov rax, 1; shl rax, 41; mov cr3, rax", GP),
    ("mov rax, cr3; or rax, 8; mov cr3, rax; mov rax, cr4; bts rax, 17; mov cr4, rax", GP),
    ("mov rax, cr1", UD), ("mov cr5, rax", UD), ("mov dr4, rax; hlt", None),
    ("mov rax, cr4; bts rax, 3; mov cr4, rax; mov dr4, rax", UD),
    ("mov rax, -1; mov dr7, rax", GP), ("mov rax, -1; mov dr6, rax", GP),
])
def test_control_registers(guest: LongMode, program: str, vector: int | None) -> None:
    assert guest.run(program).vector == vector


def test_lmsw_cannot_leave_protected_mode(guest: LongMode) -> None:
    guest.run("xor eax, eax; lmsw ax; hlt")
    assert guest.cpu.get("cr0") & 1


def test_rdrand_by_seed() -> None:
    program = "rdrand rax; setc bl; rdrand rcx; rdrand edx; rdrand si; hlt"
    first, second = LongMode(), LongMode()
    first.run(program, rbx=0)
    second.run(program)
    assert first.cpu.get("rax") == second.cpu.get("rax") != first.cpu.get("rcx")
    assert first.cpu.get("rbx") == 1
    real = [LongMode("real") for _ in range(2)]
    for guest in real:
        guest.vmcs[vcpu.CPU_BASED_VM_EXEC_CONTROL] = vcpu.HLT_EXITING
    assert len({guest.run(program) and guest.cpu.get("rax") for guest in real}) == 2


def test_time_is_retired_instructions(guest: LongMode) -> None:
    guest.run("rdtsc; mov ebx, eax; nop; nop; nop; rdtsc; sub eax, ebx; hlt")
    assert guest.cpu.get("rax") == 5


def test_rdtscp_and_tsd(guest: LongMode) -> None:
    guest.run("mov ecx, 0xC0000103; mov eax, 77; xor edx, edx; wrmsr; xor ecx, ecx; rdtscp; hlt")
    assert guest.cpu.get("rcx") == 77
    assert guest.user("rdtsc; ud2").vector == UD
    guest.vmcs[vcpu.GUEST_CR4] = guest.vmcs[vcpu.GUEST_CR4] | 4
    assert guest.user("rdtsc").vector == GP


class Port:
    """Remembers what was written; reads count up."""

    def __init__(self) -> None:
        self.log: list[tuple[int, int, int]] = []
        self.next = 0x10

    def read(self, port: int, size: int) -> int:
        self.next += 1
        return self.next

    def write(self, port: int, size: int, value: int) -> None:
        self.log.append((port, size, value))


@pytest.fixture
def port(guest: LongMode) -> Port:
    device = Port()
    guest.space.add_ports(0x300, 8, device)
    return device


def test_in_and_out(guest: LongMode, port: Port) -> None:
    guest.run("mov edx, 0x302; mov eax, 0x12345678; out dx, al; out dx, ax; out dx, eax; in al, dx; hlt")
    assert port.log == [(0x302, 1, 0x78), (0x302, 2, 0x5678), (0x302, 4, 0x12345678)]
    assert guest.cpu.get("rax") == 0x12345611


def test_in_of_32_bits_clears_the_upper_half(guest: LongMode, port: Port) -> None:
    guest.run("mov rax, -1; mov edx, 0x300; in eax, dx; hlt")
    assert guest.cpu.get("rax") == 0x11


def test_string_input_and_output(guest: LongMode, port: Port) -> None:
    guest.space.write(0x9000, b"virga")
    guest.run("mov edx, 0x301; mov esi, 0x9000; mov ecx, 5; rep outsb; mov edi, 0x9100; mov ecx, 3; rep insw; hlt")
    assert bytes(value for _, _, value in port.log) == b"virga"
    assert guest.space.read(0x9100, 8) == b"\x11\0\x12\0\x13\0\0\0"
    assert (guest.cpu.get("rdi"), guest.cpu.get("rsi"), guest.cpu.get("rcx")) == (0x9106, 0x9005, 0)


def test_ins_that_faults_reads_no_port(guest: LongMode, port: Port) -> None:
    end = guest.run("mov edx, 0x300; mov edi, 0x40000000; insb")
    assert end.vector == 14
    assert port.next == 0x10


def test_an_unowned_port_is_an_open_bus(guest: LongMode) -> None:
    guest.run("xor eax, eax; in al, 0x99; hlt")
    assert guest.cpu.get("rax") == 0xFF


def test_halt_waits_and_goes_on(guest: LongMode) -> None:
    end = guest.run("nop; hlt; nop; hlt")
    assert (end.rip, guest.vmcs[vcpu.GUEST_ACTIVITY_STATE]) == (CODE + 2, vcpu.ACTIVITY_HLT)


def test_self_modifying_code(guest: LongMode) -> None:
    guest.run("lea rbx, [rip + 1f]; mov byte ptr [rbx + 1], 42; jmp 1f; 1: mov al, 7; hlt", rax=0)
    assert guest.cpu.get("rax") == 42


def test_the_next_instruction_is_modified(guest: LongMode) -> None:
    guest.run("lea rbx, [rip + 1f]; mov byte ptr [rbx + 1], 42; 1: mov al, 7; hlt", rax=0)
    assert guest.cpu.get("rax") == 42
