"""/metrics of an agent (Prometheus).

Owns:    the names and labels.
Never:   asks a VM: it tells what the agent knows anyway.
Threads: the exposition runs in prometheus-client's thread and reads plain values.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from node_agent.version import VERSION
from virga.v1 import vm_pb2 as v1


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._rpc = Histogram("virga_agent_rpc_seconds", "Calls to the controller.", ["method"],
                              registry=self.registry,
                              buckets=(.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10))
        self._server: WSGIServer | None = None

    @contextlib.contextmanager
    def rpc(self, method: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._rpc.labels(method).observe(time.monotonic() - began)

    def serve(self, address: str, node: object, link: object) -> None:
        """Raises OSError (a port in use)."""
        self.registry.register(_Collector(node, link))
        host, _, port = address.rpartition(":")
        self._server, _ = start_http_server(int(port), host.strip("[]") or "127.0.0.1", self.registry)

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class _Collector:
    def __init__(self, node, link) -> None:
        self._node = node
        self._link = link

    def collect(self) -> Iterator[Metric]:
        name = self._node.config.name
        info = GaugeMetricFamily("virga_agent_info", "Version of the agent.", labels=["node", "version"])
        info.add_metric([name, VERSION], 1)
        yield info
        up = GaugeMetricFamily("virga_agent_connected", "1 while the controller's stream is open.", labels=["node"])
        up.add_metric([name], float(self._link.connected))
        yield up
        yield from self._vms(name)

    def _vms(self, name: str) -> Iterator[Metric]:
        vms = list(self._node.vms.values())
        states = Counter(v1.VmState.Name(vm.observed().state).removeprefix("VM_STATE_").lower() for vm in vms)
        by_state = GaugeMetricFamily("virga_agent_vms", "VMs on this node by state.", labels=["node", "state"])
        for state in v1.VmState.keys():
            word = state.removeprefix("VM_STATE_").lower()
            by_state.add_metric([name, word], states[word])
        yield by_state
        retired = CounterMetricFamily("virga_vm_retired_instructions", "Instructions retired in this run.",
                                      labels=["node", "vm", "uid"])
        exits = CounterMetricFamily("virga_vm_exits", "Exits to the hypervisor in this run, by the SDM's reason.",
                                    labels=["node", "vm", "uid", "reason"])
        memory = GaugeMetricFamily("virga_vm_memory_bytes", "Proportional set size of the VM's process.",
                                   labels=["node", "vm", "uid"])
        cpu = CounterMetricFamily("virga_vm_engine_seconds", "Processor time of the VM's vCPU threads.",
                                  labels=["node", "vm", "uid"])
        for vm in vms:
            stats = self._node.stats.get(vm.uid)
            if stats is None:
                continue
            labels = [name, vm.record.config.name, vm.uid]
            retired.add_metric(labels, stats.retired_instructions)
            memory.add_metric(labels, stats.memory_bytes)
            cpu.add_metric(labels, stats.cpu_seconds)
            for reason, count in stats.exits.items():
                exits.add_metric([*labels, reason], count)
        yield from (retired, exits, memory, cpu)
