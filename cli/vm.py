"""`virga vm`: create, list, show; the other verbs come from the neighbours vm_power, vm_console and vm_move.

Owns:    the group, creation and its dry run.
Never:   waits by itself (waiting.py).
Threads: one.
"""

from typing import Any

import click

from cli import vm_console, vm_move, vm_power
from cli.options import MemoryType, Target, format_option, pairs, target_options, wait_options
from cli.output import Columns, Progress, emit

RESTART = {"never": 1, "on-failure": 2}
VERDICT_COLUMNS = Columns({"NODE": "node", "FITS": "fits", "SCORE": "score", "SCORES": "scores", "AGAINST": "refusals"},
                          name="node")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def vm() -> None:
    """Virtual machines. They are named by name, id, or a unique beginning of the id."""


for module in (vm_power, vm_console, vm_move):
    for verb in module.VERBS:
        vm.add_command(verb)


@vm.command()
@click.argument("name")
@click.option("--image", required=True, metavar="IMAGE", help="Name or id; virga image list shows them.")
@click.option("--memory", type=MemoryType(), default="256M", show_default=True, metavar="SIZE")
@click.option("--cpus", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--count", type=click.IntRange(1, 1000), default=1, help="Make NAME-1 … NAME-N.")
@click.option("--append", default="", metavar="TEXT", help="Added to the image's kernel command line.")
@click.option("--disk", "disks", type=MemoryType(), multiple=True, metavar="SIZE", help="An empty raw disk; repeatable.")
@click.option("--node-selector", multiple=True, callback=pairs, metavar="KEY=VALUE", help="Only nodes with this label.")
@click.option("--anti-affinity", default="", metavar="GROUP", help="No two VMs of a group on one node.")
@click.option("--restart", type=click.Choice(list(RESTART)), default="never", show_default=True, help="After a crash.")
@click.option("--clock", type=click.Choice(["real", "virtual"]), default="real", show_default=True)
@click.option("--dry-run", is_flag=True, help="Print every node's score, or what speaks against it; create nothing.")
@wait_options(300)
@format_option
@target_options
def create(target: Target, name: str, count: int, dry_run: bool, form: str, timeout: float, no_wait: bool,
           **wanted: Any) -> None:
    """Create a VM and wait until its user space is up."""
    api = target.api()
    spec = make_spec(**wanted)
    if dry_run:
        explain(api, name, spec, form)
        return
    from cli import waiting
    from cli.api import request_id
    from cli.records import VM_COLUMNS, vm_record
    from virga.v1 import image_pb2, vm_pb2

    image = api.call(api.images.GetImage, image_pb2.GetImageRequest(image=spec.image), spec.image).image
    names = [name] if count == 1 else [f"{name}-{i}" for i in range(1, count + 1)]
    made = [api.call(api.vms.CreateVm, vm_pb2.CreateVmRequest(name=one, spec=spec, request_id=request_id()), one).vm
            for one in names]
    if not no_wait:
        seen = waiting.wait_for(api, made, waiting.up_and_running(bool(image.ready_marker)), timeout, "starting", Progress())
        made = [seen[one.uid] for one in made]
    if form != "table":
        records = [vm_record(one) for one in made]
        emit(records[0] if count == 1 else records, form, VM_COLUMNS)
        return
    for one in made:
        click.echo(vm_power.sentence(one))


def make_spec(image: str, memory: int, cpus: int, append: str, disks: tuple[int, ...], node_selector: dict[str, str],
              anti_affinity: str, restart: str, clock: str) -> Any:
    from virga.v1 import vm_pb2

    return vm_pb2.VmSpec(image=image, memory_mib=memory, cpus=cpus, node_selector=node_selector, append=append,
                         anti_affinity_group=anti_affinity, restart_policy=RESTART[restart],
                         disks=[vm_pb2.Disk(size_mib=size) for size in disks],
                         clock=vm_pb2.CLOCK_MODE_VIRTUAL if clock == "virtual" else vm_pb2.CLOCK_MODE_REAL)


def explain(api: Any, name: str, spec: Any, form: str) -> None:
    """Every node with its score, or the reasons against it; refused where none fits."""
    from cli.errors import refused_capacity
    from virga.v1 import vm_pb2

    answer = api.call(api.vms.ExplainPlacement, vm_pb2.ExplainPlacementRequest(spec=spec), name)
    rows = [{"node": verdict.node, "fits": verdict.fits, "score": round(verdict.score, 4) if verdict.fits else None,
             "scores": {key: round(value, 4) for key, value in sorted(verdict.scores.items())},
             "refusals": list(verdict.refusals), "chosen": verdict.node == answer.chosen_node} for verdict in answer.nodes]
    emit(rows, form, VERDICT_COLUMNS)
    if not answer.chosen_node:
        raise refused_capacity(name, spec.memory_mib, answer.report.summary or "there are no nodes", answer.report.hint, False)
    if form in ("table", "wide"):
        click.echo(f"{name} would run on {answer.chosen_node}. Nothing was created.")


@vm.command("list")
@click.option("--node", default="", help="Only VMs on this node.")
@click.option("--only", "states", multiple=True, metavar="STATE", help="Only VMs in this state; repeatable.")
@format_option
@target_options
def list_vms(target: Target, node: str, states: tuple[str, ...], form: str) -> None:
    """List the VMs."""
    from cli.api import every_page
    from cli.records import VM_COLUMNS, vm_record
    from virga.v1 import vm_pb2

    try:
        wanted = [vm_pb2.VmState.Value(f"VM_STATE_{state.upper()}") for state in states]
    except ValueError:
        known = ", ".join(name.removeprefix("VM_STATE_") for name in vm_pb2.VmState.keys()[1:])
        raise click.BadParameter(f"states are {known}", param_hint="--only") from None
    api = target.api()
    vms = every_page(api, api.vms.ListVms, vm_pb2.ListVmsRequest(states=wanted, node=node), "vms")
    if not vms and form == "table":
        Progress().line("no VMs; make one: virga vm create NAME --image IMAGE")
    emit([vm_record(one) for one in vms], form, VM_COLUMNS)


@vm.command()
@click.argument("name")
@format_option
@target_options
def show(target: Target, name: str, form: str) -> None:
    """Everything about one VM."""
    from cli.records import VM_COLUMNS, vm_record

    record = vm_record(get(target.api(), name))
    if form != "table":
        emit(record, form, VM_COLUMNS)
        return
    from cli.output import table, text
    rows = [{"key": key, "value": text(value)} for key, value in record.items() if key not in ("phases", "memory_mib")]
    rows += [{"key": f"phase {phase['name']}", "value": f"{phase['seconds']:.1f} s  {phase['detail']}".rstrip()}
             for phase in record["phases"]]
    table(rows, {"": "key", " ": "value"})


def get(api: Any, name: str) -> Any:
    from virga.v1 import vm_pb2
    return api.call(api.vms.GetVm, vm_pb2.GetVmRequest(vm=name), name).vm
