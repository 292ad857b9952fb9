"""Migrations go on, and end.

Owns:    MigrationRecord after its creation; the abort when something failed or took too long; giving back.
Never:   commits a migration: only the target's wish does (agents/service.py).
Threads: one event loop.
"""

from collections.abc import Callable
from dataclasses import replace

from controller.agents.hub import Hub, MigrationReport
from controller.events import Events
from controller.metrics import Metrics
from controller.model import migrations
from controller.model.migrations import Seen
from controller.model.records import MigrationPhase, MigrationRecord, VmRecord
from controller.store import keys
from controller.store.cache import Entry
from controller.store.store import Commit, Store
from controller.store.world import World

PROGRESS_S = 0.5                   # bytes and rounds alone are written this often
# A guest stands still while a migration switches. The phase is written only if that takes longer, so that our write and
# the decision, which both compare the record, don't meet.
SWITCHING_S = 0.3


class MigrationReconciler:
    def __init__(self, store: Store, world: World, hub: Hub, events: Events, metrics: Metrics,
                 clock: Callable[[], float]) -> None:
        self._store, self._world, self._hub, self._events = store, world, hub, events
        self._metrics, self._clock = metrics, clock
        self._written: dict[str, float] = {}
        self._switching: dict[str, float] = {}

    async def reconcile(self, uid: str) -> float:
        """See Worker."""
        def decide() -> tuple[Commit, float]:
            entry, commit = self._world.migration_entry(uid), Commit()
            if entry is None or entry.record.over:
                self._written.pop(uid, None)
                self._switching.pop(uid, None)
                return commit, 0.0
            now = self._clock()
            record, again = migrations.advance(entry.record, self._seen(entry.record), now)
            if record.phase is MigrationPhase.SWITCHING and entry.record.phase is not record.phase:
                since = now - self._switching.setdefault(uid, now)
                if 0 <= since < SWITCHING_S:
                    return commit, SWITCHING_S - since
            if only_progress(entry.record, record):
                since = now - self._written.get(uid, 0.0)
                if 0 <= since < PROGRESS_S:
                    return commit, PROGRESS_S - since
            if record != entry.record:
                self._written[uid] = now
                self._write(commit, entry, record, now)
            return commit, again

        return await self._store.change(decide)

    def _write(self, commit: Commit, entry: Entry, record: MigrationRecord, now: float) -> None:
        before: MigrationRecord = entry.record
        if record.decision is not before.decision:
            migrations.commit_decision(commit, entry, self._store.entry(keys.VM_ASSIGN, record.vm_uid), record)
            self._metrics.decided(record.decision)
        else:
            commit.update(keys.MIGRATION, record.uid, entry, record)
        if not record.over:
            return
        commit.delete(keys.VM_MIGRATION, record.vm_uid, self._store.entry(keys.VM_MIGRATION, record.vm_uid))
        if record.phase is MigrationPhase.SUCCEEDED:
            gap = f"gap {record.gap_ms:.1f} ms" if record.gap_ms else "gap not told"
            self._events.migration(commit, record, "Migrated", f"{record.source} → {record.target}, {gap}", now)
            self._count_drained(commit, record)
        else:
            self._events.migration(commit, record, "MigrationFailed", f"{record.source} → {record.target}: "
                                   f"{record.reason}: {record.message}", now, warning=True)

    def _count_drained(self, commit: Commit, record: MigrationRecord) -> None:
        node = self._store.entry(keys.NODE, record.source)
        if record.drain and node and node.record.draining:
            commit.update(keys.NODE, record.source, node, replace(node.record, drain_moved=node.record.drain_moved + 1))

    def _seen(self, record: MigrationRecord) -> Seen:
        view = self._world.vm(record.vm_uid)
        vm: VmRecord | None = view.record if view else None
        source, target = self._hub.migration_report(record.source, record.uid), self._hub.migration_report(
            record.target, record.uid)
        at_source, at_target = self._hub.report(record.source, record.vm_uid), self._hub.report(
            record.target, record.vm_uid)
        failed = next((side for side in (target, source) if side and side.step == "FAILED"), MigrationReport("", "", ""))
        return Seen(
            source_step=source.step if source else "", target_step=target.step if target else "",
            source_lost=self._is_lost(record.source), target_lost=self._is_lost(record.target),
            source_generation=at_source.generation if at_source else -1,
            source_state=at_source.state if at_source and not at_source.gone else None,
            target_generation=at_target.generation if at_target and not at_target.gone else -1,
            target_state=at_target.state if at_target and not (at_target.gone or at_target.migrating_in) else None,
            vm_gone=vm is None or bool(vm.delete_time), wanted=vm.power if vm else record.power,
            address=target.address if target and target.step != "FAILED" else "",
            rounds=max((side.rounds for side in (source, target) if side), default=0),
            bytes=max((side.bytes for side in (source, target) if side), default=0),
            gap_ms=target.gap_ms if target else 0.0, decision_ms=target.decision_ms if target else 0.0,
            reason=failed.reason, message=failed.message)

    def _is_lost(self, name: str) -> bool:
        node = self._world.node(name)
        return node is None or node.lost


def only_progress(before: MigrationRecord, after: MigrationRecord) -> bool:
    """Nothing but numbers has changed."""
    return before != after and replace(before, rounds=0, bytes=0) == replace(after, rounds=0, bytes=0)


