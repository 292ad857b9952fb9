"""Receives every VM exit of a vCPU and decides what follows. Reasons: Intel SDM 3C appendix C.

Most exits never come here: ports and frames that devices own are served inside the instruction, and counted.

Owns:    the table from reason to handler.
Never:   blocks.
Threads: each vCPU's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import vcpu

KVM_ENOSYS = 1000                  # how Linux's hypercalls are told that there is no such call


class Machine(Protocol):
    """What the dispatcher may do to the machine."""

    def triple_fault(self, index: int) -> None: ...
    def fail(self, why: str) -> None: ...


def reason_name(reason: int) -> str:
    return vcpu.EXIT_REASON_NAMES.get(reason, f"reason_{reason}").lower()


class Dispatcher:
    def __init__(self, machine: Machine, cpu: Any, vmcs: Any, index: int) -> None:
        self._machine = machine
        self._cpu = cpu
        self._vmcs = vmcs
        self._index = index
        self._handlers: dict[int, Callable[[Any], None]] = {
            vcpu.EXIT_REASON_EXTERNAL_INTERRUPT: self._nothing,      # somebody kicked: the loop looks why
            vcpu.EXIT_REASON_PREEMPTION_TIMER: self._nothing,        # a deadline: the loop looks whose
            vcpu.EXIT_REASON_HLT: self._nothing,
            vcpu.EXIT_REASON_TRIPLE_FAULT: self._triple_fault,
            vcpu.EXIT_REASON_VMCALL: self._vmcall,
        }

    def handle(self, vm_exit: Any) -> None:
        handler = self._handlers.get(vm_exit.reason)
        if handler is None:
            self._machine.fail(f"vCPU {self._index} left with {vm_exit!r}\n{describe(self._cpu.registers())}")
        else:
            handler(vm_exit)

    def _nothing(self, vm_exit: Any) -> None: ...

    def _triple_fault(self, vm_exit: Any) -> None:
        self._machine.triple_fault(self._index)

    def _vmcall(self, vm_exit: Any) -> None:
        """No hypercall is offered: every number is unknown."""
        self._cpu.set("rax", -KVM_ENOSYS & (1 << 64) - 1)
        self._vmcs[vcpu.GUEST_RIP] += vm_exit.instruction_length


def describe(registers: dict[str, Any]) -> str:
    """The processor's state for people: four registers a line."""
    cells = [f"{name:>9} {value:016x}" if isinstance(value, int) else f"{name:>9} {value}"
             for name, value in registers.items()]
    return "\n".join("  ".join(cells[at:at + 4]) for at in range(0, len(cells), 4))
