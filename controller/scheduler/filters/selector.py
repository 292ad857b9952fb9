"""Every label of the VM's selector is on the node."""

from controller.scheduler.table import Mask, NodeTable, VmRequest

NAME = "selector"
REASON = "without the labels it asks for"


def allow(nodes: NodeTable, vm: VmRequest) -> Mask:
    mask = nodes.everywhere()
    for key, value in vm.selector.items():
        mask &= nodes.labelled(key, value)
    return mask
