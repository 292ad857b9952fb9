"""What has had its time goes.

Owns:    the ages of events, request_ids, finished migrations, tombstones and unused image files.
Never:   removes anything that a VM needs.
Threads: one event loop.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator

from controller.errors import Refusal
from controller.images.files import ImageFiles
from controller.store import keys
from controller.store.cache import Entry
from controller.store.store import MAX_OPS, Commit, Conflict, Store
from controller.store.world import World

log = logging.getLogger(__name__)
LOOK_S = 30.0
DAY_S = 86_400.0
MAX_EVENTS = 10_000
TOMBSTONE_S = 90 * DAY_S


class Housekeeping:
    def __init__(self, store: Store, world: World, files: ImageFiles, clock: Callable[[], float]) -> None:
        self._store, self._world, self._files, self._clock = store, world, files, clock

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.sweep()
            except (Refusal, Conflict, OSError) as error:
                log.info("housekeeping: %s", error)

    async def sweep(self) -> None:
        """Once; as many transactions as that takes."""
        outdated = list(self._outdated(self._clock()))
        for start in range(0, len(outdated), MAX_OPS):
            commit = Commit()
            for prefix, id, entry in outdated[start:start + MAX_OPS]:
                commit.delete(prefix, id, entry)
            await self._store.commit(commit)
        used = {file.sha256 for entry in self._world.cache.table(keys.IMAGE).values() for file in entry.record.files}
        await asyncio.to_thread(self._files.collect, used, self._clock())

    def _outdated(self, now: float) -> Iterator[tuple[str, str, Entry]]:
        table = self._world.cache.table
        events = sorted(table(keys.EVENT).items(), key=lambda item: item[1].revision)
        surplus = len(events) - MAX_EVENTS
        for index, (id, entry) in enumerate(events):
            if index < surplus or now - entry.record.time > DAY_S:
                yield keys.EVENT, id, entry
        for id, entry in table(keys.REQUEST).items():
            if now - entry.record.time > DAY_S:
                yield keys.REQUEST, id, entry
        for id, entry in table(keys.MIGRATION).items():
            if entry.record.over and now - entry.record.end_time > DAY_S:
                yield keys.MIGRATION, id, entry
        for id, entry in table(keys.VM_GONE).items():
            if now - entry.record.time > TOMBSTONE_S:
                yield keys.VM_GONE, id, entry
