"""Waiting for virtual machines: what verbs that change something do until it is so.

Owns:    the wait loop, the line per phase, and what Ctrl-C and a time-out mean: they end the waiting, nothing else.
Never:   asks for a change itself.
Threads: one.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from cli.api import Api
from cli.errors import FAILURE, REFUSED, TIMED_OUT, CliError, refused_capacity
from cli.output import Progress
from cli.records import enum_word

PHASE_WORDS = {"placed": "placed on", "image": "image ready", "process": "process started", "kernel": "kernel started",
               "user_space": "user space"}
SUMMARY_WORDS = {"user_space": "user space"}
# what a check says of a VM: None: not yet; "": done; a CliError: never
Verdict = CliError | str | None


def state_of(vm: Any) -> str:
    return enum_word(vm.status, "state", "VM_STATE_")


@contextmanager
def detachable(what: str, again: str) -> Iterator[None]:
    """Ctrl-C leaves what was asked for as it is, and says so."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\ndetached: {what}. Look on with: {again}", file=sys.stderr)
        raise click.exceptions.Exit(130) from None


def wait_for(api: Api, vms: Sequence[Any], check: Callable[[Any, bool], Verdict], timeout_s: float, doing: str,
             progress: Progress | None = None) -> dict[str, Any]:
    """Follow the VMs until check(vm, deleted) has a verdict on each; the last seen of each, by uid.

    The first verdict that is an error is raised when all have one. A time-out says which are still on their way."""
    from virga.v1 import vm_pb2

    waiting = {vm.uid: vm for vm in vms}
    last, verdicts, shown = dict(waiting), {}, {vm.uid: 0 for vm in vms}
    request = vm_pb2.WatchVmsRequest(vm=vms[0].uid if len(vms) == 1 else "")
    listed: set[str] | None = None
    names = ", ".join(vm.name for vm in vms)
    with detachable(f"{names}: {doing} goes on", f"virga vm watch {vms[0].name}"):
        for message in _until_gone(api, request, time.monotonic() + timeout_s):
            if message.kind == vm_pb2.WATCH_KIND_RESET:
                listed = set()
            gone: list[str] = []
            if message.kind == vm_pb2.WATCH_KIND_SYNCED and listed is not None:
                gone, listed = [uid for uid in waiting if uid not in listed], None
            elif message.kind == vm_pb2.WATCH_KIND_DELETED:
                gone = [message.vm.uid]
            elif message.kind == vm_pb2.WATCH_KIND_PUT:
                if listed is not None:
                    listed.add(message.vm.uid)
                if message.vm.uid in waiting:
                    last[message.vm.uid] = message.vm
                    shown[message.vm.uid] = show_phases(message.vm, shown[message.vm.uid], progress)
                    _judge(waiting, verdicts, message.vm, check(message.vm, False))
            for uid in gone:
                if uid in waiting:
                    _judge(waiting, verdicts, last[uid], check(last[uid], True))
            if not waiting:
                break
    if waiting:
        first = next(iter(waiting.values()))
        raise CliError("timed_out", f"still {doing} after {timeout_s:g} s: {', '.join(vm.name for vm in waiting.values())} "
                       f"({state_of(last[first.uid])}); it goes on", TIMED_OUT, f"virga vm watch {first.name}")
    for verdict in verdicts.values():
        if isinstance(verdict, CliError):
            raise verdict
    return last


def _until_gone(api: Api, request: Any, deadline: float) -> Iterator[Any]:
    """A watch in which a VM that is deleted before the first message is a deletion, not an error."""
    from virga.v1 import vm_pb2

    try:
        yield from api.watch(api.vms.WatchVms, request, deadline)
    except CliError as error:
        if not request.vm or not error.kind.startswith("not_found"):
            raise
        yield vm_pb2.WatchVmsResponse(kind=vm_pb2.WATCH_KIND_DELETED, vm=vm_pb2.Vm(uid=request.vm))


def _judge(waiting: dict[str, Any], verdicts: dict[str, Verdict], vm: Any, verdict: Verdict) -> None:
    if verdict is not None:
        verdicts[vm.uid] = verdict
        waiting.pop(vm.uid, None)


def show_phases(vm: Any, already: int, progress: Progress | None) -> int:
    """Print the phases not yet shown; the new count. A new run begins again."""
    if already > len(vm.status.phases):
        already = 0
    for phase in list(vm.status.phases)[already:]:
        word, detail = PHASE_WORDS.get(phase.name, phase.name), phase.detail
        if phase.name == "placed":
            word, detail = f"placed on {phase.detail}", ""
        if progress:
            progress.phase(vm.name, word, phase.seconds, f"({detail})" if detail == "cached" else detail)
    return len(vm.status.phases)


def summary(vm: Any) -> str:
    """placed node-3 0.1 s · image 0.4 s · kernel 2.0 s · user space 4.1 s"""
    return " · ".join(f"{SUMMARY_WORDS.get(p.name, p.name)}{' ' + p.detail if p.name == 'placed' else ''} {p.seconds:.1f} s"
                      for p in vm.status.phases if p.name != "process")


def up_and_running(has_marker: bool, after_run: int = 0) -> Callable[[Any, bool], Verdict]:
    """Verdict of create and start: user space where the image can tell, else running."""

    def check(vm: Any, deleted: bool) -> Verdict:
        state = state_of(vm)
        if deleted or state == "DELETING":
            return CliError("failure.deleted", f"{vm.name} was deleted meanwhile", FAILURE)
        if state == "PENDING" and vm.status.placement.summary:
            report = vm.status.placement
            return refused_capacity(vm.name, vm.spec.memory_mib, report.summary, report.hint, left_pending=True)
        if vm.status.run <= after_run:
            return None
        if state == "RUNNING":
            ready = not has_marker or any(phase.name == "user_space" for phase in vm.status.phases)
            return "" if ready else None
        if state == "STOPPED":
            return ""                                  # it ran and powered itself off
        if state == "CRASHED" and enum_word(vm.spec, "restart_policy", "RESTART_POLICY_") != "ON_FAILURE":
            return crashed(vm)
        return None

    return check


def crashed(vm: Any) -> CliError:
    status = vm.status
    refused = status.reason in ("DISK_FULL", "NO_CAPACITY")
    return CliError(f"failure.{status.reason.lower() or 'crashed'}", f"{vm.name} crashed on {status.node or 'its node'}: "
                    f"{status.message or status.reason}", REFUSED if refused else FAILURE,
                    f"virga vm log {vm.name}; virga events --for vm/{vm.name}")


def reached(*states: str) -> Callable[[Any, bool], Verdict]:
    """Verdict: done in one of these states; a crash or a deletion meanwhile is an error."""

    def check(vm: Any, deleted: bool) -> Verdict:
        state = state_of(vm)
        if deleted:
            return CliError("failure.deleted", f"{vm.name} was deleted meanwhile", FAILURE)
        if state in states:
            return ""
        return crashed(vm) if state == "CRASHED" else None

    return check


def gone(vm: Any, deleted: bool) -> Verdict:
    return "" if deleted else None
