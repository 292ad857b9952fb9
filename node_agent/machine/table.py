"""The literal table of the PC's devices, and how each gets its wires.

Owns:    which device sits where. Interrupt controllers stand last: their state is loaded after all that drives them.
Never:   runs anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from node_agent.boot import layout
from node_agent.boot.acpi_tables import SCI_IRQ, pci_irq
from node_agent.devices.acpi_pm import AcpiPm
from node_agent.devices.debug import DebugConsole, DebugExit
from node_agent.devices.i8042 import I8042
from node_agent.devices.ioapic import Ioapic
from node_agent.devices.pci.function import INTERRUPT_LINE
from node_agent.devices.pci.host import PciHost
from node_agent.devices.pic import Pic
from node_agent.devices.pit import Pit
from node_agent.devices.rtc import Rtc
from node_agent.devices.uart import Uart
from node_agent.devices.virtio.block import Block
from node_agent.devices.virtio.console import Console
from node_agent.devices.virtio.rng import Rng
from node_agent.devices.virtio.transport import BAR, BAR_SIZE, Backend, VirtioPci
from node_agent.machine.lines import Lines
from node_agent.machine.spec import MachineSpec

CONSOLE_SLOT, RNG_SLOT, FIRST_DISK_SLOT = 1, 2, 3


@dataclass(frozen=True)
class Parts:
    """What devices are wired to."""

    spec: MachineSpec
    epoch_s: int
    space: Any                                   # vcpu.AddressSpace
    bus: Any
    timers: Any                                  # Timers and Tasks
    lines: Lines
    intr: Callable[[bool], None]
    byte_sink: Callable[[str, int], None]        # channel, byte
    sink: Callable[[str, bytes], None]
    entropy: Callable[[int], bytes]
    power_off: Callable[[], None]
    reset_machine: Callable[[], None]
    exit_machine: Callable[[int], None]


# name -> how it is made
ISA_DEVICES: tuple[tuple[str, Callable[[Parts], Any]], ...] = (
    ("pit", lambda parts: Pit(parts.lines.wire(0), parts.timers)),
    ("rtc", lambda parts: Rtc(parts.lines.wire(8), parts.timers, parts.epoch_s, parts.spec.memory_bytes)),
    ("ttyS0", lambda parts: Uart(0x3F8, parts.lines.wire(4), parts.timers, partial(parts.byte_sink, "ttyS0"))),
    ("ttyS1", lambda parts: Uart(0x2F8, parts.lines.wire(3), parts.timers, partial(parts.byte_sink, "ttyS1"))),
    ("i8042", lambda parts: I8042(parts.lines.wire(1), parts.reset_machine)),
    ("acpi-pm", lambda parts: AcpiPm(parts.lines.wire(SCI_IRQ), parts.timers, parts.power_off)),
    ("debug-exit", lambda parts: DebugExit(parts.exit_machine)),
    ("debug", lambda parts: DebugConsole(partial(parts.byte_sink, "debug"))),
)


def virtio_backends(parts: Parts) -> list[tuple[str, int, Backend]]:
    """(name, PCI device number, device)"""
    backends: list[tuple[str, int, Backend]] = [
        ("hvc0", CONSOLE_SLOT, Console(parts.timers, partial(parts.sink, "hvc0"))),
        ("rng", RNG_SLOT, Rng(parts.timers, parts.entropy)),
    ]
    for index, disk in enumerate(parts.spec.disks):
        block = Block(disk.path, disk.read_only, parts.space, parts.timers)
        backends.append((f"disk{index}", FIRST_DISK_SLOT + index, block))
    return backends


def build(parts: Parts) -> tuple[dict[str, Any], dict[str, Backend]]:
    """All devices by name, attached to the bus; and the virtio devices' backends by the same names."""
    pic, ioapic = Pic(parts.intr), Ioapic(parts.space.deliver_msi)
    parts.lines.connect(pic, ioapic)
    devices: dict[str, Any] = {name: make(parts) for name, make in ISA_DEVICES}
    host = devices["pci"] = PciHost(parts.bus, parts.reset_machine)
    backends = {}
    for name, slot, backend in virtio_backends(parts):
        wire = parts.lines.wire(pci_irq(slot))
        devices[name] = VirtioPci(backend, parts.space, parts.bus, wire, parts.space.deliver_msi)
        backends[name] = backend
        host.attach(slot, devices[name])
    devices["pic"], devices["ioapic"] = pic, ioapic
    for device in devices.values():
        parts.bus.attach(device)
        device.reset()                  # interrupt controllers last: they forget what the others' power-on did
    return devices, backends


def place_bars(devices: dict[str, Any]) -> None:
    """What firmware does before the system starts: addresses for BARs, numbers of interrupt lines."""
    gpa = layout.PCI_WINDOW[0]
    slot = CONSOLE_SLOT
    for device in devices.values():
        if isinstance(device, VirtioPci):
            device.write_config(INTERRUPT_LINE, 1, pci_irq(slot))
            device.place_bar(BAR, gpa)
            gpa += BAR_SIZE
            slot += 1
