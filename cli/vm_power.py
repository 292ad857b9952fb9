"""`virga vm start|stop|reset|pause|resume|delete`: each asks, then waits until it is so.

Owns:    these verbs. Each takes several names; all are asked before the first is waited for.
Never:   gives up what was asked for: a time-out says that it goes on.
Threads: one.
"""

from collections.abc import Callable
from typing import Any

import click

from cli.options import Target, format_option, target_options, wait_options
from cli.output import Progress, emit


def sentence(vm: Any) -> str:
    """What became of a VM that was created or started; with its phases, unless they were shown as they came."""
    from cli import waiting

    state = waiting.state_of(vm)
    phases = "" if Progress().shown else waiting.summary(vm)
    told = f"{vm.name}  {phases}\n" if phases else ""
    if state == "RUNNING":
        return f"{told}{vm.name} is running on {vm.status.node}.  Console: virga vm console {vm.name}"
    if state == "STOPPED":
        return f"{told}{vm.name} ran on {vm.status.node} and powered off.  Output: virga vm log {vm.name}"
    return f"{told}{vm.name} is {state}.  Look on: virga vm watch {vm.name}"


def print_result(vms: list[Any], form: str, lines: Callable[[Any], str]) -> None:
    from cli.records import VM_COLUMNS, vm_record

    if form == "table":
        for vm in vms:
            click.echo(lines(vm))
        return
    records = [vm_record(vm) for vm in vms]
    emit(records[0] if len(records) == 1 else records, form, VM_COLUMNS)


def ask_all(target: Target, names: tuple[str, ...], method: str, request: str, **fields: Any) -> tuple[Any, list[Any]]:
    """Call one method for each name; the API and the answers' VMs."""
    from virga.v1 import vm_pb2

    api = target.api()
    make = getattr(vm_pb2, request)
    return api, [api.call(getattr(api.vms, method), make(vm=name, **fields), name).vm for name in names]


names_argument = click.argument("names", nargs=-1, required=True, metavar="NAME…")


@click.command()
@names_argument
@wait_options(300)
@format_option
@target_options
def start(target: Target, names: tuple[str, ...], timeout: float, no_wait: bool, form: str) -> None:
    """Start VMs that are stopped or crashed, and wait for their user space."""
    from cli import waiting
    from virga.v1 import image_pb2, vm_pb2

    api = target.api()
    before = [api.call(api.vms.GetVm, vm_pb2.GetVmRequest(vm=name), name).vm for name in names]
    _, vms = ask_all(target, names, "StartVm", "StartVmRequest")
    for i, (old, new) in enumerate(zip(before, vms)):
        if no_wait:
            continue
        image = api.call(api.images.GetImage, image_pb2.GetImageRequest(image=old.spec.image)).image
        ended = waiting.state_of(old) in ("STOPPED", "CRASHED")
        check = waiting.up_and_running(bool(image.ready_marker), old.status.run if ended else 0)
        vms[i] = waiting.wait_for(api, [new], check, timeout, "starting", Progress())[new.uid]
    print_result(vms, form, sentence)


@click.command()
@names_argument
@click.option("--force", is_flag=True, help="End it at once instead of pressing the power button.")
@wait_options(60)
@format_option
@target_options
def stop(target: Target, names: tuple[str, ...], force: bool, timeout: float, no_wait: bool, form: str) -> None:
    """Press the ACPI power button, and wait until the guest has powered off."""
    from cli import waiting
    from cli.errors import CliError

    api, vms = ask_all(target, names, "StopVm", "StopVmRequest", force=force)
    if not no_wait:
        try:
            seen = waiting.wait_for(api, vms, waiting.reached("STOPPED", "CRASHED"), timeout, "stopping", Progress())
        except CliError as error:
            if error.kind == "timed_out":
                error.hint = f"virga vm stop --force {vms[0].name}, if its guest does not answer the power button"
            raise
        vms = [seen[vm.uid] for vm in vms]
    print_result(vms, form, lambda vm: f"{vm.name} is {waiting.state_of(vm).lower()}.")


@click.command()
@names_argument
@format_option
@target_options
def reset(target: Target, names: tuple[str, ...], form: str) -> None:
    """Press the reset button."""
    from cli.api import request_id

    _, vms = ask_all(target, names, "ResetVm", "ResetVmRequest", request_id=request_id())
    print_result(vms, form, lambda vm: f"{vm.name} was reset.")


def _pausing(method: str, state: str, doing: str) -> Callable[..., None]:
    def verb(target: Target, names: tuple[str, ...], timeout: float, no_wait: bool, form: str) -> None:
        from cli import waiting

        api, vms = ask_all(target, names, method, f"{method}Request")
        if not no_wait:
            seen = waiting.wait_for(api, vms, waiting.reached(state), timeout, doing, Progress())
            vms = [seen[vm.uid] for vm in vms]
        print_result(vms, form, lambda vm: f"{vm.name} is {waiting.state_of(vm).lower()}.")
    return names_argument(wait_options(60)(format_option(target_options(verb))))


pause = click.command("pause", help="Stop the processors; the guest's clock stands still.")(
    _pausing("PauseVm", "PAUSED", "pausing"))
resume = click.command("resume", help="Let a paused VM go on.")(_pausing("ResumeVm", "RUNNING", "resuming"))


FORGET_WARNING = ("warning: {name} is forgotten without {node}'s word: where that node still lives, its copy runs on until "
                  "the node is back with the controller, and is removed then")


@click.command()
@names_argument
@click.option("--forget", is_flag=True, help="Do not wait for the VM's node: for nodes that never come back. "
              "A node that still lives unseen runs its copy until it comes back.")
@wait_options(60)
@format_option
@target_options
def delete(target: Target, names: tuple[str, ...], forget: bool, timeout: float, no_wait: bool, form: str) -> None:
    """Stop VMs at once and remove them with their disks and logs."""
    from cli import waiting
    from cli.errors import CliError

    api, vms = ask_all(target, names, "DeleteVm", "DeleteVmRequest", forget=forget)
    if forget:                                                 # the answer says that the records are gone
        for vm in vms:
            if vm.status.node:
                click.echo(FORGET_WARNING.format(name=vm.name, node=vm.status.node), err=True)
    elif not no_wait:
        try:
            waiting.wait_for(api, vms, waiting.gone, timeout, "being deleted", Progress())
        except CliError as error:
            if error.kind == "timed_out":
                error.hint = f"{error.hint}; virga vm delete --forget NAME, if its node never comes back (virga node list)"
            raise
    word = "forgotten" if forget else "being deleted" if no_wait else "deleted"
    print_result(vms, form, lambda vm: f"{vm.name} is {word}.")


VERBS = (start, stop, reset, pause, resume, delete)
