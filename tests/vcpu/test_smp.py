"""Several vCPUs: start-up, IPIs, locks, code that others change, and turns under the virtual clock.

The programs check themselves in guest memory; a real-clock run has one thread a vCPU and a deadline as its only timer.
"""

import threading

import pytest
import vcpu
from guest_machine import GDT, IDT, KERNEL_CODE, PDPT, PML4, LongMode, asm

TRAMPOLINE, AP_CODE = 0x4000, 0x5000
COUNTER, FLAG, TURN, DONE, SHARED = 0x3000, 0x3040, 0x3080, 0x30C0, 0x3FFC      # SHARED + 8 bytes cross a page
PATCHED = 0xD000
LIMIT_NS = 20_000_000_000
ENABLE = "mov ecx, 0x1b; rdmsr; or eax, 0xc00; wrmsr; mov ecx, 0x80f; mov eax, 0x1ff; xor edx, edx; wrmsr;"
EOI = "mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr;"


def icr(low: int, destination: int = 0) -> str:
    return f"mov ecx, 0x830; mov eax, {low:#x}; mov edx, {destination}; wrmsr;"


START_OTHERS = icr(0xC4500) + icr(0xC4600 | TRAMPOLINE >> 12)                   # INIT, SIPI to all but self

def trampoline() -> bytes:
    """From real mode to AP_CODE in long mode, with the APIC id in r15 and a stack of its own."""
    text = f"""
.code16
start:
    cli
    xor ax, ax
    mov ds, ax
    .byte 0x66
    lgdt [{TRAMPOLINE + 0xF0:#x}]
    mov eax, 0x6A0
    mov cr4, eax
    mov eax, {PML4:#x}
    mov cr3, eax
    mov ecx, 0xC0000080
    mov eax, 0x901
    xor edx, edx
    wrmsr
    mov eax, 0x80010033
    mov cr0, eax
    .byte 0x66, 0xea
    .long {TRAMPOLINE + 0x80:#x}
    .word {KERNEL_CODE}
"""
    code = asm(text.replace(".code16", ""), 16, TRAMPOLINE)
    assert len(code) <= 0x80
    long_mode = asm(f"""
    xor eax, eax; mov ds, eax; mov es, eax; mov ss, eax
    lidt [{TRAMPOLINE + 0x100:#x}]
    {ENABLE}
    mov ecx, 0x802; rdmsr; mov r15, rax
    mov rsp, rax; shl rsp, 9; neg rsp; add rsp, 0x1F000
    mov eax, {AP_CODE:#x}; jmp rax
    """, 64, TRAMPOLINE + 0x80)
    assert len(long_mode) <= 0x70
    image = bytearray(0x110)
    image[:len(code)] = code
    image[0x80:0x80 + len(long_mode)] = long_mode
    image[0xF0:0xF6] = (0xFF).to_bytes(2, "little") + GDT.to_bytes(4, "little")
    image[0x100:0x10A] = (0xFFF).to_bytes(2, "little") + IDT.to_bytes(8, "little")
    return bytes(image)


class Machine(LongMode):
    """`count` vCPUs; the first runs `first`, the others `others` once it has started them. Both end at DONE."""

    def __init__(self, count: int, clock: str = "real") -> None:
        super().__init__(clock)
        self.space.write(TRAMPOLINE, trampoline())
        self.cpus = [self.cpu] + [vcpu.Vcpu(self.space, self.clock, i, count) for i in range(1, count)]
        self.vmcss = [self.vmcs] + [vcpu.Vmcs() for _ in range(1, count)]
        self.write(PDPT + 24, 0x25000 | 7)

    def start(self, first: str, others: str, handlers: dict[int, str] | None = None) -> None:
        end = f"lock inc dword ptr [{DONE}]; 9: cli; hlt; jmp 9b"
        self.load("xor r15d, r15d;" + ENABLE + first + ";" + end)
        self.load(others + ";" + end, AP_CODE)
        for vector, text in (handlers or {}).items():
            self.load("push rax; push rcx; push rdx;" + text + EOI + "pop rdx; pop rcx; pop rax; iretq", 0x11000 + 0x100 * (vector - 0x40))
            self.gate(vector, 0x11000 + 0x100 * (vector - 0x40))
        self.vmcs[vcpu.GUEST_RIP] = 0x1000
        self.vmcs[vcpu.GUEST_RSP] = 0xA000

    def run_real(self) -> None:
        """Threads until all are done, or the deadline."""
        stop = threading.Event()

        def loop(cpu: vcpu.Vcpu, vmcs: vcpu.Vmcs) -> None:
            while not stop.is_set():
                exit_ = cpu.run(vmcs, deadline_ns=self.clock.now_ns() + LIMIT_NS)
                if exit_.reason != vcpu.EXIT_REASON_EXTERNAL_INTERRUPT:
                    ends.append((cpu, exit_))
                    return

        ends: list[tuple[vcpu.Vcpu, vcpu.VmExit]] = []
        threads = [threading.Thread(target=loop, args=pair) for pair in zip(self.cpus, self.vmcss)]
        for thread in threads:
            thread.start()
        waiting = self.clock.now_ns() + LIMIT_NS
        while self.read(DONE, 4) < len(self.cpus) and not ends and self.clock.now_ns() < waiting:
            threading.Event().wait(0.002)
        stop.set()
        for thread, cpu in zip(threads, self.cpus):
            while thread.is_alive():
                cpu.kick()
                thread.join(0.05)
        assert not ends, [(exit_, cpu.registers()) for cpu, exit_ in ends]
        assert self.read(DONE, 4) == len(self.cpus), [hex(cpu.get("rip")) for cpu in self.cpus]

    def run_virtual(self, quantum: int = 500, turns: int = 100_000) -> None:
        """In turn, on this thread; idle time skipped."""
        for _ in range(turns):
            idle = 0
            for cpu, vmcs in zip(self.cpus, self.vmcss):
                exit_ = cpu.run(vmcs, quantum=quantum)
                idle += exit_.reason == vcpu.EXIT_REASON_HLT
            if self.read(DONE, 4) == len(self.cpus):
                return
            timers = [t for cpu in self.cpus if (t := cpu.next_timer_ns()) is not None]
            if idle == len(self.cpus) and timers:
                self.clock.advance_to(min(timers))
        raise AssertionError([hex(cpu.get("rip")) for cpu in self.cpus])


BOTH = pytest.mark.parametrize(("count", "clock"), [(2, "real"), (4, "real"), (2, "virtual"), (3, "virtual")])


def run(machine: Machine) -> None:
    if machine.clock.is_virtual:
        machine.run_virtual()
    else:
        machine.run_real()


@BOTH
def test_start_up_and_locked_increments(count: int, clock: str) -> None:
    machine = Machine(count, clock)
    body = f"mov r8d, 20000; 1: lock inc dword ptr [{COUNTER}]; dec r8d; jnz 1b"
    machine.start(START_OTHERS + body, body)
    run(machine)
    assert machine.read(COUNTER, 4) == 20000 * count


@BOTH
def test_a_spin_lock_protects_plain_increments(count: int, clock: str) -> None:
    machine = Machine(count, clock)
    body = f"""mov r8d, 5000
    1: mov eax, 1
    2: xchg eax, [{FLAG}]; test eax, eax; jz 3f; pause; jmp 2b
    3: inc dword ptr [{COUNTER}]; mov dword ptr [{FLAG}], 0; dec r8d; jnz 1b"""
    machine.start(START_OTHERS + body, body)
    run(machine)
    assert machine.read(COUNTER, 4) == 5000 * count


@BOTH
def test_a_lock_across_two_pages_is_one(count: int, clock: str) -> None:
    machine = Machine(count, clock)
    body = f"mov r8d, 1500; mov r9, 0x100000001; 1: lock add [{SHARED}], r9; dec r8d; jnz 1b"
    machine.start(START_OTHERS + body, body)
    # the trampoline is where the second page is: let the others get through it before anyone writes there
    machine.load(f"lock inc dword ptr [{TURN}]; 1: cmp dword ptr [{TURN}], {count}; pause; jne 1b;" + body
                 + f"; lock inc dword ptr [{DONE}]; 9: cli; hlt; jmp 9b", AP_CODE)
    machine.load("xor r15d, r15d;" + ENABLE + START_OTHERS + f"mov eax, {AP_CODE}; jmp rax")
    machine.space.write(SHARED, bytes(4))
    before = machine.read(SHARED, 8)
    run(machine)
    expected = before + 1500 * count * 0x100000001
    assert machine.read(SHARED, 8) == expected & (1 << 64) - 1


@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_ipi_ping_pong_wakes_from_hlt(clock: str) -> None:
    machine = Machine(2, clock)
    wait = "1: cli; cmp dword ptr [{flag}], 0; jne 2f; sti; hlt; jmp 1b; 2: mov dword ptr [{flag}], 0; sti;"
    first = START_OTHERS + f"7: cmp dword ptr [{TURN}], 0; je 7b; mov r8d, 300; 5:" + icr(0x4041, 1) + wait.format(flag=FLAG) + \
        "dec r8d; jnz 5b; cli"
    other = f"sti; mov dword ptr [{TURN}], 1; mov r8d, 300; 5:" + wait.format(flag=COUNTER) + icr(0x4040, 0) + "dec r8d; jnz 5b; cli"
    machine.start(first, other, {0x40: f"mov dword ptr [{FLAG}], 1;", 0x41: f"mov dword ptr [{COUNTER}], 1;"})
    run(machine)


@BOTH
def test_code_that_another_vcpu_changes(count: int, clock: str) -> None:
    """The writer patches an immediate, announces it, and waits until all others executed the new one."""
    machine = Machine(count, clock)
    machine.load("mov eax, 0; ret", PATCHED)
    writer = START_OTHERS + f"""mov r8d, 1
    1: mov [{PATCHED} + 1], r8d; mov [{FLAG}], r8d
    2: mov eax, [{COUNTER}]; mov ecx, r8d; imul ecx, {count - 1}; cmp eax, ecx; pause; jne 2b
    inc r8d; cmp r8d, 200; jne 1b; mov dword ptr [{FLAG}], -1"""
    reader = f"""xor r8d, r8d
    1: mov ecx, [{FLAG}]; cmp ecx, -1; je 4f; cmp ecx, r8d; pause; je 1b
    mov r8d, ecx; cpuid; mov r9d, {PATCHED}; call r9; cmp eax, r8d; jne 3f
    lock inc dword ptr [{COUNTER}]; jmp 1b
    3: ud2
    4:"""
    machine.start(writer, reader)
    run(machine)
    assert machine.read(COUNTER, 4) == 199 * (count - 1)


@BOTH
def test_shootdown(count: int, clock: str) -> None:
    """A page changes hands under readers that are told by IPI: after the answer nobody sees the old frame."""
    machine = Machine(count, clock)
    window, frames = 0x100000, (0x200000, 0x201000)
    machine.write(frames[0], 1)
    machine.write(frames[1], 2)
    pte = 0x23000 + (window >> 12) * 8
    machine.write(pte, frames[0] | 7)
    flip = f"""
    mov eax, [{pte}]; xor eax, {frames[0] ^ frames[1]}; mov [{pte}], eax; invlpg [{window}]
    mov dword ptr [{COUNTER}], 0
    """ + icr(0xC4042) + f"2: cmp dword ptr [{COUNTER}], {count - 1}; pause; jne 2b; inc dword ptr [{TURN}];"
    first = START_OTHERS + f"7: cmp dword ptr [{SHARED - 0xC}], {count - 1}; pause; jne 7b; mov r8d, 100; 5:" + flip + \
        f"dec r8d; jnz 5b; mov dword ptr [{FLAG}], 1"
    # readers keep the translation warm; the handler finds the frame that the table names, or dies
    other = f"""lock inc dword ptr [{SHARED - 0xC}]; sti
    1: mov r9, [{window}]; cmp dword ptr [{FLAG}], 0; je 1b; cli"""
    machine.start(first, other, {0x42: f"invlpg [{window}]; mov rax, [{window}]; mov rcx, [{pte}]; shr ecx, 12; and ecx, 1; inc ecx;"
                                       f"cmp eax, ecx; je 6f; ud2; 6: lock inc dword ptr [{COUNTER}];"})
    run(machine)
    assert machine.read(TURN, 4) == 100


def test_turns_are_the_same_every_time() -> None:
    ends = []
    for _ in range(2):
        machine = Machine(3, "virtual")
        body = f"mov r10d, 3000; 1: mov eax, r10d; lock xadd [{COUNTER}], eax; imul r9, r9, 31; add r9, rax; dec r10d; jnz 1b"
        machine.start(START_OTHERS + body, body)
        machine.run_virtual(333)
        ends.append([(cpu.retired_instructions, cpu.get("r9")) for cpu in machine.cpus] + [machine.clock.now_ns()])
    assert ends[0] == ends[1]


def test_devices_and_vcpus_write_while_pages_are_harvested() -> None:
    """Every page that a vCPU wrote between two harvests is in one of them."""
    machine = Machine(2, "real")
    body = "mov rbx, 0x300000; mov r8d, 60; 1: mov rdi, rbx; mov ecx, 512; 2: add qword ptr [rdi], 1; add rdi, 4096; loop 2b; dec r8d; jnz 1b"
    machine.start(START_OTHERS + body, "nop")
    machine.space.dirty_start()
    copy = bytearray(machine.space.memory[0x300000:0x500000])
    stop = threading.Event()

    def follow() -> None:
        while not stop.is_set():
            harvest()
            stop.wait(0.001)

    def harvest() -> None:
        bits = machine.space.dirty_harvest()
        for frame in range(0x300, 0x500):
            if bits[frame >> 3] >> (frame & 7) & 1:
                copy[(frame << 12) - 0x300000:(frame << 12) - 0x2FF000] = machine.space.memory[frame << 12:(frame + 1) << 12]

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        machine.run_real()
    finally:
        stop.set()
        thread.join()
    harvest()
    assert copy == machine.space.memory[0x300000:0x500000]
    assert machine.read(0x300000) == 60


def test_devices_come_and_go_under_running_vcpus() -> None:
    """Tables are replaced, pages harvested, messages sent and code overwritten while three vCPUs talk to devices."""
    class Echo:
        """Keeps what was written; a write also goes to memory, as DMA does."""

        def read(self, address: int, size: int) -> int:
            return address & 0xFF

        def write(self, address: int, size: int, value: int) -> None:
            machine.space.write(0x700000, b"\x90" * 16)

    machine = Machine(3, "real")
    device = Echo()
    machine.space.add_ports(0x510, 4, device)
    machine.load("nop; mov eax, 7; ret", PATCHED)
    body = f"""mov r8d, 4000; mov r9d, {PATCHED}; sti
    1: mov edx, 0x511; in al, dx; cmp al, 0x11; jne 3f; out dx, al; call r9; cmp eax, 7; jne 3f
    mov edx, 0x600; in al, dx; lock inc dword ptr [{COUNTER}]; dec r8d; jnz 1b; cli; jmp 4f
    3: ud2
    4:"""
    machine.start(START_OTHERS + body, body, {0x45: f"lock inc dword ptr [{TURN}];"})
    stop = threading.Event()
    code = machine.space.read(PATCHED, 16)

    def disturb() -> None:
        machine.space.dirty_start()
        while not stop.is_set():
            machine.space.add_ports(0x600, 4, device)
            machine.space.deliver_msi(0xFEEFF000, 0x45)
            machine.space.remove_ports(0x600, 4)
            machine.space.dirty_harvest()
            machine.space.write(PATCHED, code)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        machine.run_real()
    finally:
        stop.set()
        thread.join()
    assert machine.read(COUNTER, 4) == 3 * 4000
    assert machine.read(TURN, 4) > 0


class Publisher:
    """A device that, while it is read, has another thread change the address space: which waits for every vCPU."""

    def __init__(self, space: vcpu.AddressSpace) -> None:
        self.space, self.done = space, []

    def read(self, address: int, size: int) -> int:
        thread = threading.Thread(target=self.space.add_ports, args=(0x900 + len(self.done), 1, self))
        thread.start()
        thread.join(10)
        self.done.append(not thread.is_alive())
        return 0

    def write(self, address: int, size: int, value: int) -> None: ...


@pytest.mark.parametrize("device_first", [False, True])
def test_a_lock_across_ram_and_a_device_holds_nobody(device_first: bool) -> None:
    machine = Machine(2)
    device = Publisher(machine.space)
    machine.space.add_frames(0x1000000, 0x1000, device)
    machine.map(0x1F0000 if device_first else 0x1F1000, 0x1000000 | 7)
    machine.start(START_OTHERS + f"1: cmp dword ptr [{FLAG}], 0; je 1b; lock inc dword ptr [0x1F0FFE]",
                  f"mov dword ptr [{FLAG}], 1")
    machine.run_real()
    assert device.done and all(device.done)
