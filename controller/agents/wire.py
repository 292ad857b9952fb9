"""Agent messages to records and back.

Owns:    every conversion between virga.agent.v1 and the controller's own types.
Never:   decides.
Threads: pure functions.
"""

from typing import Any

from controller import errors
from controller.agents.desired import Wanted, WantedMigration, WantedVm, decision_of
from controller.agents.hub import MigrationReport, Stats
from controller.api.wire import image_to_proto, spec_to_proto, time_from_proto
from controller.model.records import Decision, Phase, Power, VmState
from controller.model.vms import Report
from virga.agent.v1 import agent_pb2 as pb
from virga.v1 import vm_pb2

DECISIONS = {Decision.NONE: pb.MIGRATION_DECISION_UNSPECIFIED, Decision.COMMIT: pb.MIGRATION_DECISION_COMMIT,
             Decision.ABORT: pb.MIGRATION_DECISION_ABORT}
STEP_PREFIX, STATE_PREFIX = "MIGRATION_STEP_", "VM_STATE_"
POWERS = {Power.RUNNING: vm_pb2.POWER_STATE_RUNNING, Power.STOPPED: vm_pb2.POWER_STATE_STOPPED,
          Power.PAUSED: vm_pb2.POWER_STATE_PAUSED}
MAX_TEXT = 2000
MAX_PHASES = 16


def report_from_proto(vm: Any) -> Report:
    if not vm.uid:
        raise errors.BadField("observed.vms.uid", "is empty")
    name = vm_pb2.VmState.Name(vm.state) if vm.state in vm_pb2.VmState.values() else ""
    state = VmState.__members__.get(name.removeprefix(STATE_PREFIX), VmState.UNKNOWN)
    phases = tuple(Phase(phase.name[:40], phase.seconds, phase.detail[:200]) for phase in vm.phases[:MAX_PHASES])
    return Report(vm.uid, vm.generation, vm.run, state, gone=vm.gone, reason=vm.reason[:80],
                  message=vm.message[:MAX_TEXT], phases=phases, exit_status=vm.exit_status,
                  migrating_in=vm.migrating_in)


def migration_from_proto(migration: Any) -> MigrationReport:
    step = pb.MigrationStep.Name(migration.step) if migration.step in pb.MigrationStep.values() else ""
    return MigrationReport(
        uid=migration.uid, vm_uid=migration.vm_uid, step=step.removeprefix(STEP_PREFIX), address=migration.address,
        rounds=migration.rounds, bytes=migration.bytes, gap_ms=migration.gap_ms, decision_ms=migration.decision_ms,
        reason=migration.reason[:80], message=migration.message[:MAX_TEXT])


def stats_from_proto(stats: Any, now: float) -> Stats:
    return Stats(uid=stats.uid, run=stats.run, retired_instructions=stats.retired_instructions,
                 exits=dict(stats.exits), memory_bytes=stats.memory_bytes, cpu_seconds=stats.cpu_seconds,
                 time=time_from_proto(stats.time) if stats.HasField("time") else now)


def wish_from_proto(wish: int) -> Decision:
    for decision, number in DECISIONS.items():
        if number == wish and decision:
            return decision
    raise errors.BadField("wish", "must be COMMIT or ABORT")


def wanted_to_proto(wanted: Wanted, revision: int) -> Any:
    return pb.DesiredState(revision=revision, vms=map(_vm, wanted.vms), cordoned=wanted.cordoned,
                           migrations=map(_order, wanted.migrations))


def _vm(wanted: WantedVm) -> Any:
    record = wanted.record
    if record is None or wanted.image is None:
        return pb.DesiredVm(uid=wanted.uid, name=wanted.name, disposition=pb.DISPOSITION_REMOVE,
                            generation=wanted.generation)
    return pb.DesiredVm(
        uid=wanted.uid, name=wanted.name, disposition=pb.DISPOSITION_KEEP, generation=wanted.generation,
        spec=spec_to_proto(record.spec, record.power), image=image_to_proto(wanted.image, 0),
        power=POWERS[wanted.power], run=record.run, force_stop=record.force_stop, reset_serial=record.reset_serial,
        spec_generation=record.generation)


def _order(wanted: WantedMigration) -> Any:
    record = wanted.record
    decision, generation, owner = decision_of(record)
    return pb.MigrationOrder(
        uid=record.uid, vm_uid=record.vm_uid, token=record.token,
        role=pb.MIGRATION_ROLE_SOURCE if wanted.source else pb.MIGRATION_ROLE_TARGET,
        peer_node=record.target if wanted.source else record.source,
        peer_address=record.address if wanted.source else "", generation=record.generation,
        decision=DECISIONS[decision], owner_generation=generation, owner_node=owner,
        vm=_vm(wanted.vm) if wanted.vm else None, tls=wanted.tls)
