"""MigrationService. Contracts: proto/virga/v1/migration.proto.

Owns:    the beginning of a migration, and the wish to end one.
Never:   decides one (agents/service.py and reconcile/migrations.py do, by one rule).
Threads: one event loop.
"""

from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

from controller import errors
from controller.api import listing, wire
from controller.api.access import Caller
from controller.api.once import Once
from controller.events import Events
from controller.ids import Ids
from controller.model import migrations
from controller.model.records import FileRole, MigrationRecord, Pointer
from controller.scheduler.placer import Placer, placement_of
from controller.scheduler.plan import refusals_of
from controller.store import keys
from controller.store.cache import Entry
from controller.store.store import Commit, Store
from controller.store.world import VmView, World
from virga.v1 import migration_pb2 as pb


class MigrationService:
    def __init__(self, store: Store, world: World, placer: Placer, events: Events, ids: Ids,
                 clock: Callable[[], float]) -> None:
        self._store, self._world, self._placer, self._events = store, world, placer, events
        self._ids, self._clock = ids, clock

    async def create_migration(self, request: Any, caller: Caller) -> Any:
        once = Once(self._store, "CreateMigration", request, request.request_id)
        uid, token = self._ids.next(), self._ids.token()

        def decide() -> tuple[Commit, str]:
            commit, now = Commit(), self._clock()
            if earlier := once.done():
                return commit, earlier
            view = self._world.find_vm(request.vm)
            record = plan_migration(self._world, self._placer, view, request.target_node, uid, token, now)
            begin_migration(commit, self._events, self._store, view, record, now)
            once.remember(commit, uid, now)
            return commit, uid

        return pb.CreateMigrationResponse(migration=self._show(self._world.find_migration(
            await self._store.change(decide))))

    async def cancel_migration(self, request: Any, caller: Caller) -> Any:
        def decide() -> tuple[Commit, str]:
            entry, commit = self._world.find_migration(request.migration), Commit()
            record: MigrationRecord = entry.record
            if record.decision and not record.cancel:
                raise errors.WrongState("MIGRATION_DECIDED", "migration", record.uid,
                                        f"it was decided already: {record.decision}")
            commit.update(keys.MIGRATION, record.uid, entry, replace(record, cancel=True))
            return commit, record.uid

        return pb.CancelMigrationResponse(migration=self._show(self._world.find_migration(
            await self._store.change(decide))))

    async def get_migration(self, request: Any, caller: Caller) -> Any:
        return pb.GetMigrationResponse(migration=self._show(self._world.find_migration(request.migration)))

    async def list_migrations(self, request: Any, caller: Caller) -> Any:
        vm_uid = self._world.find_vm(request.vm).uid if request.vm else ""
        table = self._world.cache.table(keys.MIGRATION)
        found = ((uid, table[uid]) for uid in sorted(table)
                 if (not vm_uid or table[uid].record.vm_uid == vm_uid)
                 and not (request.active_only and table[uid].record.over))
        page, token = listing.page_of(found, request.page_size, request.page_token)
        return pb.ListMigrationsResponse(migrations=map(self._show, page), next_page_token=token,
                                         revision=self._world.revision)

    async def watch_migrations(self, request: Any, caller: Caller) -> AsyncGenerator[Any, None]:
        only = self._world.find_migration(request.migration).record.uid if request.migration else ""
        table = self._world.cache.table(keys.MIGRATION)

        def render(uid: str, name: str) -> tuple[bool, Any] | None:
            if only and uid != only:
                return None
            return (False, self._show(table[uid])) if uid in table else (True, pb.Migration(uid=uid, vm_name=name))

        async for response in listing.watch(
                self._world.feeds["migration"], lambda: self._world.revision, request.start_revision,
                lambda: [self._show(table[uid]) for uid in sorted(table) if not only or uid == only], render,
                lambda kind, migration, revision: pb.WatchMigrationsResponse(kind=kind, migration=migration,
                                                                            revision=revision)):
            yield response

    def _show(self, entry: Entry) -> Any:
        return wire.migration_to_proto(entry.record, entry.revision, self._clock())


def plan_migration(world: World, placer: Placer, view: VmView, target: str, uid: str, token: str, now: float,
                   drain: bool = False) -> MigrationRecord:
    """Where to, or why not. Raises the errors of CreateMigration."""
    assignment, record = view.assignment, view.record
    if record.delete_time:
        raise errors.WrongState("VM_DELETING", "vm", record.name, f"{record.name} is being deleted")
    if assignment is None:
        raise errors.WrongState("VM_NOT_RUNNING", "vm", record.name, f"{record.name} has no node yet")
    source = world.node(assignment.node)
    migrations.check_movable(record.name, view.status.state, view.pointer_entry is not None,
                             source is None or source.lost)
    image = world.image(record.spec.image)
    if record.spec.disks_mib or (image and any(file.role is FileRole.DISK for file in image.files)):
        raise errors.WrongState("VM_HAS_DISKS", "vm", record.name, f"{record.name} has disks on its node, which do not "
                                "move yet")
    table = placer.table()
    if target:
        target = world.find_node(target).record.name
        _check_target(table, placer, view, target)
    else:
        verdict = placer.decide(table, record.spec, exclude=assignment.node)
        if verdict.chosen is None:
            summary = placement_of(table, verdict).summary
            raise errors.NoCapacity("NO_CAPACITY", f"no node can take {record.name} ({summary})", summary=summary)
        target = table.names[verdict.chosen]
    return MigrationRecord(uid=uid, vm_uid=view.uid, vm_name=record.name, source=assignment.node, target=target,
                           generation=assignment.generation, token=token, power=record.power, create_time=now,
                           phase_time=now, drain=drain)


def _check_target(table: Any, placer: Placer, view: VmView, target: str) -> None:
    if target == view.node:
        raise errors.WrongState("SAME_NODE", "vm", view.record.name, f"{view.record.name} is on {target} already")
    index = table.names.index(target)
    if not table.ready[index]:
        raise errors.WrongState("NODE_LOST", "node", target, f"{target} is lost")
    verdict = placer.decide(table, view.record.spec)
    if reasons := refusals_of(table, verdict, index):
        raise errors.WrongState("NODE_UNFIT", "node", target, f"{target} can't take it: {', '.join(reasons)}")


def begin_migration(commit: Commit, events: Events, store: Store, view: VmView, record: MigrationRecord, now: float
                    ) -> None:
    """One at a time per VM: the pointer is created, or the transaction fails."""
    commit.create(keys.MIGRATION, record.uid, record)
    commit.create(keys.VM_MIGRATION, view.uid, Pointer(record.uid, time=now))
    commit.require(keys.VM_ASSIGN, view.uid, view.assign_entry).require(keys.VM_SPEC, view.uid, view.spec_entry)
    commit.require(keys.NODE, record.target, store.entry(keys.NODE, record.target))
    events.migration(commit, record, "MigrationStarted", f"{record.source} → {record.target}", now)
