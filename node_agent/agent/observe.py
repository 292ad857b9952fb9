"""What the controller is told of a VM: from what is on disk and what its process says.

Owns:    the one mapping from the VM process' words to the API's.
Never:   I/O.
Threads: pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass

from virga.agent.v1 import agent_pb2 as agent
from virga.v1 import vm_pb2 as v1
from virga.vmm.v1 import vmm_pb2 as pb


@dataclass(frozen=True)
class Verdict:
    """How a run ended, in the API's words."""

    state: int
    reason: str
    message: str = ""
    exit_status: int = 0


_ALIVE = {
    pb.VM_STATE_CREATED: v1.VM_STATE_STARTING,
    pb.VM_STATE_RUNNING: v1.VM_STATE_RUNNING,
    pb.VM_STATE_PAUSED: v1.VM_STATE_PAUSED,
    pb.VM_STATE_INCOMING: v1.VM_STATE_STARTING,
    pb.VM_STATE_HELD: v1.VM_STATE_RUNNING,               # a migration under way shows as RUNNING
    pb.VM_STATE_ENDED: v1.VM_STATE_STOPPING,
}
_CRASHES = {
    pb.END_REASON_TRIPLE_FAULT: ("TRIPLE_FAULT", 254),
    pb.END_REASON_FAILURE: ("ENGINE_FAILURE", 126),
    pb.END_REASON_SIGNAL: ("KILLED", 126),
    pb.END_REASON_EXIT_STATUS: ("ENGINE_FAILURE", 126),
    pb.END_REASON_LOST: ("KILLED", 126),
    pb.END_REASON_KILLED: ("KILLED", 126),
}
_KIND_REASONS = {pb.Error.KIND_NO_SPACE: "DISK_FULL", pb.Error.KIND_NO_MEMORY: "NO_MEMORY"}


def verdict(end: pb.End, stop_asked: bool) -> Verdict:
    if end.reason == pb.END_REASON_POWER_OFF:
        return Verdict(v1.VM_STATE_STOPPED, "STOPPED_BY_USER" if stop_asked else "GUEST_POWEROFF", end.detail)
    if end.reason == pb.END_REASON_DEBUG_EXIT:
        return Verdict(v1.VM_STATE_STOPPED, "DEBUG_EXIT", f"the guest wrote {end.value} to port 0xf4",
                       (end.value << 1 | 1) & 0xFF)
    if stop_asked and end.reason in (pb.END_REASON_KILLED, pb.END_REASON_SIGNAL, pb.END_REASON_LOST):
        return Verdict(v1.VM_STATE_STOPPED, "STOPPED_BY_USER", end.detail)
    if end.reason in (pb.END_REASON_MIGRATED, pb.END_REASON_ABANDONED):
        return Verdict(v1.VM_STATE_STOPPED, "MIGRATED", end.detail)
    reason, status = _CRASHES.get(end.reason, ("ENGINE_FAILURE", 126))
    return Verdict(v1.VM_STATE_CRASHED, reason, end.detail, status)


def failure_reason(kind: int, field: str) -> str:
    """Of a run that could not begin."""
    return _KIND_REASONS.get(kind) or ("IMAGE_FAILED" if field in ("kernel", "initrd", "disk", "disks") else
                                       "SPEC_REFUSED" if field else "ENGINE_FAILURE")


def phases(record: pb.VmRecord, seen: pb.Description | None) -> list[v1.Phase]:
    """Seconds since the agent learned of the run; a VM that came by migration brings its own."""
    out = [v1.Phase(name=p.name, seconds=p.seconds, detail=p.detail) for p in record.phases]
    for p in seen.phases if seen is not None else ():
        seconds = p.seconds
        if p.unix_time and record.run_asked_unix_time:
            seconds = max(0.0, p.unix_time - record.run_asked_unix_time)
        out.append(v1.Phase(name=p.name, seconds=seconds, detail=p.detail))
    return out


def observed(uid: str, record: pb.VmRecord, doing: int, alive: bool, seen: pb.Description | None,
             end: pb.End | None, message: str) -> agent.ObservedVm:
    """doing: a state that hides the process' own (CREATING …), or 0."""
    out = agent.ObservedVm(
        uid=uid, name=record.config.name, generation=record.generation, run=record.run, message=message,
        phases=phases(record, seen), reset_serial=record.reset_serial, spec_generation=record.spec_generation,
        migrating_in=is_incoming(record))
    if doing:
        out.state = doing
    elif alive:
        out.state = _ALIVE.get(seen.state, v1.VM_STATE_UNKNOWN) if seen is not None else v1.VM_STATE_UNKNOWN
        if record.stop_asked and out.state in (v1.VM_STATE_RUNNING, v1.VM_STATE_PAUSED):
            out.state = v1.VM_STATE_STOPPING
        if seen is None:
            out.reason = "NO_ANSWER"
    elif record.failure_reason:
        out.state, out.reason, out.message = v1.VM_STATE_CRASHED, record.failure_reason, record.failure_message
        out.exit_status = 126
    elif end is not None:
        how = verdict(end, record.stop_asked)
        out.state, out.reason, out.exit_status = how.state, how.reason, how.exit_status
        out.message = how.message or message
    else:
        out.state = v1.VM_STATE_CREATING if record.run else v1.VM_STATE_STOPPED
    return out


def is_incoming(record: pb.VmRecord) -> bool:
    """A copy that is being received: not (yet) this node's VM."""
    migration = record.migration
    return bool(migration.id) and not migration.outgoing and not migration.incoming_owned


def stats(uid: str, run: int, seen: pb.Description, memory_bytes: int, now: float) -> agent.VmStats:
    out = agent.VmStats(uid=uid, run=run, retired_instructions=seen.retired_instructions,
                        cpu_seconds=seen.engine_seconds, memory_bytes=memory_bytes)
    for reason, count in seen.exits.items():
        out.exits[reason.removeprefix("EXIT_REASON_")] = count
    out.time.FromNanoseconds(int(now * 1e9))
    return out
