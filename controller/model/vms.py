"""The rules of a VM's life.

Owns:    what each verb and each report does to a VM's records.
Never:   I/O, time, randomness.
Threads: pure functions.

    PENDING ─► SCHEDULED ─► CREATING ─► STARTING ─► RUNNING ◄─► PAUSED
       ▲ (no room yet)                                 │  │
       │                                  STOPPING ◄───┘  └──► CRASHED ─► (policy or start: next run)
     create                                  └─► STOPPED ─► (start: next run)
    UNKNOWN: its node is lost. DELETING: from the request until its node says that it is gone.

A run is one life of the machine from power-on. Only a new, higher run number makes a node begin one, so a crash or
a power-off is never undone by a repeated message.
"""

from dataclasses import replace

from controller import errors
from controller.model.records import (
    ALIVE, ENDED, Assignment, MigrationRecord, Phase, Placement, Power, Restart, VmRecord, VmSpec, VmState, VmStatus,
)

BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 60.0
GOOD_RUN_S = 600.0                       # after so long the next crash counts as the first


def new_vm(spec: VmSpec, name: str, image_name: str, power: Power, uid: str, now: float) -> tuple[VmRecord, VmStatus]:
    stopped = power is Power.STOPPED
    record = VmRecord(uid=uid, name=name, spec=spec, image_name=image_name, create_time=now, power=power,
                      run=0 if stopped else 1, run_time=0.0 if stopped else now)
    return record, VmStatus(state=VmState.STOPPED if stopped else VmState.PENDING, state_time=now, run=record.run)


def wants_place(record: VmRecord, assignment: Assignment | None) -> bool:
    return assignment is None and not record.delete_time and record.power is not Power.STOPPED


# ── verbs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def start(record: VmRecord, status: VmStatus, now: float) -> VmRecord:
    """A new run where the last one ended; nothing where one goes on."""
    _refuse_deleting(record)
    if status.state is VmState.STOPPING:
        raise _wrong("VM_STOPPING", record, "is stopping: start it when it has stopped, or stop it with force first")
    if record.power is not Power.STOPPED and not (status.state in ENDED and status.run == record.run):
        return record                                # PAUSED stays paused: resume is another verb
    if record.power is Power.STOPPED and status.run == record.run and status.state not in ENDED and record.run:
        raise _wrong("VM_STOPPING", record, "is stopping: start it when it has stopped")
    return next_run(replace(record, restarts=0), now)


def next_run(record: VmRecord, now: float) -> VmRecord:
    return replace(record, power=Power.RUNNING, force_stop=False, run=record.run + 1, run_time=now,
                   reset_serial=0, generation=record.generation + 1)


def stop(record: VmRecord, force: bool) -> VmRecord:
    _refuse_deleting(record)
    if record.power is Power.STOPPED and (record.force_stop or not force):
        return record
    return replace(record, power=Power.STOPPED, force_stop=force, generation=record.generation + 1)


def pause(record: VmRecord, status: VmStatus) -> VmRecord:
    _refuse_deleting(record)
    if record.power is Power.PAUSED and status.state not in ENDED:
        return record
    if status.state is not VmState.RUNNING or record.power is not Power.RUNNING:
        raise _wrong("VM_NOT_RUNNING", record, f"is {status.state}, not RUNNING")
    return replace(record, power=Power.PAUSED, generation=record.generation + 1)


def resume(record: VmRecord, status: VmStatus) -> VmRecord:
    _refuse_deleting(record)
    if record.power is Power.RUNNING and status.state in ALIVE:
        return record
    if record.power is not Power.PAUSED or status.state in ENDED:
        raise _wrong("VM_NOT_RUNNING", record, f"is {status.state}, not PAUSED")
    return replace(record, power=Power.RUNNING, generation=record.generation + 1)


def reset(record: VmRecord, status: VmStatus, migrating: bool, request_id: str) -> VmRecord:
    _refuse_deleting(record)
    if request_id and record.reset_request == request_id:
        return record
    if status.state not in ALIVE or record.power is Power.STOPPED:
        raise _wrong("VM_NOT_RUNNING", record, f"is {status.state}, not RUNNING")
    if migrating:
        raise _wrong("VM_MIGRATING", record, "is migrating")
    return replace(record, reset_serial=record.reset_serial + 1, reset_request=request_id,
                   generation=record.generation + 1)


def delete(record: VmRecord, now: float) -> VmRecord:
    if record.delete_time:
        return record
    return replace(record, delete_time=now, power=Power.STOPPED, force_stop=True, generation=record.generation + 1)


# ── what follows from verbs and reports ───────────────────────────────────────────────────────────────────────────────


def placed(record: VmRecord, status: VmStatus, node: str, now: float) -> VmStatus:
    phase = Phase("placed", max(0.0, now - record.run_time), node)
    return replace(status, state=VmState.SCHEDULED, state_time=now, run=record.run, phases=(phase,), placement=None,
                   reason="", message="")


def not_placed(status: VmStatus, placement: Placement, now: float) -> VmStatus:
    return replace(status, state=VmState.PENDING, placement=placement, reason="NO_CAPACITY",
                   message=placement.summary,
                   state_time=status.state_time if status.state is VmState.PENDING else now)


def observed(record: VmRecord, status: VmStatus, assignment: Assignment, report: "Report", now: float,
             moving: bool = False) -> VmStatus:
    """What a report by the VM's node makes of its status. Reports of an older owner or run change nothing. moving: a
    pause is the migration's own."""
    if report.generation < assignment.generation:
        return status
    if report.run < record.run and record.power is Power.STOPPED and report.state in ENDED and not record.delete_time:
        if status.state in ENDED and status.run == record.run:
            return status
        return VmStatus(state=VmState.STOPPED, state_time=now, run=record.run)         # stopped before it began
    if report.run < record.run or record.delete_time:
        return _awaiting(record, status, assignment.node, now)
    same_run = status.run == report.run
    ago = next((phase.seconds for phase in status.phases if phase.name == "placed"), 0.0) if same_run else 0.0
    phases = (Phase("placed", ago, assignment.node),
              *(Phase(phase.name, ago + phase.seconds, phase.detail) for phase in report.phases))
    if same_run and len(report.phases) < len(status.phases) - 1:
        phases = status.phases                     # after a migration the new node knows none of the earlier ones
    stopping = record.power is Power.STOPPED and report.state not in ENDED | {VmState.UNKNOWN}
    pausing = moving and report.state is VmState.PAUSED and record.power is Power.RUNNING
    state = VmState.STOPPING if stopping else VmState.RUNNING if pausing else report.state
    state_time = status.state_time if same_run and status.state is state else now
    return VmStatus(state=state, state_time=state_time, reason=report.reason, message=report.message,
                    run=report.run, phases=phases, exit_status=report.exit_status)


def _awaiting(record: VmRecord, status: VmStatus, node: str, now: float) -> VmStatus:
    """The node hasn't begun what it was asked for."""
    state = VmState.DELETING if record.delete_time else VmState.SCHEDULED
    if status.state is state and (record.delete_time or status.run == record.run):
        return status
    if record.delete_time:
        return replace(status, state=state, state_time=now)
    return VmStatus(state=state, state_time=now, run=record.run,
                    phases=(Phase("placed", max(0.0, now - record.run_time), node),))


def asked(record: VmRecord, status: VmStatus, assignment: Assignment | None, now: float) -> VmStatus:
    """What a verb makes of the status at once, before the node has heard of it."""
    if record.delete_time:
        return status if status.state is VmState.DELETING else replace(status, state=VmState.DELETING, state_time=now)
    if assignment is None:
        state = VmState.STOPPED if record.power is Power.STOPPED else VmState.PENDING
        return status if status.state is state else VmStatus(state=state, state_time=now, run=record.run)
    if record.run > status.run and record.power is not Power.STOPPED:
        return _awaiting(record, status, assignment.node, now)
    if record.power is Power.STOPPED and status.state not in ENDED | {VmState.STOPPING, VmState.UNKNOWN}:
        return replace(status, state=VmState.STOPPING, state_time=now)
    return status


def node_lost(record: VmRecord, status: VmStatus, node: str, now: float) -> VmStatus:
    if status.state in ENDED | {VmState.DELETING, VmState.UNKNOWN}:
        return status
    return replace(status, state=VmState.UNKNOWN, state_time=now, reason="NODE_LOST",
                   message=f"nothing is heard from {node}; the VM may well be running")


def after_end(record: VmRecord, status: VmStatus, now: float) -> tuple[VmRecord, float]:
    """What policy makes of a run that ended by itself: (record, seconds until to look again or 0)."""
    if record.delete_time or status.run != record.run or status.state not in ENDED or record.power is Power.STOPPED:
        return record, 0.0
    if status.state is VmState.STOPPED:
        return replace(record, power=Power.STOPPED, generation=record.generation + 1), 0.0   # the guest's own wish
    if record.spec.restart_policy is not Restart.ON_FAILURE:
        return record, 0.0
    restarts = 0 if status.state_time - record.run_time > GOOD_RUN_S else record.restarts
    wait = status.state_time + min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(restarts, 10)) - now
    if wait > 0:
        return record, wait
    return replace(next_run(record, now), restarts=restarts + 1), 0.0


class Report:
    """One VM as its node sees it: what `observed` needs of it."""

    __slots__ = ("uid", "generation", "run", "state", "gone", "reason", "message", "phases", "exit_status",
                 "migrating_in")

    def __init__(self, uid: str, generation: int, run: int, state: VmState, *, gone: bool = False, reason: str = "",
                 message: str = "", phases: tuple[Phase, ...] = (), exit_status: int = 0,
                 migrating_in: bool = False) -> None:
        self.uid, self.generation, self.run, self.state, self.gone = uid, generation, run, state, gone
        self.reason, self.message, self.phases = reason, message, phases
        self.exit_status, self.migrating_in = exit_status, migrating_in


def power_for_node(record: VmRecord, migration: MigrationRecord | None) -> Power:
    """What the owner does now: while a migration is undecided nothing may change under it."""
    return migration.power if migration and not migration.decision else record.power


def _refuse_deleting(record: VmRecord) -> None:
    if record.delete_time:
        raise _wrong("VM_DELETING", record, "is being deleted")


def _wrong(reason: str, record: VmRecord, why: str) -> errors.WrongState:
    return errors.WrongState(reason, "vm", record.name, f"{record.name} {why}")
