"""No two VMs of one anti-affinity group on one node."""

from controller.scheduler.table import Mask, NodeTable, VmRequest

NAME = "anti_affinity"
REASON = "a VM of its anti-affinity group already there"


def allow(nodes: NodeTable, vm: VmRequest) -> Mask:
    return ~nodes.holds_group(vm.group) if vm.group else nodes.everywhere()
