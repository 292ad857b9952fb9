"""8254 interval timer, ports 0x40-0x43, and the system control port 0x61. Source: Intel 8254 data sheet.

    channel 0 ─► IRQ 0      channel 1: nothing (memory refresh once)      channel 2 ─► port 0x61 bit 5, gate: bit 0

Counters are not counted down: what they hold is computed from guest time since they were loaded.

Owns:    three channels, their latches, and channel 0's alarm.
Never:   reads a clock other than the one given.
Threads: under the machine's lock.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from node_agent.devices.base import NS_PER_S, Line, PortRange, Timer, Timers

PIT_HZ = 1_193_182
COMMAND = 0x43
CONTROL_PORT = 0x61
MIN_PERIOD_NS = 50_000       # edges that come closer are one: a counter of 1 would be 1.2 million interrupts a second
REFRESH_NS = 15_085          # port 0x61 bit 4 toggles with the memory refresh


@dataclass(frozen=True)
class ChannelState:
    VERSION = 1
    count: int               # as loaded, 1..65536
    mode: int
    access: int              # 1 low byte, 2 high byte, 3 low then high
    bcd: int
    gate: int
    start_ns: int            # guest time when counting began
    armed: int               # a count was written since the mode was set
    triggered: int           # modes 1 and 5: the gate rose
    write_low: int           # the low byte that waits for its high byte, or -1
    read_high: int           # the next read gives the high byte
    latch: int               # latched count, or -1
    latch_left: int
    status: int              # latched status, or -1


@dataclass(frozen=True)
class PitState:
    VERSION = 1
    channels: tuple[ChannelState, ...]
    speaker: int
    next_ns: int             # channel 0's alarm, or -1


def ticks(ns: int) -> int:
    return ns * PIT_HZ // NS_PER_S


def ticks_to_ns(count: int) -> int:
    return -(-count * NS_PER_S // PIT_HZ)


class Channel:
    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self.reset()

    def reset(self) -> None:
        self.count, self.mode, self.access, self.bcd = 0x10000, 3, 3, 0
        self.gate, self.start_ns, self.armed, self.triggered = 1, 0, 0, 0
        self.write_low, self.read_high = -1, 0
        self.latch, self.latch_left, self.status = -1, 0, -1

    @property
    def running(self) -> bool:
        return bool(self.armed and (self.triggered if self.mode in (1, 5) else self.gate))

    def elapsed(self) -> int:
        return ticks(self._timers.now_ns() - self.start_ns) if self.running else 0

    def value(self) -> int:
        """What the counter holds now, 0..0xFFFF."""
        gone = self.elapsed()
        if self.mode in (2, 3):
            if self.mode == 3:
                gone *= 2
                return (self.count - gone % self.count) & 0xFFFE
            return (self.count - gone % self.count) & 0xFFFF
        return (self.count - gone) & 0xFFFF

    def out(self) -> bool:
        gone = self.elapsed()
        if self.mode in (0, 1):
            return self.running and gone >= self.count if self.mode == 0 else not (self.running and gone < self.count)
        if self.mode == 2:
            return not (self.running and gone % self.count == self.count - 1)
        if self.mode == 3:
            return not self.running or gone % self.count < (self.count + 1) // 2
        return not (self.running and gone == self.count)

    def set_mode(self, value: int) -> None:
        self.access = value >> 4 & 3
        self.mode = value >> 1 & 7
        if self.mode > 5:
            self.mode -= 4
        self.bcd = value & 1
        self.write_low, self.read_high = -1, 0
        self.latch, self.latch_left = -1, 0
        self.armed = self.triggered = 0

    def write(self, value: int) -> bool:
        """One byte of the count; True when the count is whole and counting starts anew."""
        if self.access == 3:
            if self.write_low < 0:
                self.write_low = value
                return False
            value, self.write_low = self.write_low | value << 8, -1
        elif self.access == 2:
            value <<= 8
        self.count = (from_bcd(value) or 10000) if self.bcd else (value or 0x10000)
        self.armed = 1
        self.start_ns = self._timers.now_ns()
        return True

    def set_gate(self, gate: int) -> None:
        if gate and not self.gate:
            if self.mode in (1, 2, 3, 5):
                self.start_ns = self._timers.now_ns()
            if self.mode in (1, 5):
                self.triggered = 1
        self.gate = gate

    def latch_count(self) -> None:
        if self.latch < 0:
            self.latch = self._shown(self.value())
            self.latch_left = 2 if self.access == 3 else 1

    def latch_status(self) -> None:
        if self.status < 0:
            self.status = self.out() << 7 | (not self.armed) << 6 | self.access << 4 | self.mode << 1 | self.bcd

    def _shown(self, value: int) -> int:
        return to_bcd(value) if self.bcd else value

    def read(self) -> int:
        if self.status >= 0:
            value, self.status = self.status, -1
            return value
        value = self.latch if self.latch >= 0 else self._shown(self.value())
        high = self.access == 2
        if self.access == 3:
            high = bool(self.read_high)
            self.read_high ^= 1
        if self.latch >= 0:
            self.latch_left -= 1
            if self.latch_left <= 0:
                self.latch = -1
        return value >> 8 & 0xFF if high else value & 0xFF

    def save(self) -> ChannelState:
        return ChannelState(**{field.name: getattr(self, field.name) for field in fields(ChannelState)})

    def load(self, state: ChannelState) -> None:
        for field in fields(ChannelState):
            setattr(self, field.name, getattr(state, field.name))


class Pit:
    ports = (PortRange(0x40, 4), PortRange(CONTROL_PORT, 1))

    def __init__(self, irq: Line, timers: Timers) -> None:
        self._irq = irq
        self._timers = timers
        self._channels = [Channel(timers) for _ in range(3)]
        self._alarm: Timer | None = None
        self._next_ns = -1
        self._speaker = 0
        self._channels[2].gate = 0

    def read(self, port: int, size: int) -> int:
        if port == CONTROL_PORT:
            refresh = self._timers.now_ns() // REFRESH_NS & 1
            two = self._channels[2]
            return two.gate | self._speaker << 1 | refresh << 4 | two.out() << 5
        return 0 if port == COMMAND else self._channels[port & 3].read()

    def write(self, port: int, size: int, value: int) -> None:
        if port == CONTROL_PORT:
            self._speaker = value >> 1 & 1
            self._channels[2].set_gate(value & 1)
        elif port == COMMAND:
            self._command(value)
        elif self._channels[port & 3].write(value) and port == 0x40:
            self._start_channel_0()

    def _command(self, value: int) -> None:
        number = value >> 6
        if number == 3:                                     # read-back
            for index, channel in enumerate(self._channels):
                if value & 2 << index:
                    if not value & 0x20:
                        channel.latch_count()
                    if not value & 0x10:
                        channel.latch_status()
        elif value & 0x30 == 0:
            self._channels[number].latch_count()
        else:
            self._channels[number].set_mode(value)
            if number == 0:
                self._disarm()
                self._irq.set(self._channels[0].mode not in (0,))

    def _start_channel_0(self) -> None:
        self._disarm()
        channel = self._channels[0]
        if channel.mode in (1, 5):                          # its gate is tied high: it never rises
            return
        self._irq.set(channel.mode != 0)
        self._arm(channel.start_ns + ticks_to_ns(channel.count))

    def _arm(self, deadline_ns: int) -> None:
        self._next_ns = deadline_ns
        self._alarm = self._timers.at(deadline_ns, self._fire)

    def _disarm(self) -> None:
        if self._alarm:
            self._alarm.cancel()
        self._alarm, self._next_ns = None, -1

    def _fire(self) -> None:
        channel = self._channels[0]
        self._alarm, self._next_ns = None, -1
        self._irq.set(False)
        self._irq.set(True)
        if channel.mode in (2, 3):
            # the n-th edge belongs at n periods after the start: no drift; what we slept through is lost
            gone = ticks(self._timers.now_ns() + MIN_PERIOD_NS - channel.start_ns) // channel.count
            self._arm(channel.start_ns + ticks_to_ns((gone + 1) * channel.count))

    def reset(self) -> None:
        self._disarm()
        for channel in self._channels:
            channel.reset()
        self._channels[2].gate = 0
        self._speaker = 0
        self._irq.set(True)                 # OUT is high until a count begins: programming it makes no edge

    def save(self) -> PitState:
        return PitState(tuple(channel.save() for channel in self._channels), self._speaker, self._next_ns)

    def load(self, state: PitState) -> None:
        self._disarm()
        for channel, saved in zip(self._channels, state.channels, strict=True):
            channel.load(saved)
        self._speaker = state.speaker
        if state.next_ns >= 0:
            self._arm(state.next_ns)


def from_bcd(value: int) -> int:
    return sum((value >> 4 * digit & 0xF) * 10 ** digit for digit in range(4))


def to_bcd(value: int) -> int:
    return sum((value // 10 ** digit % 10) << 4 * digit for digit in range(4))
