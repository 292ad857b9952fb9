"""Records to messages of virga.v1 and back.

Owns:    every conversion at the public edge, and the validation of what comes in by it.
Never:   decides; reads the store.
Threads: pure functions.
"""

from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from controller.errors import BadField
from controller.model import names
from controller.model.records import (
    Clock, Decision, EventRecord, FileRole, ImageFile, ImageKind, ImageRecord, MigrationRecord, Placement, Power,
    Restart, VmSpec,
)
from controller.store.world import VmView
from virga.v1 import event_pb2, image_pb2, migration_pb2, vm_pb2

MAX_MEMORY_MIB, MAX_CPUS, MAX_DISKS = 1 << 20, 64, 8
DEFAULT_MEMORY_MIB = 256
MAX_APPEND, MAX_LABELS = 2000, 32
MAX_IMAGE_FILE = 1 << 40
E = TypeVar("E")


def time_to_proto(seconds: float) -> Timestamp | None:
    if not seconds:
        return None
    stamp = Timestamp()
    stamp.FromMicroseconds(int(seconds * 1e6))
    return stamp


def time_from_proto(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos / 1e9


def enum_from_proto(field: str, enum: Any, prefix: str, kind: type[E], number: int, default: E | None = None) -> E:
    """The member of kind with the wire's name less its prefix. Raises BadField."""
    if number not in enum.values():
        raise BadField(field, f"{number} is not known here")
    if number == 0:
        if default is None:
            raise BadField(field, "is missing")
        return default
    return kind.__members__[enum.Name(number).removeprefix(prefix)]                 # type: ignore[attr-defined]


def clean_text(field: str, text: str, limit: int) -> str:
    if len(text) > limit:
        raise BadField(field, f"is longer than {limit} letters")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise BadField(field, "has control characters")
    return text


# ── VMs ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def spec_from_proto(spec: Any, image_uid: str) -> tuple[VmSpec, Power]:
    """Raises BadField."""
    memory, cpus = spec.memory_mib or DEFAULT_MEMORY_MIB, spec.cpus or 1
    if memory > MAX_MEMORY_MIB:
        raise BadField("spec.memory_mib", f"is {memory}, more than {MAX_MEMORY_MIB}")
    if cpus > MAX_CPUS:
        raise BadField("spec.cpus", f"is {cpus}, more than {MAX_CPUS}")
    if len(spec.node_selector) > MAX_LABELS:
        raise BadField("spec.node_selector", f"has more than {MAX_LABELS} labels")
    for key, value in spec.node_selector.items():
        names.check("spec.node_selector", key, names.LABEL)
        if value:
            names.check("spec.node_selector", value, names.LABEL)
    if spec.anti_affinity_group:
        names.check("spec.anti_affinity_group", spec.anti_affinity_group, names.LABEL)
    if len(spec.disks) > MAX_DISKS:
        raise BadField("spec.disks", f"has more than {MAX_DISKS}")
    if any(not 0 < disk.size_mib <= MAX_MEMORY_MIB for disk in spec.disks):
        raise BadField("spec.disks.size_mib", f"must be 1 to {MAX_MEMORY_MIB}")
    power = enum_from_proto("spec.power", vm_pb2.PowerState, "POWER_STATE_", Power, spec.power, Power.RUNNING)
    if power is Power.PAUSED:
        raise BadField("spec.power", "a VM begins RUNNING or STOPPED")
    return VmSpec(
        image=image_uid, memory_mib=memory, cpus=cpus, node_selector=dict(spec.node_selector),
        anti_affinity_group=spec.anti_affinity_group,
        restart_policy=enum_from_proto("spec.restart_policy", vm_pb2.RestartPolicy, "RESTART_POLICY_", Restart,
                                       spec.restart_policy, Restart.NEVER),
        append=clean_text("spec.append", spec.append, MAX_APPEND),
        disks_mib=tuple(disk.size_mib for disk in spec.disks),
        clock=enum_from_proto("spec.clock", vm_pb2.ClockMode, "CLOCK_MODE_", Clock, spec.clock, Clock.REAL)), power


def spec_to_proto(spec: VmSpec, power: Power) -> Any:
    return vm_pb2.VmSpec(
        image=spec.image, memory_mib=spec.memory_mib, cpus=spec.cpus, node_selector=spec.node_selector,
        anti_affinity_group=spec.anti_affinity_group, append=spec.append,
        restart_policy=f"RESTART_POLICY_{spec.restart_policy}", power=f"POWER_STATE_{power}",
        disks=[vm_pb2.Disk(size_mib=size) for size in spec.disks_mib], clock=f"CLOCK_MODE_{spec.clock}")


def vm_to_proto(view: VmView) -> Any:
    record, status, assignment = view.record, view.status, view.assignment
    return vm_pb2.Vm(
        uid=view.uid, name=record.name, spec=spec_to_proto(record.spec, record.power), generation=record.generation,
        revision=view.revision, create_time=time_to_proto(record.create_time),
        delete_time=time_to_proto(record.delete_time), image_name=record.image_name,
        status=vm_pb2.VmStatus(
            state=f"VM_STATE_{status.state}", node=view.node, reason=status.reason, message=status.message,
            placement=placement_to_proto(status.placement) if status.placement else None,
            phases=[vm_pb2.Phase(name=phase.name, seconds=phase.seconds, detail=phase.detail)
                    for phase in status.phases],
            ownership_generation=assignment.generation if assignment else 0, run=record.run,
            restarts=record.restarts, migration=view.pointer_entry.record.uid if view.pointer_entry else "",
            run_time=time_to_proto(record.run_time), state_time=time_to_proto(status.state_time),
            exit_status=status.exit_status))


def placement_to_proto(placement: Placement) -> Any:
    return vm_pb2.PlacementReport(
        nodes=placement.nodes, summary=placement.summary, hint=placement.hint,
        refusals=[vm_pb2.PlacementRefusal(filter=refusal.filter, nodes=refusal.nodes, text=refusal.text)
                  for refusal in placement.refusals])


# ── images ────────────────────────────────────────────────────────────────────────────────────────────────────────────


ROLES = {ImageKind.LINUX: ({FileRole.KERNEL}, {FileRole.INITRD}),          # kind: (must have, may have)
         ImageKind.MULTIBOOT: ({FileRole.KERNEL}, {FileRole.INITRD}),
         ImageKind.DISK: ({FileRole.DISK}, set())}


def image_from_proto(image: Any, uid: str, now: float) -> ImageRecord:
    """Raises BadField."""
    names.check("image.name", image.name, names.IMAGE_NAME)
    kind = enum_from_proto("image.kind", image_pb2.ImageKind, "IMAGE_KIND_", ImageKind, image.kind)
    files = tuple(_file_from_proto(file) for file in image.files)
    roles = [file.role for file in files]
    must, may = ROLES[kind]
    if len(set(roles)) != len(roles):
        raise BadField("image.files", "has two files of one role")
    if missing := must - set(roles):
        raise BadField("image.files", f"{kind} needs a {min(missing).lower()}")
    if surplus := set(roles) - must - may:
        raise BadField("image.files", f"{kind} has no {min(surplus).lower()}")
    if image.min_memory_mib > MAX_MEMORY_MIB:
        raise BadField("image.min_memory_mib", f"is more than {MAX_MEMORY_MIB}")
    return ImageRecord(uid=uid, name=image.name, kind=kind, files=files, create_time=now,
                       append=clean_text("image.append", image.append, MAX_APPEND),
                       ready_marker=clean_text("image.ready_marker", image.ready_marker, 200),
                       description=clean_text("image.description", image.description, 500),
                       min_memory_mib=image.min_memory_mib)


def _file_from_proto(file: Any) -> ImageFile:
    role = enum_from_proto("image.files.role", image_pb2.FileRole, "FILE_ROLE_", FileRole, file.role)
    if not 0 < file.size_bytes <= MAX_IMAGE_FILE:
        raise BadField("image.files.size_bytes", f"the {role.lower()} must have 1 to {MAX_IMAGE_FILE} bytes")
    return ImageFile(role, file.size_bytes, names.check("image.files.sha256", file.sha256, names.SHA256))


def image_to_proto(image: ImageRecord, revision: int) -> Any:
    return image_pb2.Image(
        uid=image.uid, name=image.name, kind=f"IMAGE_KIND_{image.kind}", append=image.append,
        ready_marker=image.ready_marker, revision=revision, create_time=time_to_proto(image.create_time),
        description=image.description, min_memory_mib=image.min_memory_mib,
        size_bytes=sum(file.size_bytes for file in image.files),
        files=[image_pb2.ImageFile(role=f"FILE_ROLE_{file.role}", size_bytes=file.size_bytes, sha256=file.sha256)
               for file in image.files])


# ── migrations and events ─────────────────────────────────────────────────────────────────────────────────────────────


def migration_to_proto(record: MigrationRecord, revision: int, now: float) -> Any:
    commits = record.decision is Decision.COMMIT
    return migration_pb2.Migration(
        uid=record.uid, vm_uid=record.vm_uid, vm_name=record.vm_name, source_node=record.source,
        target_node=record.target, phase=f"MIGRATION_PHASE_{record.phase}", reason=record.reason,
        message=record.message, rounds=record.rounds, bytes=record.bytes,
        total_ms=max(0.0, (record.end_time or now) - record.create_time) * 1000,
        gap_ms=record.gap_ms if commits else 0.0, decision_ms=record.decision_ms if commits else 0.0,
        create_time=time_to_proto(record.create_time), end_time=time_to_proto(record.end_time), revision=revision)


def event_to_proto(event: EventRecord, revision: int) -> Any:
    return event_pb2.Event(
        uid=event.uid, time=time_to_proto(event.time), reason=event.reason, message=event.message, node=event.node,
        severity=event_pb2.EVENT_SEVERITY_WARNING if event.warning else event_pb2.EVENT_SEVERITY_INFO,
        object=event_pb2.ObjectRef(kind=event.kind, name=event.name, uid=event.object_uid), revision=revision)
