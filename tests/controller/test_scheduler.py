"""Filters, scorers and the words of a refusal."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from controller.scheduler import plan
from controller.scheduler.filters import FILTERS
from controller.scheduler.table import NodeRow, NodeTable, VmRequest

LABELS = st.dictionaries(st.sampled_from(["zone", "disk"]), st.sampled_from(["a", "b"]))
ROWS = st.lists(st.builds(
    NodeRow, name=st.uuids().map(str), ready=st.booleans(), cordoned=st.booleans(), memory_mib=st.integers(1, 8192),
    cpus=st.integers(1, 16), labels=LABELS, memory_used_mib=st.integers(0, 8192), cpus_used=st.integers(0, 32),
    groups=st.frozensets(st.sampled_from(["x", "y"]))), max_size=8)
REQUESTS = st.builds(VmRequest, memory_mib=st.integers(1, 8192), cpus=st.integers(1, 16), selector=LABELS,
                     group=st.sampled_from(["", "x", "y"]))
RATIOS = st.sampled_from([0.5, 1.0, 2.0])


def fits(row, vm, memory, cpu):
    """The rule, one node at a time."""
    return (row.ready and not row.cordoned and row.memory_used_mib + vm.memory_mib <= int(row.memory_mib * memory)
            and row.cpus_used + vm.cpus <= int(row.cpus * cpu) and vm.selector.items() <= row.labels.items()
            and (not vm.group or vm.group not in row.groups) and row.name != vm.exclude)


@given(ROWS, REQUESTS, RATIOS, RATIOS, st.sampled_from(["spread", "pack"]))
def test_the_masks_say_what_the_rule_says(rows, vm, memory, cpu, policy):
    table = NodeTable(rows, memory, cpu)
    verdict = plan.decide_place(table, vm, policy)
    expected = [fits(row, vm, memory, cpu) for row in rows]
    if rows:
        assert list(verdict.fits) == expected
    if verdict.chosen is None:
        assert not any(expected)
    else:
        assert expected[verdict.chosen]
        assert all(verdict.total[verdict.chosen] >= verdict.total[i] - 1e-9 for i, ok in enumerate(expected) if ok)
    assert all(0 <= score <= 1 for scores in verdict.scores.values() for score in scores)


@given(ROWS, REQUESTS)
def test_each_refused_node_is_counted_once(rows, vm):
    table = NodeTable(rows)
    verdict = plan.decide_place(table, vm)
    refused = len(rows) - (int(verdict.fits.sum()) if rows else 0)
    assert sum(count.nodes for count in plan.count_refusals(verdict)) == refused


@given(ROWS, st.lists(REQUESTS, max_size=6))
def test_a_batch_never_overfills(rows, vms):
    table = NodeTable(rows)
    before = table.memory_used_mib.copy()
    verdicts = plan.decide_batch(table, vms)
    over = (table.memory_used_mib > table.memory_mib) & (table.memory_used_mib > before)
    assert not over.any()
    groups = [(vm.group, verdict.chosen) for vm, verdict in zip(vms, verdicts, strict=True)
              if vm.group and verdict.chosen is not None]
    assert len(groups) == len(set(groups))


def nodes(*rows):
    return NodeTable([NodeRow(**{"ready": True, "cordoned": False, "memory_mib": 4096, "cpus": 4, **row})
                      for row in rows])


def test_spread_takes_the_emptiest_and_pack_the_fullest():
    table = nodes({"name": "a", "memory_used_mib": 1024, "cpus_used": 1}, {"name": "b"})
    vm = VmRequest(512, 1)
    assert table.names[plan.decide_place(table, vm, "spread").chosen] == "b"
    assert table.names[plan.decide_place(table, vm, "pack").chosen] == "a"


def test_of_equal_nodes_the_first_by_name():
    table = nodes({"name": "c"}, {"name": "a"}, {"name": "b"})
    assert table.names[plan.decide_place(table, VmRequest(512, 1)).chosen] == "a"


def test_the_words_of_a_refusal():
    table = nodes({"name": "a"}, {"name": "b", "cordoned": True}, {"name": "c", "memory_used_mib": 3584})
    verdict = plan.decide_place(table, VmRequest(8192, 1))
    assert plan.summarise(table, verdict) == "3 nodes: 2 too little memory, 1 cordoned"
    assert plan.hint(table, verdict) == "largest free: a, 4.0 GiB, 4 CPUs"
    assert plan.refusals_of(table, verdict, 1) == ["cordoned", "too little memory"]
    empty = nodes()
    assert plan.summarise(empty, plan.decide_place(empty, VmRequest(1, 1))).startswith("no nodes")


def test_every_filter_has_a_name_of_its_own_and_a_reason():
    assert len({each.NAME for each in FILTERS}) == len(FILTERS)
    assert all(each.REASON for each in FILTERS)


def test_thousands_of_nodes_at_once():
    table = NodeTable([NodeRow(f"n{i:04}", True, False, 65536, 64) for i in range(5000)])
    verdicts = plan.decide_batch(table, [VmRequest(1024, 1)] * 200)
    assert len({verdict.chosen for verdict in verdicts}) == 200
    assert np.all(table.memory_used_mib <= 1024)
