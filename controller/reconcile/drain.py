"""Nodes that drain lose their running VMs, one at a time, live.

Owns:    which VM leaves next.
Never:   stops a VM; moves one that has nowhere to go.
Threads: one event loop.
"""

from collections.abc import Callable

from controller.api.migrations import begin_migration, plan_migration
from controller.errors import Refusal
from controller.events import Events
from controller.ids import Ids
from controller.model.records import ALIVE
from controller.scheduler.placer import Placer
from controller.store import keys
from controller.store.store import Commit, Store
from controller.store.world import VmView, World

LOOK_S = 3.0
RETRY_S = 10.0                     # a VM whose move failed is tried again after this


class DrainReconciler:
    def __init__(self, store: Store, world: World, placer: Placer, events: Events, ids: Ids,
                 clock: Callable[[], float]) -> None:
        self._store, self._world, self._placer = store, world, placer
        self._events, self._ids, self._clock = events, ids, clock

    async def reconcile(self, name: str) -> float:
        """See Worker: begins at most one migration. Looks again while the node drains."""
        node = self._world.node(name)
        if node is None or not node.draining or node.lost:
            return 0.0
        staying = [view for view in self._world.vms_on(name) if view.status.state in ALIVE and not view.record.delete_time]
        if any(view.pointer_entry for view in staying):
            return LOOK_S                                     # asked again when that one ends
        for view in staying:
            if not self._failed_lately(view) and await self._begin(view.uid):
                break
        return LOOK_S if staying else 0.0

    async def _begin(self, uid: str) -> bool:
        migration, token = self._ids.next(), self._ids.token()

        def decide() -> tuple[Commit, bool]:
            view, commit, now = self._world.vm(uid), Commit(), self._clock()
            if view is None or view.pointer_entry:
                return commit, False
            try:
                record = plan_migration(self._world, self._placer, view, "", migration, token, now, drain=True)
            except Refusal:                                   # no room: NodeStatus.drain.stuck tells people
                return commit, False
            begin_migration(commit, self._events, self._store, view, record, now)
            return commit, True

        return await self._store.change(decide)

    def _failed_lately(self, view: VmView) -> bool:
        return any(entry.record.vm_uid == view.uid and entry.record.drain and entry.record.over
                   and self._clock() - entry.record.end_time < RETRY_S
                   for entry in self._world.cache.table(keys.MIGRATION).values())
