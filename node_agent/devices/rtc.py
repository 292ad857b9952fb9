"""MC146818A real-time clock with 128 bytes of CMOS, ports 0x70-0x71, IRQ 8. Source: MC146818A data sheet.

The date is `epoch` plus guest time, in UTC, years to 2261 with the century in byte 0x32 (ACPI 6.5 §5.2.9).

Owns:    the registers, the offset that the guest set, the periodic and alarm interrupts.
Never:   reads the host's clock.
Threads: under the machine's lock.
"""

from __future__ import annotations

import calendar
import time
from dataclasses import dataclass

from node_agent.devices.base import NS_PER_S, Line, PortRange, Timer, Timers

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
WEEKDAY, DAY, MONTH, YEAR, REG_A, REG_B, REG_C, REG_D = range(6, 14)
CENTURY = 0x32
CLOCK_REGISTERS = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)
A_UIP, A_DEFAULT = 0x80, 0x26
B_SET, B_PIE, B_AIE, B_UIE, B_BINARY, B_24H = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
C_IRQF, C_PF, C_AF, C_UF = 0x80, 0x40, 0x20, 0x10
D_VALID = 0x80
LAST_YEAR = 2261                 # its last second in ns still has 63 bits
UPDATE_NS = 244_000              # UIP is seen this long before each second


@dataclass(frozen=True)
class RtcState:
    VERSION = 1
    index: int
    cmos: bytes
    offset_ns: int               # date in ns = offset_ns + guest time
    frozen_s: int                # the date while SET stops the clock
    periodic_ns: int             # next deadlines, or -1
    second_ns: int


class Rtc:
    ports = (PortRange(0x70, 2),)

    def __init__(self, irq: Line, timers: Timers, epoch_s: int, memory_bytes: int) -> None:
        self._irq = irq
        self._timers = timers
        self._epoch_ns = epoch_s * NS_PER_S
        self._memory_bytes = memory_bytes
        self._periodic: Timer | None = None
        self._second: Timer | None = None
        self._periodic_ns = self._second_ns = -1
        self._offset_ns = self._epoch_ns
        self._cmos = bytearray(128)
        self.reset()

    def reset(self) -> None:
        """The battery keeps date and CMOS over a reset; interrupts are off (data sheet, RESET)."""
        self._disarm()
        self._index = 0
        self._frozen_s = 0
        self._cmos[REG_A], self._cmos[REG_B] = A_DEFAULT, B_24H
        self._cmos[REG_C], self._cmos[REG_D] = 0, D_VALID
        self._fill_memory_size()
        self._irq.set(False)

    def _fill_memory_size(self) -> None:
        """Bytes 0x15-0x18, 0x30-0x31, 0x34-0x35, where a PC BIOS leaves the memory's size."""
        extended_kib = min(max(self._memory_bytes // 1024 - 1024, 0), 0xFFFF)
        above_16m = min(max(min(self._memory_bytes, 3 << 30) - (16 << 20), 0) >> 16, 0xFFFF)
        for index, value in ((0x15, 640), (0x17, extended_kib), (0x30, extended_kib), (0x34, above_16m)):
            self._cmos[index:index + 2] = value.to_bytes(2, "little")

    def read(self, port: int, size: int) -> int:
        if not port & 1:
            return 0xFF
        index = self._index
        if index in CLOCK_REGISTERS:
            return self._encode(index, self._date_fields()[index])
        if index == REG_A:
            return self._cmos[REG_A] & ~A_UIP | (A_UIP if self._updating() else 0)
        if index == REG_C:
            value, self._cmos[REG_C] = self._cmos[REG_C], 0
            self._irq.set(False)
            return value
        return self._cmos[index]

    def write(self, port: int, size: int, value: int) -> None:
        if not port & 1:
            self._index = value & 0x7F
            return
        index = self._index
        if index in CLOCK_REGISTERS:
            self._set_date(index, value)
        elif index == REG_A:
            self._cmos[REG_A] = value & ~A_UIP
            self._arm_periodic()
        elif index == REG_B:
            self._write_b(value)
        elif index not in (REG_C, REG_D):
            self._cmos[index] = value

    def _write_b(self, value: int) -> None:
        was = self._cmos[REG_B]
        if value & B_SET and not was & B_SET:
            self._frozen_s = self._now_s()
        elif was & B_SET and not value & B_SET:
            self._offset_ns = self._frozen_s * NS_PER_S - self._timers.now_ns()
        if value & B_SET:
            value &= ~B_UIE
        self._cmos[REG_B] = value
        self._arm_periodic()
        self._arm_second()
        self._update_irq()

    # the date

    def _now_s(self) -> int:
        if self._cmos[REG_B] & B_SET:
            return self._frozen_s
        return (self._offset_ns + self._timers.now_ns()) // NS_PER_S

    def _updating(self) -> bool:
        if self._cmos[REG_B] & B_SET:
            return False
        return (self._offset_ns + self._timers.now_ns()) % NS_PER_S >= NS_PER_S - UPDATE_NS

    def _date_fields(self) -> dict[int, int]:
        date = time.gmtime(self._now_s())
        return {SECONDS: date.tm_sec, MINUTES: date.tm_min, HOURS: date.tm_hour, WEEKDAY: (date.tm_wday + 1) % 7 + 1,
                DAY: date.tm_mday, MONTH: date.tm_mon, YEAR: date.tm_year % 100, CENTURY: date.tm_year // 100}

    def _encode(self, index: int, value: int) -> int:
        mode = self._cmos[REG_B]
        pm = 0
        if index == HOURS and not mode & B_24H:
            pm = 0x80 if value >= 12 else 0
            value = value % 12 or 12
        if not mode & B_BINARY:
            value = value // 10 << 4 | value % 10
        return value | pm

    def _decode(self, index: int, value: int) -> int:
        mode = self._cmos[REG_B]
        pm = 0
        if index == HOURS and not mode & B_24H:
            pm, value = value & 0x80, value & 0x7F
        if not mode & B_BINARY:
            value = (value >> 4) * 10 + (value & 0xF)
        if index == HOURS and not mode & B_24H:
            value = value % 12 + (12 if pm else 0)
        return value

    def _set_date(self, index: int, value: int) -> None:
        """Garbage dates are brought into range one field at a time, as a counter that wraps would."""
        date = self._date_fields()
        date[index] = self._decode(index, value)
        year = min(max(date[CENTURY] * 100 + date[YEAR], 1970), LAST_YEAR)
        month = min(max(date[MONTH], 1), 12)
        day = min(max(date[DAY], 1), calendar.monthrange(year, month)[1])
        now_s = calendar.timegm((year, month, day, date[HOURS] % 24, date[MINUTES] % 60, date[SECONDS] % 60))
        if self._cmos[REG_B] & B_SET:
            self._frozen_s = now_s
        else:
            self._offset_ns = now_s * NS_PER_S - self._timers.now_ns()
            self._arm_second()

    # interrupts

    def _period_ns(self) -> int:
        rate = self._cmos[REG_A] & 0x0F
        if not rate:
            return 0
        if rate <= 2:                       # 3.90625 ms and 7.8125 ms with the 32 kHz time base
            rate += 7
        return NS_PER_S * (1 << rate - 1) // 32768

    def _arm_periodic(self) -> None:
        if self._periodic:
            self._periodic.cancel()
        self._periodic, self._periodic_ns = None, -1
        period = self._period_ns()
        if period and self._cmos[REG_B] & B_PIE:
            self._set_periodic(self._timers.now_ns() + period)

    def _set_periodic(self, deadline_ns: int) -> None:
        self._periodic_ns = deadline_ns
        self._periodic = self._timers.at(deadline_ns, self._fire_periodic)

    def _fire_periodic(self) -> None:
        period, late_ns = self._period_ns(), self._timers.now_ns() - self._periodic_ns
        self._raise(C_PF)
        if period:
            self._set_periodic(self._periodic_ns + (late_ns // period + 1) * period)

    def _arm_second(self) -> None:
        """Once a second, but only while the guest wants alarm or update interrupts."""
        if self._second:
            self._second.cancel()
        self._second, self._second_ns = None, -1
        mode = self._cmos[REG_B]
        if mode & (B_AIE | B_UIE) and not mode & B_SET:
            now_ns = self._timers.now_ns()
            self._set_second(now_ns + NS_PER_S - (self._offset_ns + now_ns) % NS_PER_S)

    def _set_second(self, deadline_ns: int) -> None:
        self._second_ns = deadline_ns
        self._second = self._timers.at(deadline_ns, self._fire_second)

    def _fire_second(self) -> None:
        self._raise(C_UF | (C_AF if self._alarm_matches() else 0))
        self._arm_second()

    def _alarm_matches(self) -> bool:
        date = self._date_fields()
        for clock, alarm in ((SECONDS, SECONDS_ALARM), (MINUTES, MINUTES_ALARM), (HOURS, HOURS_ALARM)):
            wanted = self._cmos[alarm]
            if wanted < 0xC0 and self._encode(clock, date[clock]) != wanted:     # 0xC0-0xFF: don't care
                return False
        return True

    def _raise(self, cause: int) -> None:
        self._cmos[REG_C] |= cause
        self._update_irq()

    def _update_irq(self) -> None:
        if self._cmos[REG_C] & self._cmos[REG_B] & (C_PF | C_AF | C_UF):
            self._cmos[REG_C] |= C_IRQF
            self._irq.set(True)
        else:
            self._cmos[REG_C] &= ~C_IRQF
            self._irq.set(False)

    def _disarm(self) -> None:
        for timer in (self._periodic, self._second):
            if timer:
                timer.cancel()
        self._periodic = self._second = None
        self._periodic_ns = self._second_ns = -1

    def save(self) -> RtcState:
        return RtcState(self._index, bytes(self._cmos), self._offset_ns, self._frozen_s, self._periodic_ns,
                        self._second_ns)

    def load(self, state: RtcState) -> None:
        self._disarm()
        self._index, self._cmos = state.index & 0x7F, bytearray(state.cmos)
        self._offset_ns, self._frozen_s = state.offset_ns, state.frozen_s
        if state.periodic_ns >= 0:
            self._set_periodic(state.periodic_ns)
        if state.second_ns >= 0:
            self._set_second(state.second_ns)
        self._update_irq()
