"""The two cascaded 8259A interrupt controllers. Source: Intel 8259A data sheet; ELCR: 82371AB §9.

    IRQ 0,1,3..7 ─► master ─► INTR of vCPU 0 (ExtINT)
    IRQ 8..15 ─► slave ─► master's input 2

Owns:    IRR, ISR, IMR of both chips and the edge/level registers at 0x4D0.
Never:   delivers by itself: it raises INTR, the processor asks for the vector (`acknowledge`).
Threads: under the machine's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node_agent.devices.base import PortRange

CASCADE = 2
ELCR_MASK = (0xF8, 0xDE)      # IRQ 0-2, 8 and 13 are edge-triggered by their wiring


@dataclass(frozen=True)
class ChipState:
    VERSION = 1
    irr: int
    imr: int
    isr: int
    pins: int
    elcr: int
    base: int
    lowest: int
    init_step: int
    init_icw4: int
    read_isr: int
    auto_eoi: int
    rotate_auto_eoi: int
    special_mask: int
    special_nested: int
    poll: int


@dataclass(frozen=True)
class PicState:
    VERSION = 1
    master: ChipState
    slave: ChipState


class Chip:
    """One 8259A. `lowest` is the input of lowest priority (7 unless rotated)."""

    def __init__(self, is_master: bool) -> None:
        self.is_master = is_master
        self.elcr = 0
        self.pins = 0
        self.clear()

    def clear(self) -> None:
        self.irr = self.imr = self.isr = self.base = 0
        self.lowest = 7
        self.init_step = self.init_icw4 = 0
        self.read_isr = self.auto_eoi = self.rotate_auto_eoi = 0
        self.special_mask = self.special_nested = self.poll = 0

    def set_pin(self, pin: int, level: bool) -> None:
        bit = 1 << pin
        if level:
            if self.elcr & bit or not self.pins & bit:
                self.irr |= bit
            self.pins |= bit
        else:
            if self.elcr & bit:
                self.irr &= ~bit
            self.pins &= ~bit

    def pending(self) -> int:
        """The input that asks for service now, or -1."""
        wanted = self.irr & ~self.imr
        if not wanted:
            return -1
        first = self._highest(wanted)
        served = self.isr & ~self.imr if self.special_mask else self.isr
        if self.is_master and self.special_nested and served & (1 << CASCADE):
            served &= ~(1 << CASCADE)
        if served and self._rank(self._highest(served)) <= self._rank(first):
            return -1
        return first

    def accept(self, pin: int) -> None:
        """INTA for `pin`."""
        bit = 1 << pin
        if self.auto_eoi:
            if self.rotate_auto_eoi:
                self.lowest = pin
        else:
            self.isr |= bit
        if not self.elcr & bit:
            self.irr &= ~bit

    def _rank(self, pin: int) -> int:
        return (pin - self.lowest - 1) & 7

    def _highest(self, mask: int) -> int:
        return min((pin for pin in range(8) if mask & (1 << pin)), key=self._rank)

    def write_command(self, value: int) -> None:
        if value & 0x10:                                     # ICW1
            self.clear()
            self.irr = self.pins & self.elcr
            self.init_step = 2
            self.init_icw4 = value & 1
        elif value & 0x08:                                   # OCW3
            self.poll = value >> 2 & 1
            if value & 0x02:
                self.read_isr = value & 1
            if value & 0x40:
                self.special_mask = value >> 5 & 1
        else:
            self._ocw2(value >> 5, value & 7)

    def _ocw2(self, command: int, level: int) -> None:
        if command in (0, 4):                                # rotate in automatic EOI mode
            self.rotate_auto_eoi = command >> 2
        elif command in (1, 5) and self.isr:                 # non-specific EOI
            pin = self._highest(self.isr)
            self.isr &= ~(1 << pin)
            if command == 5:
                self.lowest = pin
        elif command in (3, 7):                              # specific EOI
            self.isr &= ~(1 << level)
            if command == 7:
                self.lowest = level
        elif command == 6:
            self.lowest = level

    def write_data(self, value: int) -> None:
        if self.init_step == 2:
            self.base = value & 0xF8
            self.init_step = 3
        elif self.init_step == 3:                            # the cascade is wired
            self.init_step = 4 if self.init_icw4 else 0
        elif self.init_step == 4:
            self.auto_eoi = value >> 1 & 1
            self.special_nested = value >> 4 & 1
            self.init_step = 0
        else:
            self.imr = value

    def read_command(self) -> int:
        if self.poll:
            self.poll = 0
            pin = self.pending()
            if pin < 0:
                return 0
            self.accept(pin)
            return 0x80 | pin
        return self.isr if self.read_isr else self.irr

    def save(self) -> ChipState:
        return ChipState(**{name: getattr(self, name) for name in ChipState.__dataclass_fields__})

    def load(self, state: ChipState) -> None:
        for name in ChipState.__dataclass_fields__:
            setattr(self, name, getattr(state, name))


class Pic:
    """Both chips; `intr(level)` is the wire to the processor."""

    ports = (PortRange(0x20, 2), PortRange(0xA0, 2), PortRange(0x4D0, 2))

    def __init__(self, intr: Callable[[bool], None]) -> None:
        self._intr = intr
        self._intr_level = False
        self.master = Chip(is_master=True)
        self.slave = Chip(is_master=False)

    def set_pin(self, pin: int, level: bool) -> None:
        if pin < 8:
            self.master.set_pin(pin, level)
        else:
            self.slave.set_pin(pin - 8, level)
        self._update()

    def acknowledge(self) -> int:
        """The processor's INTA cycle: the vector. A request that went away is a spurious IRQ 7 or 15."""
        pin = self.master.pending()
        if pin < 0:
            vector = self.master.base | 7
        elif pin == CASCADE:
            self.master.accept(pin)
            second = self.slave.pending()
            if second < 0:
                vector = self.slave.base | 7
            else:
                self.slave.accept(second)
                vector = self.slave.base | second
        else:
            self.master.accept(pin)
            vector = self.master.base | pin
        self._update()
        return vector

    def _update(self) -> None:
        self.master.set_pin(CASCADE, self.slave.pending() >= 0)
        if self.slave.pending() < 0:
            self.master.irr &= ~(1 << CASCADE)
        level = self.master.pending() >= 0
        if level != self._intr_level:
            self._intr_level = level
            self._intr(level)

    def read(self, port: int, size: int) -> int:
        if port >= 0x4D0:
            return (self.slave if port & 1 else self.master).elcr
        chip = self.slave if port & 0x80 else self.master
        if port & 1:
            return chip.imr
        value = chip.read_command()
        self._update()
        return value

    def write(self, port: int, size: int, value: int) -> None:
        if port >= 0x4D0:
            (self.slave if port & 1 else self.master).elcr = value & ELCR_MASK[port & 1]
        else:
            chip = self.slave if port & 0x80 else self.master
            if port & 1:
                chip.write_data(value)
            else:
                chip.write_command(value)
        self._update()

    def reset(self) -> None:
        for chip in (self.master, self.slave):
            chip.clear()
            chip.elcr = 0
        self._update()

    def save(self) -> PicState:
        return PicState(self.master.save(), self.slave.save())

    def load(self, state: PicState) -> None:
        self.master.load(state.master)
        self.slave.load(state.slave)
        level = self.master.pending() >= 0
        self._intr_level = level
        self._intr(level)
