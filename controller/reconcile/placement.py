"""VMs without a place get one, as soon as there is one.

Owns:    the creation of ownership keys; why a VM has no place yet.
Never:   changes an ownership key that exists.
Threads: one event loop.

All VMs that wait are planned together over one table of nodes, and committed in transactions of a few VMs each; what
fails because somebody changed a VM meanwhile is planned again.
"""

import asyncio
from collections.abc import Callable

from controller.errors import Refusal
from controller.events import Events
from controller.metrics import Metrics
from controller.model import vms
from controller.model.records import Assignment
from controller.scheduler.placer import Placer, placement_of, request_of
from controller.scheduler.plan import Verdict, count_refusals, decide_batch
from controller.scheduler.table import NodeTable
from controller.store import keys
from controller.store.store import Commit, Conflict, Store
from controller.store.world import VmView, World

BATCH = 16                         # VMs in a transaction
RETRY_S = 0.5


class PlacementReconciler:
    def __init__(self, store: Store, world: World, placer: Placer, events: Events, metrics: Metrics,
                 clock: Callable[[], float]) -> None:
        self._store, self._world, self._placer, self._events = store, world, placer, events
        self._metrics, self._clock = metrics, clock

    async def reconcile(self, _: str) -> float:
        """See Worker: all that wait, at once. Looks again soon where something was in the way."""
        waiting = [view for view in self._world.vms() if vms.wants_place(view.record, view.assignment)]
        if not waiting:
            return 0.0
        table = self._placer.table()
        verdicts = decide_batch(table, [request_of(view.record.spec) for view in waiting], self._placer.policy.scoring)
        pairs, again = list(zip(waiting, verdicts, strict=True)), 0.0
        for start in range(0, len(pairs), BATCH):
            try:
                await self._commit(table, pairs[start:start + BATCH])
            except Conflict as conflict:
                await self._world.cache.wait_for(conflict.revision, timeout_s=1.0)
                again = 0.01
            except Refusal:
                again = RETRY_S
            await asyncio.sleep(0)
        return again

    async def _commit(self, table: NodeTable, pairs: list[tuple[VmView, Verdict]]) -> None:
        commit, now, placed = Commit(), self._clock(), 0
        for view, verdict in pairs:
            if verdict.chosen is None:
                status = vms.not_placed(view.status, placement_of(table, verdict), now)
                if status != view.status:
                    commit.update(keys.VM_STATUS, view.uid, view.status_entry, status)
                    commit.require(keys.VM_ASSIGN, view.uid, None)
                if status.message != view.status.message:            # the hint alone is no news
                    self._events.vm(commit, view.record, "NotPlaced", status.message, now, warning=True)
                    for count in count_refusals(verdict):
                        self._metrics.refused(count.filter, count.nodes)
                continue
            node = table.names[verdict.chosen]
            commit.create(keys.VM_ASSIGN, view.uid, Assignment(node, 1))
            commit.update(keys.VM_STATUS, view.uid, view.status_entry, vms.placed(view.record, view.status, node, now))
            commit.require(keys.VM_SPEC, view.uid, view.spec_entry)
            self._events.vm(commit, view.record, "Placed", f"on {node}", now, node=node)
            placed += 1
        await self._store.commit(commit)
        self._metrics.placed(placed)
