"""Wire messages as plain records for -o json|yaml and the tables' columns.

Owns:    the keys people's scripts rely on; they change only by addition.
Never:   calls anything.
Threads: none.
"""

import time
from typing import Any

from cli.output import Columns, age, byte_size

VM_COLUMNS = Columns({"NAME": "name", "STATE": "state", "NODE": "node", "CPUS": "cpus", "MEMORY": "memory",
                      "IMAGE": "image", "AGE": "age"},
                     {"ID": "uid", "RUN": "run", "RESTARTS": "restarts", "REASON": "reason", "MESSAGE": "message"})
NODE_COLUMNS = Columns({"NAME": "name", "STATE": "state", "SCHEDULABLE": "schedulable", "VMS": "vms",
                        "MEMORY FREE": "memory_free", "MEMORY": "memory", "CPUS FREE": "cpus_free", "CPUS": "cpus"},
                       {"ID": "uid", "LABELS": "labels", "AGENT": "agent_version", "ADDRESS": "address"})
IMAGE_COLUMNS = Columns({"NAME": "name", "KIND": "kind", "SIZE": "size", "AGE": "age"},
                        {"ID": "uid", "DESCRIPTION": "description", "APPEND": "append"})
MIGRATION_COLUMNS = Columns({"VM": "vm", "FROM": "source", "TO": "target", "PHASE": "phase", "TOTAL ms": "total_ms",
                             "GAP ms": "gap_ms", "DECISION ms": "decision_ms", "ROUNDS": "rounds", "BYTES": "bytes"},
                            {"ID": "uid", "REASON": "reason"}, name="uid")
EVENT_COLUMNS = Columns({"TIME": "time", "OBJECT": "object", "REASON": "reason", "MESSAGE": "message"},
                        {"NODE": "node", "SEVERITY": "severity"}, name="uid")


def enum_word(message: Any, field: str, prefix: str) -> str:
    """An enum's value without its prefix: VM_STATE_RUNNING → RUNNING; numbers of a newer server stay numbers."""
    kind = message.DESCRIPTOR.fields_by_name[field].enum_type
    value = kind.values_by_number.get(getattr(message, field))
    return value.name.removeprefix(prefix) if value else str(getattr(message, field))


def stamp(message: Any, field: str) -> str | None:
    return getattr(message, field).ToJsonString() if message.HasField(field) else None


def _age(message: Any) -> str:
    return age(time.time() - message.create_time.ToMilliseconds() / 1000) if message.HasField("create_time") else "-"


def phases(vm: Any) -> list[dict[str, Any]]:
    return [{"name": phase.name, "seconds": round(phase.seconds, 3), "detail": phase.detail} for phase in vm.status.phases]


def vm_record(vm: Any) -> dict[str, Any]:
    spec, status = vm.spec, vm.status
    return {"name": vm.name, "state": enum_word(status, "state", "VM_STATE_"), "node": status.node or None, "uid": vm.uid,
            "cpus": spec.cpus, "memory_mib": spec.memory_mib, "memory": byte_size(spec.memory_mib << 20),
            "image": vm.image_name or spec.image, "power": enum_word(spec, "power", "POWER_STATE_"),
            "restart": enum_word(spec, "restart_policy", "RESTART_POLICY_").lower().replace("_", "-"),
            "node_selector": dict(spec.node_selector), "anti_affinity": spec.anti_affinity_group or None,
            "append": spec.append or None, "disks_mib": [disk.size_mib for disk in spec.disks],
            "reason": status.reason or None, "message": status.message or status.placement.summary or None,
            "run": status.run, "restarts": status.restarts, "exit_status": status.exit_status,
            "migration": status.migration or None, "ownership_generation": status.ownership_generation,
            "phases": phases(vm), "created": stamp(vm, "create_time"), "age": _age(vm)}


def node_record(node: Any) -> dict[str, Any]:
    status = node.status
    state = enum_word(status, "state", "NODE_STATE_")
    schedulable = "draining" if node.spec.draining else "cordoned" if node.spec.cordoned else "yes"
    return {"name": node.name, "state": state, "schedulable": schedulable, "uid": node.uid, "vms": status.vms,
            "memory_mib": status.memory_mib, "memory_free_mib": status.memory_free_mib,
            "memory": byte_size(status.memory_mib << 20), "memory_free": byte_size(status.memory_free_mib << 20),
            "cpus": status.cpus, "cpus_free": status.cpus_free, "cpus_allocated": status.cpus_allocated,
            "memory_allocated_mib": status.memory_allocated_mib, "labels": dict(status.labels),
            "agent_version": status.agent_version or None, "address": status.address or None,
            "drain": {"remaining": status.drain.remaining, "moved": status.drain.moved,
                      "stuck": list(status.drain.stuck)} if node.spec.draining else None,
            "last_seen": stamp(status, "last_seen_time"), "created": stamp(node, "create_time")}


def image_record(image: Any) -> dict[str, Any]:
    files = {enum_word(part, "role", "FILE_ROLE_").lower(): {"size_bytes": part.size_bytes, "sha256": part.sha256}
             for part in image.files}
    return {"name": image.name, "kind": enum_word(image, "kind", "IMAGE_KIND_").lower(), "uid": image.uid,
            "size_bytes": image.size_bytes, "size": byte_size(image.size_bytes), "append": image.append or None,
            "ready_marker": image.ready_marker or None, "description": image.description or None,
            "files": files, "created": stamp(image, "create_time"), "age": _age(image)}


def migration_record(migration: Any) -> dict[str, Any]:
    return {"uid": migration.uid, "vm": migration.vm_name, "source": migration.source_node, "target": migration.target_node,
            "phase": enum_word(migration, "phase", "MIGRATION_PHASE_"), "total_ms": round(migration.total_ms, 3),
            "gap_ms": round(migration.gap_ms, 3), "decision_ms": round(migration.decision_ms, 3),
            "rounds": migration.rounds, "bytes": migration.bytes, "reason": migration.reason or None,
            "message": migration.message or None}


def event_record(event: Any) -> dict[str, Any]:
    return {"time": event.time.ToJsonString(), "severity": enum_word(event, "severity", "EVENT_SEVERITY_"),
            "object": f"{event.object.kind}/{event.object.name}", "reason": event.reason, "message": event.message,
            "node": event.node or None, "uid": event.uid, "revision": event.revision}
