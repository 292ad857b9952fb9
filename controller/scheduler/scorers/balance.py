"""Prefer the node where memory and CPUs would be used in like measure, so that neither is stranded."""

import numpy as np

from controller.scheduler.table import NodeTable, Score, VmRequest

NAME = "balance"


def score(nodes: NodeTable, vm: VmRequest) -> Score:
    """1 − difference of the two shares in use after placement."""
    memory = np.clip((nodes.memory_used_mib + vm.memory_mib) / np.maximum(nodes.memory_mib, 1), 0.0, 1.0)
    cpus = np.clip((nodes.cpus_used + vm.cpus) / np.maximum(nodes.cpus, 1), 0.0, 1.0)
    return 1.0 - np.abs(memory - cpus)
