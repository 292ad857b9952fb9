"""Prefer the fullest node that still has room, so that others stay free for large VMs."""

import numpy as np

from controller.scheduler.table import NodeTable, Score, VmRequest

NAME = "pack"


def score(nodes: NodeTable, vm: VmRequest) -> Score:
    """Share of memory in use after placement."""
    return np.clip((nodes.memory_used_mib + vm.memory_mib) / np.maximum(nodes.memory_mib, 1), 0.0, 1.0)
