"""One PCI function: 256 bytes of configuration, up to six BARs, INTx and MSI-X. Source: PCI 3.0 §6.

Owns:    the configuration space, which of its bits can be written, where the BARs are mapped.
Never:   lets a guest's address stop it: a BAR put over something else is not mapped until it moves away.
Threads: under the machine's lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from node_agent.devices.base import FrameRange, Line
from node_agent.devices.pci.msix import Msix, MsixState

COMMAND, STATUS, BAR0, CAP_POINTER, INTERRUPT_LINE = 0x04, 0x06, 0x10, 0x34, 0x3C
COMMAND_MEMORY, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE = 0x002, 0x004, 0x400
COMMAND_WRITABLE = 0x0547
STATUS_INTERRUPT, STATUS_CAPABILITIES = 0x08, 0x10
BAR_64BIT = 0x4
CAP_MSIX = 0x11


class Windows(Protocol):
    """Where BARs are mapped: the machine's bus. ValueError if something else is there."""

    def map_frames(self, where: FrameRange, device: object) -> None: ...
    def unmap_frames(self, where: FrameRange) -> None: ...


@dataclass(frozen=True)
class PciState:
    VERSION = 1
    config: bytes
    msix: MsixState | None


@dataclass(frozen=True)
class Identity:
    vendor: int
    device: int
    class_code: int               # class, subclass, programming interface
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0


class BarWindow:
    """What the bus calls for accesses to one BAR: offsets instead of addresses. It moves with the BAR."""

    wide = True

    def __init__(self, function: PciFunction, number: int) -> None:
        self._function, self._number = function, number
        self.gpa = 0

    def read(self, gpa: int, size: int) -> int:
        return self._function.read_bar(self._number, gpa - self.gpa, size)

    def write(self, gpa: int, size: int, value: int) -> None:
        self._function.write_bar(self._number, gpa - self.gpa, size, value)


class PciFunction:
    def __init__(self, identity: Identity, windows: Windows, intx: Line | None = None) -> None:
        self._identity = identity
        self._windows = windows
        self._intx = intx
        self._intx_level = False
        self.config = bytearray(256)
        self._writable = bytearray(256)
        self.bars: dict[int, int] = {}               # number -> size; 64-bit ones take two numbers
        self._mapped: dict[int, FrameRange] = {}
        self._bar_windows: dict[int, BarWindow] = {}
        self.msix: Msix | None = None
        self._msix_at = 0
        self._next_cap = 0x40
        self._describe()

    def _describe(self) -> None:
        who = self._identity
        for offset, size, value in ((0, 2, who.vendor), (2, 2, who.device), (8, 1, who.revision),
                                    (9, 3, who.class_code), (0x2C, 2, who.subsystem_vendor), (0x2E, 2, who.subsystem)):
            self.config[offset:offset + size] = value.to_bytes(size, "little")
        self.config[0x3D] = 1 if self._intx else 0   # INTA#
        self._writable[COMMAND:COMMAND + 2] = COMMAND_WRITABLE.to_bytes(2, "little")
        self._writable[INTERRUPT_LINE] = 0xFF
        self._writable[0x0C] = 0xFF                  # cache line size

    # for those who build functions

    def add_bar(self, number: int, size: int) -> None:
        """A 64-bit memory BAR of `size` bytes (a power of two, at least 4096)."""
        self.bars[number] = size
        self._bar_windows[number] = BarWindow(self, number)
        at = BAR0 + 4 * number
        self.config[at] |= BAR_64BIT
        self._writable[at:at + 8] = (-size & (1 << 64) - 1).to_bytes(8, "little")

    def add_capability(self, identity: int, body: bytes, writable: bytes = b"") -> int:
        """Append to the list; its offset. `body` is what follows identity and next pointer."""
        at = self._next_cap
        previous = CAP_POINTER
        while self.config[previous]:
            previous = self.config[previous] + 1
        self.config[previous] = at
        self.config[at:at + 2 + len(body)] = bytes((identity, 0)) + body
        self._writable[at + 2:at + 2 + len(writable)] = writable
        self.config[STATUS] |= STATUS_CAPABILITIES
        self._next_cap = at + 2 + len(body) + 3 & ~3
        return at

    def add_msix(self, msix: Msix, bar: int, table_at: int, pending_at: int) -> None:
        self.msix = msix
        body = (msix.vectors - 1).to_bytes(2, "little") + (table_at | bar).to_bytes(4, "little") \
            + (pending_at | bar).to_bytes(4, "little")
        self._msix_at = self.add_capability(CAP_MSIX, body, b"\x00\xC0")

    def place_bar(self, number: int, gpa: int) -> None:
        """As firmware does: the BAR's first address, and memory decoding on."""
        at = BAR0 + 4 * number
        low_bits = self.config[at] & 0xF
        self.config[at:at + 8] = (gpa | low_bits).to_bytes(8, "little")
        self.write_config(COMMAND, 2, self._command() | COMMAND_MEMORY)

    # the guest's side

    def read_config(self, offset: int, size: int) -> int:
        return int.from_bytes(self.config[offset:offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        for index in range(offset, min(offset + size, 256)):
            mask = self._writable[index]
            self.config[index] = self.config[index] & ~mask | value & 0xFF & mask
            value >>= 8
        end = offset + size
        if offset < BAR0 + 24 and end > COMMAND:
            self._map_bars()
            self._update_intx()
        if self.msix and offset < self._msix_at + 4 and end > self._msix_at + 2:
            self.msix.set_control(self.read_config(self._msix_at + 2, 2))
            self._update_intx()

    def read_bar(self, number: int, offset: int, size: int) -> int:
        return 0

    def write_bar(self, number: int, offset: int, size: int, value: int) -> None: ...

    def set_intx(self, level: bool) -> None:
        """The function's wish; the wire follows unless MSI-X or the command register says no."""
        self._intx_level = level
        self.config[STATUS] = self.config[STATUS] & ~STATUS_INTERRUPT | (STATUS_INTERRUPT if level else 0)
        self._update_intx()

    def _command(self) -> int:
        return self.read_config(COMMAND, 2)

    def _update_intx(self) -> None:
        if self._intx:
            masked = self._command() & COMMAND_INTX_DISABLE or (self.msix and self.msix.enabled)
            self._intx.set(self._intx_level and not masked)

    def _map_bars(self) -> None:
        decoding = bool(self._command() & COMMAND_MEMORY)
        for number, size in self.bars.items():
            at = BAR0 + 4 * number
            gpa = int.from_bytes(self.config[at:at + 8], "little") & ~0xF
            wanted = FrameRange(gpa, size) if decoding and 0 < gpa < 1 << 40 else None
            if self._mapped.get(number) == wanted:
                continue
            if number in self._mapped:
                self._windows.unmap_frames(self._mapped.pop(number))
            if wanted:
                self._bar_windows[number].gpa = gpa
                try:
                    self._windows.map_frames(wanted, self._bar_windows[number])
                except ValueError:               # over memory or another device: hardware would fight, we wait
                    continue
                self._mapped[number] = wanted

    def reset(self) -> None:
        self.write_config(COMMAND, 2, 0)
        for number in self.bars:
            self.write_config(BAR0 + 4 * number, 8, 0)
        self.config[INTERRUPT_LINE] = 0
        if self.msix:
            self.msix.reset()
            self.write_config(self._msix_at + 2, 2, 0)
        self.set_intx(False)

    def save(self) -> PciState:
        return PciState(bytes(self.config), self.msix.save() if self.msix else None)

    def load(self, state: PciState) -> None:
        for index, mask in enumerate(self._writable):
            self.config[index] = self.config[index] & ~mask | state.config[index] & mask
        if self.msix and state.msix:
            self.msix.load(state.msix)
        self._map_bars()
        self.set_intx(bool(state.config[STATUS] & STATUS_INTERRUPT))
