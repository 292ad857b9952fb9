"""`virga node list|show|cordon|uncordon|drain|delete`.

Owns:    these verbs. Never: waits but for a drain. Threads: one.
"""

import time
from typing import Any

import click

from cli.errors import REFUSED, TIMED_OUT, CliError
from cli.options import Target, format_option, target_options, wait_options
from cli.output import Progress, emit

SORT = {"name": "name", "free": "memory_free_mib", "vms": "vms"}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def node() -> None:
    """Nodes: the machines that hold VMs."""


@node.command("list")
@click.option("--sort", type=click.Choice(list(SORT)), default="name", show_default=True)
@format_option
@target_options
def list_nodes(target: Target, sort: str, form: str) -> None:
    """List the nodes."""
    from cli.api import every_page
    from cli.records import NODE_COLUMNS, node_record
    from virga.v1 import node_pb2

    api = target.api()
    records = [node_record(one) for one in every_page(api, api.nodes.ListNodes, node_pb2.ListNodesRequest(), "nodes")]
    records.sort(key=lambda record: record[SORT[sort]], reverse=sort != "name")
    emit(records, form, NODE_COLUMNS)


def _call(target: Target, method: str, name: str) -> tuple[Any, Any]:
    from virga.v1 import node_pb2

    api = target.api()
    return api, api.call(getattr(api.nodes, method), getattr(node_pb2, f"{method}Request")(node=name), name)


@node.command()
@click.argument("name")
@format_option
@target_options
def show(target: Target, name: str, form: str) -> None:
    """Everything about one node."""
    from cli.output import table, text
    from cli.records import NODE_COLUMNS, node_record

    record = node_record(_call(target, "GetNode", name)[1].node)
    if form == "table":
        table([{"key": key, "value": text(value)} for key, value in record.items()], {"": "key", " ": "value"})
    else:
        emit(record, form, NODE_COLUMNS)


def _print(node: Any, form: str, sentence: str) -> None:
    from cli.records import NODE_COLUMNS, node_record

    if form == "table":
        click.echo(sentence)
    else:
        emit(node_record(node), form, NODE_COLUMNS)


@node.command()
@click.argument("name")
@format_option
@target_options
def cordon(target: Target, name: str, form: str) -> None:
    """Let no new VM come here; those that are here stay."""
    found = _call(target, "CordonNode", name)[1].node
    _print(found, form, f"{found.name} is cordoned: it takes no new VMs.")


@node.command()
@click.argument("name")
@format_option
@target_options
def uncordon(target: Target, name: str, form: str) -> None:
    """Let VMs come here again; ends a drain."""
    found = _call(target, "UncordonNode", name)[1].node
    _print(found, form, f"{found.name} takes new VMs again.")


@node.command()
@click.argument("name")
@wait_options(600)
@format_option
@target_options
def drain(target: Target, name: str, timeout: float, no_wait: bool, form: str) -> None:
    """Cordon the node and move its running VMs away, live, one at a time."""
    api, answer = _call(target, "DrainNode", name)
    found = answer.node if no_wait else _follow_drain(api, answer.node, timeout)
    status = found.status.drain
    _print(found, form, f"{found.name}: {status.moved} moved, {status.remaining} to move."
           if no_wait else f"{found.name} is drained: {status.moved} VMs moved away.")


def _follow_drain(api: Any, node: Any, timeout_s: float) -> Any:
    """Wait until nothing is left to move; what is stuck is told when it is all that remains."""
    from cli import waiting
    from virga.v1 import node_pb2, vm_pb2

    progress, told = Progress(), None
    request = node_pb2.WatchNodesRequest(node=node.uid)
    with waiting.detachable(f"draining {node.name} goes on", f"virga node show {node.name}"):
        for message in api.watch(api.nodes.WatchNodes, request, time.monotonic() + timeout_s):
            if message.kind != vm_pb2.WATCH_KIND_PUT or message.node.uid != node.uid:
                continue
            node, drain = message.node, message.node.status.drain
            if (drain.moved, drain.remaining) != told:
                told = (drain.moved, drain.remaining)
                progress.line(f"{node.name}  {drain.moved} moved, {drain.remaining} to move")
            if not drain.remaining and node.status.HasField("drain"):
                return node
            if drain.stuck and len(drain.stuck) >= drain.remaining:
                raise CliError("refused.capacity", f"{node.name}: {drain.remaining} VMs have nowhere to go", REFUSED,
                               f"virga node uncordon another node, or give up: virga node uncordon {node.name}",
                               tuple(drain.stuck))
    raise CliError("timed_out", f"{node.name} is still draining after {timeout_s:g} s; it goes on", TIMED_OUT,
                   f"virga node show {node.name}")


@node.command()
@click.argument("name")
@target_options
def delete(target: Target, name: str) -> None:
    """Forget a node that is lost and holds no VM."""
    _call(target, "DeleteNode", name)
    click.echo(f"{name} is forgotten.")
