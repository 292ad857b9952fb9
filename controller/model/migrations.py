"""The rules of a migration, the controller's half.

Owns:    what reports make of a migration's record, when it is given up, and the decision.
Never:   I/O, time, randomness; decides twice.
Threads: pure functions.

    PREPARING ─► COPYING ─► SWITCHING ─► [decision] ─ commit ─► FINISHING ─► SUCCEEDED
        └───────────┴───────────┴────────►    │                    │ target FAILED: given back
                                              └──── abort ─► ABORTING ◄──┘ ─► FAILED

The decision and the ownership key it stands for are written in one transaction, which compares both: whoever comes
second reads what the first decided. Generations: commit (g, source) → (g + 1, target); abort (g, source) →
(g + 1, source); given back (g + 1, target) → (g + 2, source). Giving back needs the target's own word that it
does not run the VM and never will; silence is no such word.
"""

from dataclasses import dataclass, replace

from controller import errors
from controller.model.records import (
    ALIVE, ENDED, Assignment, Decision, MigrationPhase as Phase, MigrationRecord, Power, VmState,
)
from controller.store import keys
from controller.store.cache import Entry
from controller.store.store import Commit

PREPARE_S, COPY_S, SWITCH_S = 30.0, 900.0, 20.0
CONFIRM_S = 15.0                    # an abort is told as FAILED after so long, confirmed or not: it is decided anyway
STEP_PHASE = {"COPYING": Phase.COPYING, "PAUSED": Phase.SWITCHING, "READY": Phase.SWITCHING}
DONE_S = 2.0                        # a target that runs the VM, and doesn't say DONE, has succeeded after so long
ORDER = list(Phase)


@dataclass(frozen=True, slots=True)
class Seen:
    """What both sides and the VM look like now. Steps are empty where nothing was reported; `*_state` and
    `*_generation` are of the side's copy of the VM."""

    source_step: str = ""
    target_step: str = ""
    source_lost: bool = False
    target_lost: bool = False
    source_generation: int = -1
    source_state: VmState | None = None
    target_generation: int = -1
    target_state: VmState | None = None
    vm_gone: bool = False                   # the VM is deleted or to be deleted
    wanted: Power = Power.RUNNING
    address: str = ""
    rounds: int = 0
    bytes: int = 0
    gap_ms: float = 0.0
    decision_ms: float = 0.0
    reason: str = ""
    message: str = ""


def decide(record: MigrationRecord, node: str, wish: Decision, reason: str, now: float) -> MigrationRecord:
    """What becomes of a side's wish: the decision made before, or this one."""
    if node not in (record.source, record.target):
        raise errors.Denied("NOT_YOUR_MIGRATION", f"{node} has no part in migration {record.uid}")
    if record.decision:
        return record
    if wish is Decision.COMMIT and node != record.target:
        raise errors.Denied("NOT_YOURS_TO_COMMIT", "only the target can tell that it has all")
    if wish is Decision.COMMIT and not record.cancel:
        return decided(record, Decision.COMMIT, "", "", now)
    if record.cancel:
        return decided(record, Decision.ABORT, "CANCELLED", "cancelled", now)
    side = "TARGET" if node == record.target else "SOURCE"
    return decided(record, Decision.ABORT, f"{side}_FAILED", reason or f"{node} gave up", now)


def decided(record: MigrationRecord, decision: Decision, reason: str, message: str, now: float) -> MigrationRecord:
    phase = Phase.FINISHING if decision is Decision.COMMIT else Phase.ABORTING
    return replace(record, decision=decision, owner_generation=(record.owner_generation or record.generation) + 1,
                   phase=phase, phase_time=now, reason=reason, message=message)


def commit_decision(commit: Commit, entry: Entry, owner: Entry | None, record: MigrationRecord) -> None:
    """Both keys, or neither."""
    before: MigrationRecord = entry.record
    holder = before.target if before.decision is Decision.COMMIT else before.source
    expected = Assignment(holder, before.owner_generation or before.generation)
    if owner is None or owner.record != expected:
        raise errors.WrongState("OWNER_CHANGED", "migration", record.uid,
                                f"the VM is not {expected.node}'s with generation {expected.generation}")
    after = Assignment(record.target if record.decision is Decision.COMMIT else record.source, record.owner_generation)
    commit.update(keys.MIGRATION, record.uid, entry, record)
    commit.update(keys.VM_ASSIGN, record.vm_uid, owner, after)


def advance(record: MigrationRecord, seen: Seen, now: float) -> tuple[MigrationRecord, float]:
    """The record as it should be now, and seconds until to look again (0: when something is reported)."""
    if record.over:
        return record, 0.0
    record = _progress(record, seen)
    if not record.decision:
        return _undecided(record, seen, now)
    if record.decision is Decision.COMMIT:
        return _committed(record, seen, now)
    return _aborting(record, seen, now)


def _progress(record: MigrationRecord, seen: Seen) -> MigrationRecord:
    return replace(record, address=record.address or seen.address, rounds=max(record.rounds, seen.rounds),
                   bytes=max(record.bytes, seen.bytes), gap_ms=seen.gap_ms or record.gap_ms,
                   decision_ms=seen.decision_ms or record.decision_ms)


def _undecided(record: MigrationRecord, seen: Seen, now: float) -> tuple[MigrationRecord, float]:
    phases = [record.phase, *(STEP_PHASE[step] for step in (seen.source_step, seen.target_step) if step in STEP_PHASE)]
    phase = max(phases, key=ORDER.index)
    if phase is not record.phase:
        record = replace(record, phase=phase, phase_time=now)
    limit = {Phase.PREPARING: PREPARE_S, Phase.COPYING: COPY_S}.get(record.phase, SWITCH_S)
    why = _why_abort(record, seen) or (
        ("TIMED_OUT", f"still {record.phase} after {limit:.0f} s") if now - record.phase_time >= limit else None)
    if why:
        return decided(record, Decision.ABORT, why[0], why[1], now), CONFIRM_S
    return record, record.phase_time + limit - now


def _why_abort(record: MigrationRecord, seen: Seen) -> tuple[str, str] | None:
    if record.cancel:
        return "CANCELLED", "cancelled"
    if seen.vm_gone:
        return "VM_DELETED", "the VM is being deleted"
    if seen.wanted is not record.power:
        return "POWER_CHANGED", f"the VM is to be {seen.wanted}"
    if seen.source_state in ENDED:
        return "VM_ENDED", f"the VM is {seen.source_state}"
    for side, node, step, lost in (("TARGET", record.target, seen.target_step, seen.target_lost),
                                   ("SOURCE", record.source, seen.source_step, seen.source_lost)):
        if step == "FAILED":
            return seen.reason or f"{side}_FAILED", seen.message or f"{node} gave up"
        if lost:
            return f"{side}_LOST", f"{node} is lost"
    return None


def _committed(record: MigrationRecord, seen: Seen, now: float) -> tuple[MigrationRecord, float]:
    owns = seen.target_generation >= record.owner_generation
    # DONE tells the gap, too. A copy that is paused or has ended may never have run: only DONE ends the source's copy.
    left = record.phase_time + DONE_S - now
    if owns and (seen.target_step == "DONE" or (seen.target_state is VmState.RUNNING and left <= 0)):
        return replace(record, phase=Phase.SUCCEEDED, phase_time=now, end_time=now), 0.0
    if seen.target_step == "FAILED":
        return decided(record, Decision.ABORT, seen.reason or "TARGET_FAILED",
                       seen.message or f"{record.target} could not run it", now), CONFIRM_S
    return record, max(0.0, left)


def _aborting(record: MigrationRecord, seen: Seen, now: float) -> tuple[MigrationRecord, float]:
    confirmed = seen.source_generation >= record.owner_generation
    left = record.phase_time + CONFIRM_S - now
    if confirmed or left <= 0:
        return replace(record, phase=Phase.FAILED, phase_time=now, end_time=now), 0.0
    return record, left


def check_movable(name: str, state: VmState, migrating: bool, source_lost: bool) -> None:
    if migrating:
        raise errors.WrongState("VM_MIGRATING", "vm", name, f"{name} is migrating already")
    if source_lost:
        raise errors.WrongState("NODE_LOST", "vm", name, f"the node of {name} is lost")
    if state not in ALIVE:
        raise errors.WrongState("VM_NOT_RUNNING", "vm", name, f"{name} is {state}, not RUNNING")
