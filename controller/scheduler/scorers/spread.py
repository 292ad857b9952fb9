"""Prefer the emptiest node."""

import numpy as np

from controller.scheduler.table import NodeTable, Score, VmRequest

NAME = "spread"


def score(nodes: NodeTable, vm: VmRequest) -> Score:
    """1 − share of memory in use after placement."""
    return 1.0 - np.clip((nodes.memory_used_mib + vm.memory_mib) / np.maximum(nodes.memory_mib, 1), 0.0, 1.0)
