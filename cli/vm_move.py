"""`virga vm migrate|exits|watch`.

Owns:    these verbs; a migration is followed until it succeeded or failed.
Never:   cancels a migration because nobody waits for it any more.
Threads: one.
"""

import json
import time
from typing import Any

import click

from cli.errors import FAILURE, TIMED_OUT, CliError
from cli.options import Target, format_option, target_options, wait_options
from cli.output import Columns, Progress, byte_size, emit

EXIT_COLUMNS = Columns({"REASON": "reason", "COUNT": "count", "SHARE": "share"}, name="reason")


@click.command()
@click.argument("name")
@click.option("--to", "node", default="", metavar="NODE", help="Left out: the scheduler chooses.")
@wait_options(300)
@format_option
@target_options
def migrate(target: Target, name: str, node: str, timeout: float, no_wait: bool, form: str) -> None:
    """Move a running VM to another node while it runs."""
    from cli.api import request_id
    from cli.records import MIGRATION_COLUMNS, migration_record
    from virga.v1 import migration_pb2

    api = target.api()
    request = migration_pb2.CreateMigrationRequest(vm=name, target_node=node, request_id=request_id())
    migration = api.call(api.migrations.CreateMigration, request, node or name).migration
    if not no_wait:
        migration = follow(api, migration, timeout)
    record = migration_record(migration)
    if form == "table":
        click.echo(told(record))
    else:
        emit(record, form, MIGRATION_COLUMNS)
    if record["phase"] == "FAILED":
        raise CliError(f"failure.{(record['reason'] or 'migration').lower()}",
                       f"{record['vm']} stays on {record['source']}: {record['message'] or record['reason']}", FAILURE,
                       f"virga events --for vm/{record['vm']}")


def told(record: dict[str, Any]) -> str:
    if record["phase"] == "SUCCEEDED":
        return (f"{record['vm']} moved from {record['source']} to {record['target']} in {record['total_ms'] / 1000:.2f} s: "
                f"{record['rounds']} rounds, {byte_size(record['bytes'])}; it stood still for {record['gap_ms']:.1f} ms "
                f"({record['decision_ms']:.1f} ms of them the decision)")
    return f"{record['vm']} {record['source']} → {record['target']}: {record['phase'].lower()}"


def follow(api: Any, migration: Any, timeout_s: float) -> Any:
    """Wait until it ended; each change of phase is a line."""
    from cli import waiting
    from cli.records import migration_record
    from virga.v1 import migration_pb2, vm_pb2

    progress, shown, start = Progress(), "", time.monotonic()
    request = migration_pb2.WatchMigrationsRequest(migration=migration.uid)
    with waiting.detachable(f"the migration of {migration.vm_name} goes on", f"virga vm watch {migration.vm_name}"):
        for message in api.watch(api.migrations.WatchMigrations, request, start + timeout_s):
            if message.kind != vm_pb2.WATCH_KIND_PUT or message.migration.uid != migration.uid:
                continue
            migration = message.migration
            record = migration_record(migration)
            if record["phase"] != shown:
                shown = record["phase"]
                progress.phase(record["vm"], shown.lower(), time.monotonic() - start,
                               f"{record['source']} → {record['target']}")
            if shown in ("SUCCEEDED", "FAILED"):
                return migration
    raise CliError("timed_out", f"{migration.vm_name} is still moving after {timeout_s:g} s; it goes on", TIMED_OUT,
                   f"virga vm watch {migration.vm_name}")


@click.command()
@click.argument("name")
@format_option
@target_options
def exits(target: Target, name: str, form: str) -> None:
    """Why the guest left to its hypervisor, how often, and how many instructions it retired."""
    from virga.v1 import vm_pb2

    api = target.api()
    answer = api.call(api.vms.GetVmExits, vm_pb2.GetVmExitsRequest(vm=name), name)
    total = sum(item.count for item in answer.exits)
    record = {"vm": name, "retired_instructions": answer.retired_instructions,
              "exits": {item.reason: item.count for item in answer.exits}, "memory_bytes": answer.memory_bytes,
              "cpu_seconds": round(answer.cpu_seconds, 3),
              "time": answer.time.ToJsonString() if answer.HasField("time") else None}
    if form in ("json", "yaml"):
        emit(record, form, EXIT_COLUMNS)
        return
    emit([{"reason": item.reason, "count": item.count, "share": f"{100 * item.count / max(total, 1):.1f} %"}
          for item in answer.exits], form, EXIT_COLUMNS)
    if form != "name":
        click.echo(f"{answer.retired_instructions:,} instructions retired, {total:,} exits, "
                   f"{byte_size(answer.memory_bytes)} of memory, {answer.cpu_seconds:.1f} s of processor time")


@click.command()
@click.argument("name", default="")
@format_option
@target_options
def watch(target: Target, name: str, form: str) -> None:
    """Print each change of a VM, or of all, until Ctrl-C (or until the VM is deleted)."""
    from cli import waiting
    from cli.records import vm_record
    from virga.v1 import vm_pb2

    api = target.api()
    shown: dict[str, str] = {}
    with waiting.detachable("nothing was changed", f"virga vm watch {name}".rstrip()):
        for message in api.watch(api.vms.WatchVms, vm_pb2.WatchVmsRequest(vm=name)):
            if message.kind not in (vm_pb2.WATCH_KIND_PUT, vm_pb2.WATCH_KIND_DELETED):
                continue
            deleted = message.kind == vm_pb2.WATCH_KIND_DELETED
            record = {"name": message.vm.name, "uid": message.vm.uid, "state": "DELETED"} if deleted else vm_record(message.vm)
            line = change_line(record)
            if form == "json":
                click.echo(json.dumps(record))
            elif shown.get(record["uid"]) != line:
                click.echo(record["name"] if form == "name" else line)
            shown[record["uid"]] = line
            if deleted and name:
                return


def change_line(record: dict[str, Any]) -> str:
    last = record["phases"][-1] if record.get("phases") else None
    parts = [record["state"], f"on {record['node']}" if record.get("node") else "",
             f"{last['name'].replace('_', ' ')} {last['seconds']:.1f} s" if last else "",
             "migrating" if record.get("migration") else "",
             record.get("message") or record.get("reason") or ""]
    return f"{record['name']}  " + "  ".join(part for part in parts if part)


VERBS = (migrate, exits, watch)
