"""16550A serial port with FIFOs. Source: National PC16550D data sheet.

What is sent is out at once: the transmitter is always empty, so a byte costs one port write and, with interrupts, one
THRE per FIFO load. Received bytes wait in `_backlog` until the guest makes room in its FIFO. Clearing the FIFO, as drivers
do when they start, puts its bytes back and holds them a moment: what was piped in before the system was up isn't lost.

Owns:    the registers, both FIFOs and the host's unread input (bounded).
Never:   writes to a terminal: bytes go to `sink`.
Threads: under the machine's lock; `receive` as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from node_agent.devices.base import Line, PortRange, Timer, Timers

FIFO_SIZE = 16
BACKLOG_SIZE = 1 << 16
HOLD_NS = 2_000_000              # a driver's start takes less
IER_RDI, IER_THRI, IER_RLSI, IER_MSI = 1, 2, 4, 8
IIR_NONE, IIR_MSI, IIR_THRI, IIR_RDI, IIR_RLSI, IIR_TIMEOUT, IIR_FIFOS = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C, 0xC0
FCR_ENABLE, FCR_CLEAR_RX, FCR_CLEAR_TX = 1, 2, 4
LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 1, 2, 4, 8, 16
LSR_DR, LSR_OE, LSR_THRE, LSR_TEMT = 0x01, 0x02, 0x20, 0x40
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
TRIGGERS = (1, 4, 8, 14)


@dataclass(frozen=True)
class UartState:
    VERSION = 1
    ier: int
    fcr: int
    lcr: int
    mcr: int
    msr_delta: int
    scratch: int
    divisor: int
    overrun: int
    thre_pending: int
    fifo: bytes
    backlog: bytes


class Uart:
    def __init__(self, base: int, irq: Line, timers: Timers, sink: Callable[[int], None]) -> None:
        self.ports = (PortRange(base, 8),)
        self._irq = irq
        self._timers = timers
        self._hold: Timer | None = None
        self._sink = sink
        self._fifo: deque[int] = deque()
        self._backlog: deque[int] = deque()
        self.reset()

    def reset(self) -> None:
        self._ier = self._fcr = self._lcr = self._mcr = self._scratch = 0
        self._divisor = 12                       # 9600 baud
        self._msr_delta = 0
        self._overrun = 0
        self._thre_pending = False
        self._fifo.clear()
        self._backlog.clear()
        self._irq.set(False)

    # from the host

    def receive(self, data: bytes) -> int:
        """Input for the guest; how many bytes were taken. More than BACKLOG_SIZE unread is refused."""
        room = BACKLOG_SIZE - len(self._backlog)
        taken = data[:max(room, 0)]
        self._backlog.extend(taken)
        self._refill()
        return len(taken)

    def _refill(self) -> None:
        if self._mcr & MCR_LOOP or self._hold:
            return
        size = FIFO_SIZE if self._fcr & FCR_ENABLE else 1
        while self._backlog and len(self._fifo) < size:
            self._fifo.append(self._backlog.popleft())
        self._update_irq()

    # from the guest

    def read(self, port: int, size: int) -> int:
        register = port & 7
        if register == 5:
            value = LSR_THRE | LSR_TEMT | (LSR_DR if self._fifo else 0) | self._overrun
            if self._overrun:
                self._overrun = 0
                self._update_irq()
            return value
        if register == 0:
            return self._divisor & 0xFF if self._lcr & LCR_DLAB else self._read_data()
        if register == 2:
            return self._read_iir()
        if register == 1:
            return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier
        if register == 6:
            return self._read_msr()
        return (self._lcr, self._mcr, 0, 0, self._scratch)[register - 3]

    def write(self, port: int, size: int, value: int) -> None:
        register = port & 7
        if register == 0 and not self._lcr & LCR_DLAB:
            self._transmit(value)
        elif register == 0:
            self._divisor = self._divisor & 0xFF00 | value
        elif register == 1:
            self._write_ier(value)
        elif register == 2:
            self._write_fcr(value)
        elif register == 3:
            self._lcr = value
        elif register == 4:
            self._write_mcr(value)
        elif register == 7:
            self._scratch = value

    def _transmit(self, value: int) -> None:
        if self._mcr & MCR_LOOP:
            if len(self._fifo) < (FIFO_SIZE if self._fcr & FCR_ENABLE else 1):
                self._fifo.append(value)
            else:
                self._overrun = LSR_OE
        else:
            self._sink(value)
        self._thre_pending = True
        if self._ier:
            self._update_irq()

    def _read_data(self) -> int:
        value = self._fifo.popleft() if self._fifo else 0
        self._refill()
        self._update_irq()
        return value

    def _cause(self) -> int:
        if self._ier & IER_RLSI and self._overrun:
            return IIR_RLSI
        if self._ier & IER_RDI and self._fifo:
            full = not self._fcr & FCR_ENABLE or len(self._fifo) >= TRIGGERS[self._fcr >> 6]
            return IIR_RDI if full else IIR_TIMEOUT
        if self._ier & IER_THRI and self._thre_pending:
            return IIR_THRI
        if self._ier & IER_MSI and self._msr_delta:
            return IIR_MSI
        return IIR_NONE

    def _read_iir(self) -> int:
        cause = self._cause()
        if cause == IIR_THRI:
            self._thre_pending = False
            self._update_irq()
        return cause | (IIR_FIFOS if self._fcr & FCR_ENABLE else 0)

    def _update_irq(self) -> None:
        self._irq.set(self._cause() != IIR_NONE)

    def _write_ier(self, value: int) -> None:
        if self._lcr & LCR_DLAB:
            self._divisor = self._divisor & 0xFF | value << 8
            return
        if value & IER_THRI and not self._ier & IER_THRI:
            self._thre_pending = True            # enabling it with an empty transmitter asks at once
        self._ier = value & 0x0F
        self._update_irq()

    def _write_fcr(self, value: int) -> None:
        if (value ^ self._fcr) & FCR_ENABLE or value & FCR_CLEAR_RX:
            self._clear_fifo()
        self._fcr = value & 0xC9 if value & FCR_ENABLE else 0
        self._refill()
        self._update_irq()

    def _clear_fifo(self) -> None:
        if not self._mcr & MCR_LOOP:
            self._backlog.extendleft(reversed(self._fifo))
            if self._backlog and not self._hold:
                self._hold = self._timers.at(self._timers.now_ns() + HOLD_NS, self._release)
        self._fifo.clear()

    def _release(self) -> None:
        self._hold = None
        self._refill()

    def _msr_level(self) -> int:
        if not self._mcr & MCR_LOOP:
            return MSR_CTS | MSR_DSR | MSR_DCD
        pairs = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))
        return sum(msr for mcr, msr in pairs if self._mcr & mcr)

    def _read_msr(self) -> int:
        value = self._msr_level() | self._msr_delta
        self._msr_delta = 0
        self._update_irq()
        return value

    def _write_mcr(self, value: int) -> None:
        before = self._msr_level()
        self._mcr = value & 0x1F
        after = self._msr_level()
        changed = before ^ after
        self._msr_delta |= changed >> 4 & 0x0B | (4 if before & MSR_RI and not after & MSR_RI else 0)
        self._refill()
        self._update_irq()

    def save(self) -> UartState:
        return UartState(self._ier, self._fcr, self._lcr, self._mcr, self._msr_delta, self._scratch, self._divisor,
                         self._overrun, int(self._thre_pending), bytes(self._fifo), bytes(self._backlog))

    def load(self, state: UartState) -> None:
        self._ier, self._fcr, self._lcr, self._mcr = state.ier, state.fcr, state.lcr, state.mcr
        self._msr_delta, self._scratch, self._divisor = state.msr_delta, state.scratch, state.divisor
        self._overrun, self._thre_pending = state.overrun, bool(state.thre_pending)
        self._fifo, self._backlog = deque(state.fifo[:FIFO_SIZE]), deque(state.backlog[:BACKLOG_SIZE + FIFO_SIZE])
        self._refill()
        self._update_irq()
