"""All nodes as arrays.

Owns:    the columns that filters and scorers read, and what a placement adds to them.
Never:   I/O; knows how a node is kept in etcd.
Threads: one user at a time.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Score = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NodeRow:
    name: str
    ready: bool
    cordoned: bool
    memory_mib: int                       # capacity, before overcommit
    cpus: int
    labels: dict[str, str] = field(default_factory=dict)
    memory_used_mib: int = 0
    cpus_used: int = 0
    groups: frozenset[str] = frozenset()  # anti-affinity groups of the VMs here


@dataclass(frozen=True, slots=True)
class VmRequest:
    memory_mib: int
    cpus: int
    selector: dict[str, str] = field(default_factory=dict)
    group: str = ""
    exclude: str = ""                     # this node won't do: where the VM is now


class NodeTable:
    """`memory_mib` and `cpus` are capacities times overcommit."""

    def __init__(self, rows: Iterable[NodeRow], memory_overcommit: float = 1.0, cpu_overcommit: float = 1.0) -> None:
        rows = list(rows)
        self.names = [row.name for row in rows]
        self.ready = np.array([row.ready for row in rows], dtype=bool)
        self.cordoned = np.array([row.cordoned for row in rows], dtype=bool)
        self.memory_mib = np.floor(np.array([row.memory_mib for row in rows], dtype=float) * memory_overcommit)
        self.cpus = np.floor(np.array([row.cpus for row in rows], dtype=float) * cpu_overcommit)
        self.memory_used_mib = np.array([row.memory_used_mib for row in rows], dtype=float)
        self.cpus_used = np.array([row.cpus_used for row in rows], dtype=float)
        self._labels: dict[tuple[str, str], Mask] = {}
        self._groups: dict[str, Mask] = {}
        for index, row in enumerate(rows):
            for pair in row.labels.items():
                self._labels.setdefault(pair, self.nowhere())[index] = True
            for group in row.groups:
                self._groups.setdefault(group, self.nowhere())[index] = True

    def __len__(self) -> int:
        return len(self.names)

    def everywhere(self) -> Mask:
        return np.ones(len(self), dtype=bool)

    def nowhere(self) -> Mask:
        return np.zeros(len(self), dtype=bool)

    def labelled(self, key: str, value: str) -> Mask:
        """True where the node has this label."""
        return self._labels.get((key, value), self.nowhere())

    def holds_group(self, group: str) -> Mask:
        """True where a VM of this anti-affinity group is."""
        return self._groups.get(group, self.nowhere())

    def place(self, vm: VmRequest, index: int) -> None:
        """Count this VM on that node, for the next placement of the same batch."""
        self.memory_used_mib[index] += vm.memory_mib
        self.cpus_used[index] += vm.cpus
        if vm.group:
            self._groups.setdefault(vm.group, self.nowhere())[index] = True
