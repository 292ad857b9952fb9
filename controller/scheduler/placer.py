"""From what the store knows to the scheduler's arrays, and from its verdicts to words.

Owns:    what counts as used on a node, and the overcommit ratios.
Never:   writes.
Threads: one event loop.
"""

from dataclasses import dataclass

from controller.model.records import NodeRecord, Placement, Refusal, VmSpec
from controller.scheduler import plan
from controller.scheduler.table import NodeRow, NodeTable, VmRequest
from controller.store.world import World


@dataclass(frozen=True, slots=True)
class Policy:
    scoring: str = "spread"
    memory_overcommit: float = 1.0
    cpu_overcommit: float = 4.0


@dataclass(frozen=True, slots=True)
class Usage:
    vms: int
    memory_mib: int
    cpus: int
    groups: frozenset[str]


class Placer:
    def __init__(self, world: World, policy: Policy) -> None:
        self._world, self.policy = world, policy

    def usage(self, node: str) -> Usage:
        """What is promised to VMs here, and to those that are on their way here."""
        views = {view.uid: view for view in self._world.vms_on(node)}
        arriving = [view for record in self._world.migrations_of(node) if not record.over
                    if (view := self._world.vm(record.vm_uid)) and view.uid not in views]
        specs = [view.record.spec for view in (*views.values(), *arriving)]
        return Usage(len(views), sum(spec.memory_mib for spec in specs), sum(spec.cpus for spec in specs),
                     frozenset(spec.anti_affinity_group for spec in specs if spec.anti_affinity_group))

    def table(self) -> NodeTable:
        rows = []
        for node in self._world.nodes():
            usage = self.usage(node.name)
            rows.append(NodeRow(node.name, not node.lost, node.cordoned, node.memory_mib, node.cpus, node.labels,
                                usage.memory_mib, usage.cpus, usage.groups))
        return NodeTable(rows, self.policy.memory_overcommit, self.policy.cpu_overcommit)

    def free(self, node: NodeRecord) -> tuple[int, int]:
        """(MiB, CPUs) that the scheduler could still give away."""
        usage = self.usage(node.name)
        return (max(0, int(node.memory_mib * self.policy.memory_overcommit) - usage.memory_mib),
                max(0, int(node.cpus * self.policy.cpu_overcommit) - usage.cpus))

    def decide(self, table: NodeTable, spec: VmSpec, exclude: str = "") -> plan.Verdict:
        return plan.decide_place(table, request_of(spec, exclude), self.policy.scoring)


def request_of(spec: VmSpec, exclude: str = "") -> VmRequest:
    return VmRequest(spec.memory_mib, spec.cpus, spec.node_selector, spec.anti_affinity_group, exclude)



def placement_of(table: NodeTable, verdict: plan.Verdict) -> Placement:
    """Why it fits nowhere (or, where it fits, which nodes it doesn't fit)."""
    counts = plan.count_refusals(verdict)
    return Placement(nodes=len(table), refusals=tuple(Refusal(each.filter, each.nodes, each.text) for each in counts),
                     summary=plan.summarise(table, verdict) if verdict.chosen is None else "",
                     hint=plan.hint(table, verdict) if verdict.chosen is None else "")
