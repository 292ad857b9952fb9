"""A VM's status follows what its node reports; policy follows its status; a deleted VM goes when its node says so.

Owns:    VmStatus of VMs that have a place; VmRecord where policy changes it; the end of a VM.
Never:   changes ownership.
Threads: one event loop.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from controller.agents.hub import Hub
from controller.api.vms import remove_vm
from controller.events import Events
from controller.model import vms
from controller.model.records import ENDED, VmRecord, VmState, VmStatus
from controller.model.vms import Report
from controller.store import keys
from controller.store.store import Commit, Store
from controller.store.world import VmView, World

TOLD = {VmState.RUNNING: ("Running", False), VmState.PAUSED: ("Paused", False), VmState.STOPPED: ("Stopped", False),
        VmState.CRASHED: ("Crashed", True), VmState.UNKNOWN: ("Unknown", True)}


@dataclass(frozen=True, slots=True)
class Plan:
    record: VmRecord
    status: VmStatus
    gone: bool                      # nothing is left of it anywhere that counts
    again_s: float


def decide_vm(view: VmView, report: Report | None, node_lost: bool, now: float) -> Plan:
    """Pure: what becomes of this VM's records."""
    record, status, assignment = view.record, view.status, view.assignment
    if record.delete_time:
        removed = status.removed or assignment is None or (
            report is not None and report.gone and report.generation >= assignment.generation)
        if removed and view.pointer_entry is None:
            return Plan(record, status, True, 0.0)
        if removed and not status.removed:               # kept: the node says so once, and a migration has to end first
            return Plan(record, replace(status, removed=True), False, 0.0)
    if assignment is None:
        return Plan(record, vms.asked(record, status, None, now), False, 0.0)
    if node_lost:
        return Plan(record, vms.node_lost(record, status, assignment.node, now), False, 0.0)
    if report is not None and not report.gone and not report.migrating_in:
        status = vms.observed(record, status, assignment, report, now, view.migration is not None)
    else:
        status = vms.asked(record, status, assignment, now)
    record, again = vms.after_end(record, status, now)
    if record.run > view.record.run:
        status = vms.asked(record, status, assignment, now)
    return Plan(record, status, False, again)


class VmReconciler:
    def __init__(self, store: Store, world: World, hub: Hub, events: Events, clock: Callable[[], float]) -> None:
        self._store, self._world, self._hub, self._events, self._clock = store, world, hub, events, clock

    async def reconcile(self, uid: str) -> float:
        """See Worker."""
        def decide() -> tuple[Commit, float]:
            view, commit = self._world.vm(uid), Commit()
            if view is None:
                return commit, 0.0
            node, now = self._world.node(view.node), self._clock()
            plan = decide_vm(view, self._hub.report(view.node, uid), node is not None and node.lost, now)
            if plan.gone:
                remove_vm(commit, self._store, view, now)
                self._events.vm(commit, view.record, "Deleted", "", now, node=view.node)
                return commit, 0.0
            commit.update(keys.VM_SPEC, uid, view.spec_entry, plan.record)
            commit.update(keys.VM_STATUS, uid, view.status_entry, plan.status)
            if commit:
                commit.require(keys.VM_SPEC, uid, view.spec_entry).require(keys.VM_ASSIGN, uid, view.assign_entry)
                self._tell(commit, view, plan, now)
            return commit, plan.again_s

        again = await self._store.change(decide)
        if self._world.vm(uid) is None:
            self._hub.forget_vm(uid)
        return again

    def _tell(self, commit: Commit, view: VmView, plan: Plan, now: float) -> None:
        old, new = view.status, plan.status
        if plan.record.run > view.record.run:
            self._events.vm(commit, plan.record, "Restarting", f"run {plan.record.run}, by policy, after "
                            f"{old.reason or 'a crash'}", now, node=view.node, warning=True)
            if new.state not in ENDED:
                return
        if new.state is not old.state and new.state in TOLD:
            reason, warning = TOLD[new.state]
            text = ": ".join(part for part in (new.reason, new.message) if part)
            self._events.vm(commit, plan.record, reason, text, now, node=view.node, warning=warning)


