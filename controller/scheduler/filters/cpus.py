"""The VM's CPUs fit beside what is promised already, overcommit included."""

from controller.scheduler.table import Mask, NodeTable, VmRequest

NAME = "cpus"
REASON = "too few CPUs"


def allow(nodes: NodeTable, vm: VmRequest) -> Mask:
    return nodes.cpus_used + vm.cpus <= nodes.cpus
