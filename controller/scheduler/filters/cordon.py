"""A cordoned node takes no new VMs."""

from controller.scheduler.table import Mask, NodeTable, VmRequest

NAME = "cordon"
REASON = "cordoned"


def allow(nodes: NodeTable, vm: VmRequest) -> Mask:
    return ~nodes.cordoned
