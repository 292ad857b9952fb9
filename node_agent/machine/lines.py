"""Interrupt wires: each ISA number drives a PIC input and an I/O APIC input; several devices may share one.

Owns:    how many drivers hold each wire high.
Never:   delivers.
Threads: under the machine's lock.
"""

from __future__ import annotations

from node_agent.devices.ioapic import Ioapic
from node_agent.devices.pic import Pic

TIMER_GSI = 2                        # ISA IRQ 0 arrives at I/O APIC input 2; MADT says so


class Wire:
    """One driver's end. The wire is high while any driver holds it (level), or for an instant (pulse)."""

    __slots__ = ("_hub", "_irq", "_level")

    def __init__(self, hub: Lines, irq: int) -> None:
        self._hub = hub
        self._irq = irq
        self._level = False

    def set(self, level: bool) -> None:
        if level != self._level:
            self._level = level
            self._hub.drive(self._irq, level)

    def pulse(self) -> None:
        self.set(True)
        self.set(False)


class Lines:
    def __init__(self) -> None:
        self._holders = [0] * 24
        self._pic: Pic | None = None
        self._ioapic: Ioapic | None = None

    def connect(self, pic: Pic, ioapic: Ioapic) -> None:
        self._pic, self._ioapic = pic, ioapic

    def wire(self, irq: int) -> Wire:
        return Wire(self, irq)

    def drive(self, irq: int, level: bool) -> None:
        before = self._holders[irq]
        self._holders[irq] = before + (1 if level else -1)
        if bool(before) == bool(self._holders[irq]):
            return
        if irq < 16:
            self._pic.set_pin(irq, level)
        self._ioapic.set_pin(TIMER_GSI if irq == 0 else irq, level)
