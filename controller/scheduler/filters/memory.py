"""The VM's memory fits beside what is promised already, overcommit included."""

from controller.scheduler.table import Mask, NodeTable, VmRequest

NAME = "memory"
REASON = "too little memory"


def allow(nodes: NodeTable, vm: VmRequest) -> Mask:
    return nodes.memory_used_mib + vm.memory_mib <= nodes.memory_mib
