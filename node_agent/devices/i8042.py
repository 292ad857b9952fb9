"""8042 keyboard controller with a keyboard that nobody types on, ports 0x60 and 0x64. Source: IBM PS/2 TRM, 8042.

Guests use it to reset the machine (0xFE), to open A20, and to find out that it is there.

Owns:    command byte, output buffer, the keyboard's few answers.
Never:   resets anything itself: it calls `reset_machine`.
Threads: under the machine's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from node_agent.devices.base import Line, PortRange

DATA, COMMAND = 0x60, 0x64
STATUS_OBF, STATUS_SYSTEM, STATUS_COMMAND, STATUS_UNLOCKED, STATUS_AUX = 0x01, 0x04, 0x08, 0x10, 0x20
MODE_KBD_INT, MODE_AUX_INT, MODE_SYSTEM, MODE_KBD_OFF, MODE_AUX_OFF = 0x01, 0x02, 0x04, 0x10, 0x20
OUTPORT_RESET, OUTPORT_A20 = 0x01, 0x02
KBD_ACK, KBD_RESEND, KBD_SELF_TEST_OK = 0xFA, 0xFE, 0xAA
KBD_ID = (0xAB, 0x83)
KBD_WITH_PARAMETER = (0xED, 0xF0, 0xF3)
QUEUE_SIZE = 32


@dataclass(frozen=True)
class I8042State:
    VERSION = 1
    mode: int
    output_port: int
    last_was_command: int
    parameter_of: int          # command that waits for its byte, or -1
    kbd_parameter_of: int
    scan_set: int
    queue: bytes               # pairs: source (0 controller or keyboard, 1 aux), byte


class I8042:
    ports = (PortRange(DATA, 1), PortRange(COMMAND, 1))

    def __init__(self, irq: Line, reset_machine: Callable[[], None]) -> None:
        self._irq = irq
        self._reset_machine = reset_machine
        self._queue: deque[tuple[int, int]] = deque()
        self.reset()

    def reset(self) -> None:
        self._mode = MODE_SYSTEM | MODE_KBD_INT
        self._output_port = OUTPORT_RESET | OUTPORT_A20
        self._last_was_command = 0
        self._parameter_of = self._kbd_parameter_of = -1
        self._scan_set = 2
        self._queue.clear()
        self._irq.set(False)

    def read(self, port: int, size: int) -> int:
        if port == COMMAND:
            status = STATUS_SYSTEM | STATUS_UNLOCKED | (STATUS_COMMAND if self._last_was_command else 0)
            if self._queue:
                status |= STATUS_OBF | (STATUS_AUX if self._queue[0][0] else 0)
            return status
        value = self._queue.popleft()[1] if self._queue else 0
        self._irq.set(False)             # the next byte is a new edge
        self._update_irq()
        return value

    def write(self, port: int, size: int, value: int) -> None:
        self._last_was_command = int(port == COMMAND)
        if port == COMMAND:
            self._command(value)
        elif self._parameter_of >= 0:
            command, self._parameter_of = self._parameter_of, -1
            self._parameter(command, value)
        else:
            self._mode &= ~MODE_KBD_OFF
            self._keyboard(value)

    def _put(self, *values: int, aux: int = 0) -> None:
        for value in values:
            if len(self._queue) < QUEUE_SIZE:
                self._queue.append((aux, value))
        self._update_irq()

    def _update_irq(self) -> None:
        wanted = bool(self._queue) and not self._queue[0][0] and bool(self._mode & MODE_KBD_INT)
        self._irq.set(wanted and not self._mode & MODE_KBD_OFF)

    def _command(self, value: int) -> None:
        self._parameter_of = -1
        if value == 0x20:
            self._put(self._mode)
        elif value in (0x60, 0xD1, 0xD2, 0xD3, 0xD4):
            self._parameter_of = value
        elif value in (0xA7, 0xA8):
            self._mode = self._mode | MODE_AUX_OFF if value == 0xA7 else self._mode & ~MODE_AUX_OFF
        elif value == 0xA9:
            self._put(0xFF)                              # no auxiliary interface
        elif value == 0xAA:
            self._mode |= MODE_SYSTEM
            self._put(0x55)
        elif value == 0xAB:
            self._put(0x00)
        elif value in (0xAD, 0xAE):
            self._mode = self._mode | MODE_KBD_OFF if value == 0xAD else self._mode & ~MODE_KBD_OFF
            self._update_irq()
        elif value == 0xC0:
            self._put(0x80)                              # input port: not locked
        elif value == 0xD0:
            self._put(self._output_port)
        elif value >= 0xF0 and not value & 1:            # pulse output bit 0: reset
            self._reset_machine()

    def _parameter(self, command: int, value: int) -> None:
        if command == 0x60:
            self._mode = value & 0x7F
            self._update_irq()
        elif command == 0xD1:
            self._output_port = value | OUTPORT_RESET
            if not value & OUTPORT_RESET:
                self._reset_machine()
        elif command == 0xD2:
            self._put(value)
        # 0xD3 and 0xD4 speak to a mouse: there is none, so nothing answers

    def _keyboard(self, value: int) -> None:
        if self._kbd_parameter_of >= 0:
            command, self._kbd_parameter_of = self._kbd_parameter_of, -1
            if command == 0xF0 and value == 0:
                self._put(KBD_ACK, self._scan_set)
                return
            if command == 0xF0 and value <= 3:
                self._scan_set = value
            self._put(KBD_ACK)
        elif value in KBD_WITH_PARAMETER:
            self._kbd_parameter_of = value
            self._put(KBD_ACK)
        elif value == 0xEE:
            self._put(0xEE)
        elif value == 0xF2:
            self._put(KBD_ACK, *KBD_ID)
        elif value == 0xFF:
            self._put(KBD_ACK, KBD_SELF_TEST_OK)
        elif value in (0xF4, 0xF5, 0xF6):
            self._put(KBD_ACK)
        else:
            self._put(KBD_RESEND)

    def save(self) -> I8042State:
        queue = bytes(byte for pair in self._queue for byte in pair)
        return I8042State(self._mode, self._output_port, self._last_was_command, self._parameter_of,
                          self._kbd_parameter_of, self._scan_set, queue)

    def load(self, state: I8042State) -> None:
        self._mode, self._output_port = state.mode, state.output_port
        self._last_was_command = state.last_was_command
        self._parameter_of, self._kbd_parameter_of = state.parameter_of, state.kbd_parameter_of
        self._scan_set = state.scan_set
        self._queue = deque(zip(state.queue[::2], state.queue[1::2], strict=False))
        self._update_irq()
