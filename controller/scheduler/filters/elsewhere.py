"""A VM that moves does not move to where it is."""

from controller.scheduler.table import Mask, NodeTable, VmRequest

NAME = "elsewhere"
REASON = "where it is now"


def allow(nodes: NodeTable, vm: VmRequest) -> Mask:
    mask = nodes.everywhere()
    if vm.exclude in nodes.names:
        mask[nodes.names.index(vm.exclude)] = False
    return mask
