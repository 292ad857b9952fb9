"""What Prometheus reads from the controller.

Owns:    every metric's name, and the collector that counts VMs when asked.
Never:   keeps state that something else needs.
Threads: metrics are thread-safe; the collector copies what it needs of the cache (scrapes come from another thread).
"""

from collections import Counter as Tally
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from controller.model.records import VmState
from controller.store import keys

if TYPE_CHECKING:
    from controller.agents.hub import Hub
    from controller.store.world import World

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._rpcs = Histogram("virga_rpc_seconds", "Calls answered, by method and code", ["method", "code"],
                               buckets=SECONDS, registry=registry)
        self._etcd = Histogram("virga_etcd_seconds", "Requests to etcd, by operation", ["operation"], buckets=SECONDS,
                               registry=registry)
        self._refusals = Counter("virga_scheduler_refusals", "Nodes that refused a VM, by filter", ["filter"],
                                 registry=registry)
        self._placements = Counter("virga_scheduler_placements", "VMs placed", registry=registry)
        self._decisions = Counter("virga_migration_decisions", "Migrations decided, by decision", ["decision"],
                                  registry=registry)
        self._reconciles = Counter("virga_reconcile_errors", "Reconciliations that failed and are tried again",
                                   ["reconciler"], registry=registry)

    def rpc(self, path: str, code: str, seconds: float) -> None:
        self._rpcs.labels(path.lstrip("/"), code).observe(seconds)

    def etcd(self, operation: str, seconds: float) -> None:
        self._etcd.labels(operation).observe(seconds)

    def refused(self, filter: str, nodes: int) -> None:
        self._refusals.labels(filter).inc(nodes)

    def placed(self, count: int) -> None:
        self._placements.inc(count)

    def decided(self, decision: str) -> None:
        self._decisions.labels(decision).inc()

    def reconcile_failed(self, reconciler: str) -> None:
        self._reconciles.labels(reconciler).inc()

    def watch(self, world: "World", hub: "Hub") -> None:
        self.registry.register(_Inventory(world, hub))


class _Inventory:
    """VMs by state, nodes by state, and what nodes last counted per VM."""

    def __init__(self, world: "World", hub: "Hub") -> None:
        self._world, self._hub = world, hub

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        table = self._world.cache.table
        statuses = Tally(entry.record.state for entry in list(table(keys.VM_STATUS).values()))
        vms = GaugeMetricFamily("virga_vms", "VMs by state", labels=["state"])
        for state in VmState:
            vms.add_metric([state], statuses.get(state, 0))
        yield vms
        nodes = [entry.record for entry in list(table(keys.NODE).values())]
        family = GaugeMetricFamily("virga_nodes", "Nodes by state", labels=["state"])
        family.add_metric(["LOST"], sum(node.lost for node in nodes))
        family.add_metric(["READY"], sum(not node.lost for node in nodes))
        yield family
        retired = CounterMetricFamily("virga_vm_retired_instructions", "As last reported", labels=["vm", "uid"])
        exits = CounterMetricFamily("virga_vm_exits", "As last reported", labels=["vm", "uid", "reason"])
        for stats in list(self._hub.stats.values()):
            if view := self._world.vm(stats.uid):
                labels = [view.record.name, stats.uid]
                retired.add_metric(labels, stats.retired_instructions)
                for reason, count in stats.exits.items():
                    exits.add_metric([*labels, reason], count)
        yield retired
        yield exits
