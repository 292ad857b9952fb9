"""Console device with one port (hvc0 in Linux). Source: virtio 1.2 §5.3.

Owns:    the input that the guest has no buffers for yet (bounded); a driver's reset doesn't lose it.
Never:   writes to a terminal: bytes go to `sink`.
Threads: under the machine's lock; `receive` as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node_agent.devices.base import Tasks
from node_agent.devices.virtio.transport import Backend

RX, TX = 0, 1
BACKLOG_SIZE = 1 << 16
DELAY_NS = 5_000


@dataclass(frozen=True)
class ConsoleState:
    VERSION = 1
    backlog: bytes


class Console(Backend):
    device_id = 3
    class_code = 0x078000
    queue_sizes = (64, 64)

    def __init__(self, tasks: Tasks, sink: Callable[[bytes], None]) -> None:
        self._tasks = tasks
        self._sink = sink
        self._backlog = bytearray()

    def config(self) -> bytes:
        return bytes(12)                     # cols, rows, max_nr_ports, emerg_wr: no feature offers them

    def receive(self, data: bytes) -> int:
        taken = data[:BACKLOG_SIZE - len(self._backlog)]
        self._backlog += taken
        if self.transport.running:
            self.transport.guarded(self._fill)
        return len(taken)

    def notify(self, queue: int) -> None:
        work = self._fill if queue == RX else self._drain
        self.transport.later(self._tasks, work, DELAY_NS)

    def _fill(self) -> None:
        queue = self.transport.queues[RX]
        while self.transport.running and self._backlog and (chain := queue.pop()):
            done = queue.scatter(chain.writable, bytes(self._backlog[:4096]))
            del self._backlog[:done]
            queue.push(chain, done)
        self.transport.interrupt(RX)

    def _drain(self) -> None:
        queue = self.transport.queues[TX]
        while self.transport.running and (chain := queue.pop()):
            self._sink(queue.gather(chain.readable))
            queue.push(chain, 0)
        self.transport.interrupt(TX)

    def save(self) -> ConsoleState:
        return ConsoleState(bytes(self._backlog))

    def load(self, state: ConsoleState) -> None:
        self._backlog[:] = state.backlog
