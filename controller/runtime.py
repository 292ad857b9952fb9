"""What a controller does while it leads.

Owns:    the reconcilers of one term, and which change wakes which of them.
Never:   outlives its term: everything here is cancelled when the lead is lost.
Threads: one event loop.
"""

import asyncio
from collections.abc import Callable

from controller.agents.hub import Hub
from controller.events import Events
from controller.ids import Ids
from controller.images.files import ImageFiles
from controller.metrics import Metrics
from controller.reconcile.drain import DrainReconciler
from controller.reconcile.housekeeping import Housekeeping
from controller.reconcile.liveness import Liveness
from controller.reconcile.migrations import MigrationReconciler
from controller.reconcile.placement import PlacementReconciler
from controller.reconcile.vms import VmReconciler
from controller.reconcile.worker import Worker
from controller.scheduler.placer import Placer
from controller.store import keys
from controller.store.cache import Change
from controller.store.store import Store
from controller.store.world import VM_PARTS, World

ALL = "all"


class Runtime:
    def __init__(self, store: Store, world: World, hub: Hub, placer: Placer, events: Events, files: ImageFiles,
                 metrics: Metrics, ids: Ids, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._store, self._world, self._hub, self._events = store, world, hub, events
        vms = VmReconciler(store, world, hub, events, clock)
        migrations = MigrationReconciler(store, world, hub, events, metrics, clock)
        placement = PlacementReconciler(store, world, placer, events, metrics, clock)
        drain = DrainReconciler(store, world, placer, events, ids, clock)
        self._vms = Worker("vm", vms.reconcile, metrics)
        self._migrations = Worker("migration", migrations.reconcile, metrics)
        self._placement = Worker("placement", placement.reconcile, metrics)
        self._drain = Worker("drain", drain.reconcile, metrics)
        self._liveness = Liveness(store, world, hub, events, clock, monotonic)
        self._housekeeping = Housekeeping(store, world, files, clock)

    async def run(self) -> None:
        """Until cancelled. Raises what nobody expected."""
        self._look_at_everything()
        async with asyncio.TaskGroup() as group:
            for worker in (self._vms, self._migrations, self._placement, self._drain):
                group.create_task(worker.run(), name=f"worker-{worker.name}")
            group.create_task(self._liveness.run(), name="liveness")
            group.create_task(self._housekeeping.run(), name="housekeeping")
            group.create_task(self._events.write_queued(self._store), name="events")

    def changed(self, changes: list[Change]) -> None:
        """The store has changed."""
        for change in changes:
            if change.prefix in VM_PARTS:
                self._vms.add(change.id)
                if view := self._world.vm(change.id):
                    self._drain.add(view.node)
            elif change.prefix == keys.NODE:
                self._look_at_node(change.id)
            elif change.prefix == keys.MIGRATION:
                record = (change.new or change.old).record                     # type: ignore[union-attr]
                self._migrations.add(change.id)
                self._vms.add(record.vm_uid)
                self._drain.add(record.source)
            elif change.prefix != keys.IMAGE:
                continue
            self._placement.add(ALL)
            self._hub.all_dirty()

    def reported(self, node: str, vms: set[str], migrations: set[str]) -> None:
        """A node has said something."""
        for uid in vms:
            self._vms.add(uid)
            if (view := self._world.vm(uid)) and view.pointer_entry:
                self._migrations.add(view.pointer_entry.record.uid)
        for uid in migrations:
            self._migrations.add(uid)

    def _look_at_everything(self) -> None:
        for uid in self._world.cache.table(keys.VM_SPEC):
            self._vms.add(uid)
        for uid in self._world.cache.table(keys.MIGRATION):
            self._migrations.add(uid)
        for name in self._world.cache.table(keys.NODE):
            self._drain.add(name)
        self._placement.add(ALL)

    def _look_at_node(self, name: str) -> None:
        for view in self._world.vms_on(name):
            self._vms.add(view.uid)
        for record in self._world.migrations_of(name):
            self._migrations.add(record.uid)
        self._drain.add(name)
