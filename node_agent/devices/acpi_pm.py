"""ACPI power management, ports 0x600-0x60B, SCI on IRQ 9. Source: ACPI 6.5 §4.8. Addresses as PIIX4 has them in QEMU.

    0x600 PM1_STS   0x602 PM1_EN   0x604 PM1_CNT   0x608 PM_TMR (24 bits, 3.579545 MHz)

Always in ACPI mode (SCI_EN set, no SMI_CMD). S5 has SLP_TYP 0.

Owns:    the fixed registers and the SCI line.
Never:   ends the machine itself: it calls `power_off`.
Threads: under the machine's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node_agent.devices.base import NS_PER_S, Line, PortRange, Timer, Timers

PM_BASE = 0x600
PM1_STS, PM1_EN, PM1_CNT, PM_TMR = 0x0, 0x2, 0x4, 0x8
PM_TIMER_HZ = 3_579_545
TMR_STS, GBL_STS, PWRBTN_STS, RTC_STS, WAK_STS = 1 << 0, 1 << 5, 1 << 8, 1 << 10, 1 << 15
EN_MASK = TMR_STS | GBL_STS | PWRBTN_STS | RTC_STS
SCI_EN, SLP_EN = 1 << 0, 1 << 13
SLP_TYP_S5 = 0
CNT_MASK = 0x1C07 & ~SCI_EN
TMR_HALF = 1 << 23                     # TMR_STS is set when bit 23 changes


@dataclass(frozen=True)
class AcpiPmState:
    VERSION = 1
    status: int
    enable: int
    control: int


class AcpiPm:
    ports = (PortRange(PM_BASE, 12),)
    wide = True

    def __init__(self, sci: Line, timers: Timers, power_off: Callable[[], None]) -> None:
        self._sci = sci
        self._timers = timers
        self._power_off = power_off
        self._alarm: Timer | None = None
        self._seen_half = 0
        self.reset()

    def reset(self) -> None:
        self._status = self._enable = self._control = 0
        self._seen_half = self._ticks() // TMR_HALF
        self._update()

    def press_power_button(self) -> None:
        self._status |= PWRBTN_STS
        self._update()

    def _ticks(self) -> int:
        return self._timers.now_ns() * PM_TIMER_HZ // NS_PER_S

    def _update(self) -> None:
        self._sci.set(bool(self._status & self._enable & EN_MASK))
        if self._enable & TMR_STS and self._alarm is None:
            self._arm()
        elif not self._enable & TMR_STS and self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _arm(self) -> None:
        half = self._ticks() // TMR_HALF + 1
        self._alarm = self._timers.at(-(-half * TMR_HALF * NS_PER_S // PM_TIMER_HZ), self._overflow)

    def _overflow(self) -> None:
        self._alarm = None
        self._note_overflow()
        self._update()

    def _note_overflow(self) -> None:
        half = self._ticks() // TMR_HALF
        if half != self._seen_half:
            self._seen_half = half
            self._status |= TMR_STS

    def _word(self, offset: int) -> int:
        if offset == PM1_STS:
            self._note_overflow()
            return self._status
        if offset == PM1_EN:
            return self._enable
        return self._control | SCI_EN if offset == PM1_CNT else 0

    def read(self, port: int, size: int) -> int:
        offset = port - PM_BASE
        if offset >= PM_TMR:
            return (self._ticks() & 0xFFFFFF) >> 8 * (offset - PM_TMR) & (1 << 8 * size) - 1
        value = self._word(offset & 6) | self._word((offset & 6) + 2) << 16
        return value >> 8 * (offset & 1) & (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        offset = port - PM_BASE
        while size > 0:                              # one register after the other, whole or a byte of it
            register, shift = offset & 6, 8 * (offset & 1)
            width = min(size, 2 - (offset & 1))
            mask = (1 << 8 * width) - 1
            self._write_word(register, (value & mask) << shift, mask << shift)
            value, size, offset = value >> 8 * width, size - width, offset + width
        self._update()

    def _write_word(self, register: int, value: int, mask: int) -> None:
        if register == PM1_STS:
            self._status &= ~value                   # write 1 to clear
        elif register == PM1_EN:
            self._enable = (self._enable & ~mask | value) & EN_MASK
        elif register == PM1_CNT:
            self._control = (self._control & ~mask | value) & CNT_MASK
            if value & SLP_EN and self._control >> 10 & 7 == SLP_TYP_S5:
                self._power_off()

    def save(self) -> AcpiPmState:
        return AcpiPmState(self._status, self._enable, self._control)

    def load(self, state: AcpiPmState) -> None:
        self._status, self._enable, self._control = state.status, state.enable, state.control
        self._seen_half = self._ticks() // TMR_HALF
        self._update()
