"""No VM is placed on a node that nothing is heard from."""

from controller.scheduler.table import Mask, NodeTable, VmRequest

NAME = "ready"
REASON = "lost"


def allow(nodes: NodeTable, vm: VmRequest) -> Mask:
    return nodes.ready.copy()
