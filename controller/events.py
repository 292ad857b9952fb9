"""What happened, for people.

Owns:    the words of events; a queue for those that no transaction of ours belongs to.
Never:   anything but events.
Threads: one event loop.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from controller.errors import Refusal
from controller.model.records import EventRecord, ImageRecord, MigrationRecord, NodeRecord, VmRecord
from controller.store import keys
from controller.store.store import Commit, Conflict, Store
from controller.store.world import World

log = logging.getLogger(__name__)
QUEUE = 1000                    # a node that floods us with events loses the rest
MAX_TEXT = 500


class Events:
    """Methods with a commit write their event in the same transaction as what it tells of."""

    def __init__(self, world: World, uid: Callable[[], str], clock: Callable[[], float]) -> None:
        self._world, self._uid, self._clock = world, uid, clock
        self._queue: asyncio.Queue[EventRecord] = asyncio.Queue(QUEUE)

    def vm(self, commit: Commit, record: VmRecord, reason: str, message: str, now: float, *, node: str = "",
           warning: bool = False) -> None:
        self._put(commit, "vm", record.name, record.uid, reason, message, now, node, warning)

    def node(self, commit: Commit, record: NodeRecord, reason: str, message: str, now: float, *,
             warning: bool = False) -> None:
        self._put(commit, "node", record.name, record.uid, reason, message, now, record.name, warning)

    def image(self, commit: Commit, record: ImageRecord, reason: str, message: str, now: float) -> None:
        self._put(commit, "image", record.name, record.uid, reason, message, now, "", False)

    def migration(self, commit: Commit, record: MigrationRecord, reason: str, message: str, now: float, *,
                  warning: bool = False) -> None:
        """Told of the VM: people look for it there."""
        self._put(commit, "vm", record.vm_name, record.vm_uid, reason, message, now, "", warning)

    def from_agent(self, node: str, vm_uid: str, reason: str, message: str, warning: bool) -> None:
        """Queued: written when the store is there. Dropped where the queue is full."""
        view = self._world.vm(vm_uid) if vm_uid else None
        known = self._world.node(node)
        kind, name, uid = (("vm", view.record.name, view.uid) if view
                           else ("node", node, known.uid if known else ""))
        with suppress(asyncio.QueueFull):
            self._queue.put_nowait(EventRecord(self._uid(), self._clock(), kind, name, uid, reason[:80],
                                               message[:MAX_TEXT], warning, node))

    async def write_queued(self, store: Store) -> None:
        """For ever."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < 50 and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            commit = Commit()
            for event in batch:
                commit.create(keys.EVENT, event.uid, event)
            try:
                await store.commit(commit)
            except (Refusal, Conflict) as error:
                log.warning("%d events lost: %s", len(batch), error)

    def _put(self, commit: Commit, kind: str, name: str, uid: str, reason: str, message: str, now: float, node: str,
             warning: bool) -> None:
        event = EventRecord(self._uid(), now, kind, name, uid, reason, message[:MAX_TEXT], warning, node)
        commit.create(keys.EVENT, event.uid, event)
