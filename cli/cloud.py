"""`virga up|down|status`: a cloud on this machine: one etcd, one controller, N agents.

Owns:    the order of starting and stopping, ports, tokens. `up` starts what does not run, so it heals too.
Never:   imports controller or node_agent: they are processes. Never removes state that `down --purge` was not asked for.
Threads: one.
"""

import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli import etcd_binary, processes, state
from cli.errors import CONFLICT, FAILURE, NOT_FOUND, USAGE, CliError
from cli.options import format_option, state_option
from cli.output import Columns, Progress, emit

MODULE = [sys.executable, "-m"]
START_SECONDS = 30.0
COLUMNS = Columns({"COMPONENT": "name", "STATE": "state", "PID": "pid", "ADDRESS": "address"}, {"LOG": "log"})


@click.command()
@click.option("--nodes", type=click.IntRange(1, 64), help="How many.  [default: 3, or what there is]")
@click.option("--node-memory", metavar="SIZE", help="What each node offers to VMs.  [default: 4G]")
@click.option("--node-cpus", type=click.IntRange(1, 256), help="[default: 4]")
@click.option("--etcd-endpoints", default="", metavar="HOST:PORT,…", help="Use this etcd instead of an own one.")
@state_option
def up(folder: Path, nodes: int | None, node_memory: str | None, node_cpus: int | None, etcd_endpoints: str) -> None:
    """Start a cloud on this machine, or start again what of it has died."""
    began = time.monotonic()
    with state.locked(folder):
        cloud = state.load(folder) or state.Cloud([], {}, etcd_endpoints=etcd_endpoints)
        plan(cloud, nodes, node_memory, node_cpus, etcd_endpoints)
        write_tokens(folder, cloud)
        starter = Starter(folder, cloud)
        starter.etcd()
        starter.controller()
        starter.agents()
    click.echo(f"cloud is up: {len(cloud.nodes)} nodes, {time.monotonic() - began:.1f} s, state in {folder}")
    Progress().line("next: virga image build debian-cloud; virga vm create NAME --image debian-cloud; virga down ends it")


def plan(cloud: state.Cloud, nodes: int | None, memory: str | None, cpus: int | None, etcd_endpoints: str) -> None:
    """Names and ports of everything there will be."""
    wanted = nodes or len(cloud.nodes) or 3
    if wanted < len(cloud.nodes):
        raise CliError("usage", f"this cloud has {len(cloud.nodes)} nodes; up does not take nodes away", USAGE,
                       "virga node drain NODE, or virga down --purge and a new one")
    if etcd_endpoints and cloud.etcd_endpoints != etcd_endpoints:
        raise CliError("conflict.etcd", "this cloud keeps its state in another etcd", CONFLICT, "another --state folder")
    cloud.node_memory, cloud.node_cpus = memory or cloud.node_memory, cpus or cloud.node_cpus
    cloud.nodes = [f"node-{i}" for i in range(1, wanted + 1)]
    names = ["etcd", "etcd-peer", "controller", "controller-metrics", *(f"{node}-metrics" for node in cloud.nodes)]
    missing = [name for name in names if name not in cloud.ports]
    cloud.ports.update(zip(missing, processes.free_ports(len(missing), cloud.ports.values())))


def write_tokens(folder: Path, cloud: state.Cloud) -> None:
    """The user's token, and one per node; kept where they are there."""
    path = folder / "agent-tokens.json"
    try:
        tokens = json.loads(path.read_text()) if path.exists() else {}
        if not isinstance(tokens, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise CliError("state.corrupt", f"{path} cannot be read: {error}", FAILURE,
                       "restore it, or remove it and every node's token file: new ones are made") from None
    if not (folder / "token").exists():
        write_secret(folder / "token", secrets.token_urlsafe(32))
    for node in cloud.nodes:
        (folder / "nodes" / node).mkdir(parents=True, exist_ok=True, mode=0o700)
        tokens.setdefault(node, secrets.token_urlsafe(32))
        if not (folder / "nodes" / node / "token").exists():
            write_secret(folder / "nodes" / node / "token", tokens[node])
    write_secret(path, json.dumps(tokens, indent=1))


def write_secret(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
    os.replace(partial, path)


class Starter:
    """Brings up one component after the other; each says when it is ready."""

    def __init__(self, folder: Path, cloud: state.Cloud) -> None:
        self._folder, self._cloud, self._progress = folder, cloud, Progress()

    def _start(self, name: str, command: Callable[[], list[str]], ports: tuple[str, ...], ready: Callable[[], bool]) -> bool:
        """Start it unless it lives; whether it was started. A port somebody else took meanwhile is replaced."""
        if processes.alive(self._cloud.processes.get(name)):
            return False
        began = time.monotonic()
        for port in ports:
            if not processes.is_free(self._cloud.ports[port]):
                (self._cloud.ports[port],) = processes.free_ports(1, self._cloud.ports.values())
        process = processes.spawn(self._folder, name, command())
        self._cloud.processes[name] = process
        state.save(self._folder, self._cloud)
        processes.wait_until(self._folder, name, process, ready, START_SECONDS)
        self._progress.line(f"{name:<12} up {time.monotonic() - began:5.1f} s")
        return True

    def etcd(self) -> None:
        if self._cloud.etcd_endpoints:
            return
        ports = self._cloud.ports
        if not processes.alive(self._cloud.processes.get("etcd")):
            before = ports["etcd"]
            self._start("etcd", lambda: etcd_binary.arguments(etcd_binary.find(), self._folder / "etcd", ports["etcd"],
                                                              ports["etcd-peer"]),
                        ("etcd", "etcd-peer"), lambda: processes.listening(ports["etcd"]))
            if ports["etcd"] != before:
                self._stop("controller")

    def _stop(self, name: str) -> None:
        process = self._cloud.processes.get(name)
        if process:
            processes.stop([process], 5)

    def controller(self) -> None:
        cloud, folder, before = self._cloud, self._folder, self._cloud.ports["controller"]

        def command() -> list[str]:
            endpoints = cloud.etcd_endpoints or f"127.0.0.1:{cloud.ports['etcd']}"
            return [*MODULE, "controller", "--state", str(folder), "--listen", f"127.0.0.1:{cloud.ports['controller']}",
                    "--metrics", f"127.0.0.1:{cloud.ports['controller-metrics']}", "--etcd-endpoints", endpoints,
                    "--token-file", str(folder / "token"), "--agent-tokens", str(folder / "agent-tokens.json")]

        self._controller_started = time.time()
        if not self._start("controller", command, ("controller", "controller-metrics"),
                           lambda: serving(cloud.ports["controller"])):
            self._controller_started = 0.0
        if cloud.ports["controller"] != before:        # agents dial the old port
            for node in cloud.nodes:
                self._stop(f"agent-{node}")

    def agents(self) -> None:
        """Start all that are missing, then wait until the controller has heard of each, those that lived included."""
        cloud, folder = self._cloud, self._folder
        since = {}
        for node in cloud.nodes:
            began = time.time()
            started = self._start(f"agent-{node}", lambda node=node: self._agent_command(node),     # type: ignore[misc]
                                  (f"{node}-metrics",), lambda: True)
            since[node] = began if started else self._controller_started
        for node in cloud.nodes:
            name = f"agent-{node}"
            processes.wait_until(folder, name, cloud.processes[name],
                                 lambda node=node: node in ready_nodes(folder, since), START_SECONDS)    # type: ignore[misc]

    def _agent_command(self, node: str) -> list[str]:
        cloud, home = self._cloud, self._folder / "nodes" / node
        return [*MODULE, "node_agent", "agent", "--name", node, "--state", str(home),
                "--controller", f"127.0.0.1:{cloud.ports['controller']}", "--token-file", str(home / "token"),
                "--metrics", f"127.0.0.1:{cloud.ports[f'{node}-metrics']}", "--memory", cloud.node_memory,
                "--cpus", str(cloud.node_cpus)]


def serving(port: int) -> bool:
    """The controller's health service says SERVING."""
    if not processes.listening(port):
        return False
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def ready_nodes(folder: Path, since: dict[str, float]) -> set[str]:
    """Nodes that are READY and were heard of after the given time."""
    from cli.api import connect
    from cli.records import node_record
    from virga.v1 import node_pb2

    api = connect(folder)
    try:
        answer = api.call(api.nodes.ListNodes, node_pb2.ListNodesRequest())
    except CliError:
        return set()
    finally:
        api.close()
    return {node.name for node in answer.nodes if node_record(node)["state"] == "READY" and
            node.status.last_seen_time.ToMilliseconds() / 1000 >= since.get(node.name, 0.0)}


@click.command()
@click.option("--force", is_flag=True, help="Do not press power buttons first: end VMs at once.")
@click.option("--purge", is_flag=True, help="Remove the cloud's folder too, with every image, disk and log in it.")
@click.option("--timeout", type=click.FloatRange(min=0), default=10, show_default=True, metavar="S",
              help="How long guests may take to power off.")
@state_option
def down(folder: Path, force: bool, purge: bool, timeout: float) -> None:
    """Stop the cloud of this machine: VMs, agents, controller, etcd. Nothing is left running."""
    from cli import shutdown

    if not folder.is_dir():
        raise CliError("not_found.cloud", f"no cloud in {folder}", NOT_FOUND, "--state DIR for another one")
    with state.locked(folder):
        stopped = shutdown.take_down(folder, 0.0 if force else timeout, Progress())
        if purge:
            shutdown.purge(folder)
    click.echo(f"cloud is down: {stopped} processes ended" + ("; its folder is gone" if purge else f"; state kept in {folder}"))


@click.command()
@format_option
@state_option
def status(folder: Path, form: str) -> int:
    """What runs, where it listens, and where its state is."""
    cloud = state.load_existing(folder)
    rows = components(folder, cloud)
    counts = summary(folder) if any(row["name"] == "controller" and row["state"] == "up" for row in rows) else {}
    if form in ("json", "yaml"):
        emit({"state": str(folder), "components": rows, **counts}, form, COLUMNS)
    else:
        emit(rows, form, COLUMNS)
    if form in ("table", "wide"):
        click.echo(f"state in {folder}" + (f"; nodes: {counted(counts['nodes'])}; VMs: {counted(counts['vms'])}"
                                           if counts else "; the controller does not run: virga up"))
    return 0 if all(row["state"] == "up" for row in rows) else FAILURE


def components(folder: Path, cloud: state.Cloud) -> list[dict[str, Any]]:
    names = [*([] if cloud.etcd_endpoints else ["etcd"]), "controller", *(f"agent-{node}" for node in cloud.nodes)]
    rows = []
    for name in names:
        process = cloud.processes.get(name)
        up = processes.alive(process)
        port = cloud.ports.get(name, cloud.ports.get(f"{name.removeprefix('agent-')}-metrics"))
        rows.append({"name": name, "state": "up" if up else "down", "pid": process.pid if process and up else None,
                     "address": f"127.0.0.1:{port}", "log": str(folder / "logs" / f"{name}.log")})
    return rows


def summary(folder: Path) -> dict[str, dict[str, int]]:
    """Nodes and VMs by state, or nothing where the controller does not answer."""
    from cli.api import connect, every_page
    from cli.records import node_record, vm_record
    from virga.v1 import node_pb2, vm_pb2

    api = connect(folder)
    try:
        nodes = every_page(api, api.nodes.ListNodes, node_pb2.ListNodesRequest(), "nodes")
        vms = every_page(api, api.vms.ListVms, vm_pb2.ListVmsRequest(), "vms")
    except CliError:
        return {}
    finally:
        api.close()
    return {"nodes": tally(node_record(node)["state"] for node in nodes), "vms": tally(vm_record(vm)["state"] for vm in vms)}


def tally(states: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in states:
        counts[one] = counts.get(one, 0) + 1
    return counts


def counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
