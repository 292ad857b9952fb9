"""Which nodes are lost.

Owns:    NodeRecord.lost: a label. No VM is moved, stopped or started because of it.
Never:   calls a node lost because we ourselves were asleep.
Threads: one event loop.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from controller.agents.hub import Hub
from controller.errors import Refusal
from controller.events import Events
from controller.model.records import NodeRecord
from controller.store import keys
from controller.store.store import Commit, Conflict, Store
from controller.store.world import World

log = logging.getLogger(__name__)
SILENCE_S = 6.0
LOOK_S = 0.5
STALL_S = 2.0                      # between two looks: then it was us who slept, and everybody gets their time anew


class Liveness:
    def __init__(self, store: Store, world: World, hub: Hub, events: Events, clock: Callable[[], float],
                 monotonic: Callable[[], float]) -> None:
        self._store, self._world, self._hub, self._events = store, world, hub, events
        self._clock, self._monotonic = clock, monotonic
        self._since = monotonic()
        self._looked = self._since

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Label the silent ones."""
        now = self._monotonic()
        if now - self._looked > STALL_S:
            log.warning("asleep for %.1f s: nodes get their time anew", now - self._looked)
            self._since = now
        self._looked = now
        for node in self._world.nodes():
            if not node.lost and self._is_silent(node.name):
                try:
                    await self._store.change(partial(self._decide, node.name))
                except (Refusal, Conflict) as error:
                    log.info("%s: %s", node.name, error)

    def _is_silent(self, name: str) -> bool:
        return self._hub.silent_for(name, self._since) > SILENCE_S

    def _decide(self, name: str) -> tuple[Commit, None]:
        entry, commit, now = self._store.entry(keys.NODE, name), Commit(), self._clock()
        if entry and not entry.record.lost and self._is_silent(name):
            record: NodeRecord = replace(entry.record, lost=True, state_time=now)
            commit.update(keys.NODE, name, entry, record)
            self._events.node(commit, record, "NodeLost", f"nothing heard for {SILENCE_S:.0f} s; its VMs are left as "
                              "they are", now, warning=True)
        return commit, None
