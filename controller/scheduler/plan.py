"""One VM, or a batch of them, onto nodes.

Owns:    how filters and scorers are combined, and the words of a refusal.
Never:   I/O, randomness: the same table and request give the same place.
Threads: pure functions (a batch counts its placements in the table it was given).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from controller.scheduler.filters import FILTERS
from controller.scheduler.scorers import POLICIES, SCORERS
from controller.scheduler.table import Mask, NodeTable, Score, VmRequest


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a VM goes where: masks by filter, scores by scorer, and the chosen index or None."""

    chosen: int | None
    allowed: dict[str, Mask]
    scores: dict[str, Score]
    total: Score

    @property
    def fits(self) -> Mask:
        return np.logical_and.reduce(list(self.allowed.values()), axis=0)


@dataclass(frozen=True, slots=True)
class Count:
    filter: str
    nodes: int
    text: str


def decide_place(nodes: NodeTable, vm: VmRequest, policy: str = "spread") -> Verdict:
    """The best node that all filters allow; of equal ones the first by name."""
    allowed = {each.NAME: each.allow(nodes, vm) for each in FILTERS}
    scores = {each.NAME: each.score(nodes, vm) for each in SCORERS if each.NAME in POLICIES[policy]}
    total = np.zeros(len(nodes))
    for name, weight in POLICIES[policy].items():
        total += weight * scores[name]
    verdict = Verdict(None, allowed, scores, total)
    if not len(nodes) or not verdict.fits.any():
        return verdict
    ranked = np.where(verdict.fits, np.round(total, 9), -1.0)
    best = np.flatnonzero(ranked == ranked.max())
    return Verdict(int(min(best, key=lambda index: nodes.names[index])), allowed, scores, total)


def decide_batch(nodes: NodeTable, vms: Iterable[VmRequest], policy: str = "spread") -> list[Verdict]:
    """One after the other, each counted before the next."""
    verdicts = []
    for vm in vms:
        verdict = decide_place(nodes, vm, policy)
        if verdict.chosen is not None:
            nodes.place(vm, verdict.chosen)
        verdicts.append(verdict)
    return verdicts


def count_refusals(verdict: Verdict) -> list[Count]:
    """Each refused node once, under the first filter that refused it; the most frequent reason first."""
    left, counts = None, []
    for each in FILTERS:
        mask = verdict.allowed[each.NAME]
        left = np.ones_like(mask) if left is None else left
        refused = int((left & ~mask).sum())
        if refused:
            counts.append(Count(each.NAME, refused, each.REASON))
        left &= mask
    return sorted(counts, key=lambda count: -count.nodes)


def summarise(nodes: NodeTable, verdict: Verdict) -> str:
    """ "3 nodes: 2 too little memory, 1 cordoned" """
    total = len(nodes)
    if not total:
        return "no nodes: none has registered yet"
    counts = ", ".join(f"{count.nodes} {count.text}" for count in count_refusals(verdict))
    return f"{total} node{'s' if total != 1 else ''}: {counts}"


def hint(nodes: NodeTable, verdict: Verdict) -> str:
    """The nearest thing to do: the node with the most room, where room is what lacks."""
    if not len(nodes):
        return ""
    filters = {count.filter for count in count_refusals(verdict)}
    if "memory" in filters or "cpus" in filters:
        free = np.where(nodes.ready & ~nodes.cordoned, nodes.memory_mib - nodes.memory_used_mib, -1)
        best = int(free.argmax())
        if free[best] < 0:
            return ""
        cpus = int(max(0, nodes.cpus[best] - nodes.cpus_used[best]))
        return f"largest free: {nodes.names[best]}, {free[best] / 1024:.1f} GiB, {cpus} CPUs"
    return "uncordon a node" if "cordon" in filters else ""


def refusals_of(nodes: NodeTable, verdict: Verdict, index: int) -> list[str]:
    """All reasons against one node."""
    return [each.REASON for each in FILTERS if not verdict.allowed[each.NAME][index]]
