"""Entropy device. Source: virtio 1.2 §5.4.

Owns:    nothing: the bytes come from `entropy`, the host's or a seeded stream.
Never:   gives more than asked or than LIMIT at once.
Threads: under the machine's lock.
"""

from __future__ import annotations

from collections.abc import Callable

from node_agent.devices.base import Tasks
from node_agent.devices.virtio.transport import Backend

LIMIT = 4096
DELAY_NS = 10_000


class Rng(Backend):
    device_id = 4
    queue_sizes = (16,)

    def __init__(self, tasks: Tasks, entropy: Callable[[int], bytes]) -> None:
        self._tasks = tasks
        self._entropy = entropy

    def notify(self, queue: int) -> None:
        self.transport.later(self._tasks, self._serve, DELAY_NS)

    def _serve(self) -> None:
        queue = self.transport.queues[0]
        while self.transport.running and (chain := queue.pop()):
            room = min(sum(segment.size for segment in chain.writable), LIMIT)
            queue.push(chain, queue.scatter(chain.writable, self._entropy(room)))
        self.transport.interrupt(0)
