"""PCI host bridge: configuration mechanism 1 at 0xCF8-0xCFF, and the reset register 0xCF9. Source: PCI 3.0 §3.2.2.3.

    0xCF8 (4 bytes): 31 enable | 23..16 bus | 15..11 device | 10..8 function | 7..2 register
    0xCF9 (1 byte):  bit 2 written with bit 1: hard reset (82371AB §10)

Owns:    bus 0 and the address latch.
Never:   knows what a function is.
Threads: under the machine's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node_agent.devices.base import PortRange
from node_agent.devices.pci.function import Identity, PciFunction, PciState, Windows

CONFIG_ADDRESS, RESET_CONTROL, CONFIG_DATA = 0xCF8, 0xCF9, 0xCFC
ENABLE = 1 << 31
RESET_CPU = 0x04
HOST_BRIDGE = Identity(vendor=0x8086, device=0x1237, class_code=0x060000, revision=2)


@dataclass(frozen=True)
class PciHostState:
    VERSION = 1
    address: int
    reset_control: int
    bridge: PciState


class PciHost:
    ports = (PortRange(CONFIG_ADDRESS, 8),)
    wide = True

    def __init__(self, windows: Windows, reset_machine: Callable[[], None]) -> None:
        self._reset_machine = reset_machine
        self._bridge = PciFunction(HOST_BRIDGE, windows)
        self._functions: dict[int, PciFunction] = {0: self._bridge}      # device number -> function 0
        self._address = 0
        self._reset_control = 0

    def attach(self, number: int, function: PciFunction) -> None:
        if number in self._functions or not 0 < number < 32:
            raise ValueError(f"PCI device {number} is taken or out of range")
        self._functions[number] = function

    def _selected(self) -> PciFunction | None:
        address = self._address
        if not address & ENABLE or address >> 16 & 0xFF or address >> 8 & 7:
            return None
        return self._functions.get(address >> 11 & 0x1F)

    def read(self, port: int, size: int) -> int:
        if port >= CONFIG_DATA:
            function = self._selected()
            if function is None:
                return (1 << 8 * size) - 1
            return function.read_config((self._address & 0xFC) + (port & 3), size)
        if port == RESET_CONTROL and size == 1:
            return self._reset_control
        return self._address >> 8 * (port & 3) & (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        if port >= CONFIG_DATA:
            function = self._selected()
            if function is not None:
                function.write_config((self._address & 0xFC) + (port & 3), size, value)
        elif port == CONFIG_ADDRESS and size == 4:
            self._address = value & 0x80FFFFFC
        elif port == RESET_CONTROL and size == 1:
            self._reset_control = value & 0x0A
            if value & RESET_CPU:
                self._reset_machine()

    def reset(self) -> None:
        self._address = self._reset_control = 0
        self._bridge.reset()

    def save(self) -> PciHostState:
        return PciHostState(self._address, self._reset_control, self._bridge.save())

    def load(self, state: PciHostState) -> None:
        self._address, self._reset_control = state.address, state.reset_control
        self._bridge.load(state.bridge)
