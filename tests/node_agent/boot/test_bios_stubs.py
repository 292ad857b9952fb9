"""Real-mode code that calls a BIOS comes back: with CF where there is no such function, with the memory's size."""

import vcpu
from node_agent.boot import layout
from node_agent.boot.loader import write_bios_stubs


def run_real(program: bytes) -> vcpu.Vcpu:
    space = vcpu.AddressSpace(2 << 20)
    write_bios_stubs(space)
    space.write(0x1000, program)
    cpu, vmcs = vcpu.Vcpu(space, vcpu.Clock("virtual")), vcpu.Vmcs()
    vmcs[vcpu.GUEST_CS_SELECTOR], vmcs[vcpu.GUEST_CS_BASE] = 0, 0
    vmcs[vcpu.GUEST_RIP], vmcs[vcpu.GUEST_RSP] = 0x1000, 0x7000
    assert cpu.run(vmcs, quantum=1000).reason == vcpu.EXIT_REASON_HLT
    assert cpu.get("rip") == 0x1000 + len(program)
    return cpu


def test_an_unknown_function_is_refused() -> None:
    assert run_real(b"\xf8\xcd\x13\xf4").get("rflags") & 1          # clc; int 0x13; hlt


def test_the_size_of_low_memory() -> None:
    assert run_real(b"\xcd\x12\xf4").get("rax") == layout.EBDA >> 10


def test_hardware_interrupts_return() -> None:
    assert run_real(b"\xf9\xcd\x08\xcd\x74\xf4").get("rsp") == 0x7000
