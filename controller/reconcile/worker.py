"""What reconcilers have in common: a queue of ids, each looked at again until nothing is left to do.

Owns:    the queue, the pauses after failures.
Never:   lets one id's failure stop the others.
Threads: one event loop; one id at a time.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from controller.errors import Refusal
from controller.metrics import Metrics
from controller.store.store import Conflict

log = logging.getLogger(__name__)
RETRY_FIRST_S, RETRY_MAX_S = 0.2, 10.0

Reconcile = Callable[[str], Awaitable[float]]      # seconds until to look again without being asked; 0: never


class Worker:
    def __init__(self, name: str, reconcile: Reconcile, metrics: Metrics) -> None:
        self.name = name
        self._reconcile, self._metrics = reconcile, metrics
        self._due: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._woken = asyncio.Event()

    def add(self, id: str, delay_s: float = 0.0) -> None:
        """Look at this one, at once or after a while; the earliest request counts."""
        due = asyncio.get_running_loop().time() + delay_s
        if due < self._due.get(id, float("inf")):
            self._due[id] = due
            self._woken.set()

    async def run(self) -> None:
        """For ever."""
        loop = asyncio.get_running_loop()
        while True:
            self._woken.clear()
            now = loop.time()
            ready = sorted((due, id) for id, due in self._due.items() if due <= now)
            for _, id in ready:
                self._due.pop(id, None)
                await self._once(id)
            if not ready:
                wait = min(self._due.values(), default=now + 3600) - now
                try:
                    async with asyncio.timeout(max(0.0, wait)):
                        await self._woken.wait()
                except TimeoutError:
                    pass

    async def _once(self, id: str) -> None:
        try:
            again = await self._reconcile(id)
        except (Refusal, Conflict) as error:
            log.info("%s %s: %s", self.name, id, error)
            self._again(id)
        except Exception:
            log.exception("%s %s failed", self.name, id)
            self._again(id)
        else:
            self._failures.pop(id, None)
            if again > 0:
                self.add(id, again)

    def _again(self, id: str) -> None:
        self._metrics.reconcile_failed(self.name)
        failures = self._failures[id] = self._failures.get(id, 0) + 1
        self.add(id, min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(failures, 10)))
