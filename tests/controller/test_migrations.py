"""Migrations through the API, with fake agents that refuse to let a VM run twice."""

import grpc
import pytest

from controller.fakes.agent import PAUSED, RUNNING, FakeVm
from tests.servers.cloud import USER, cloud, until
from virga.agent.v1 import agent_pb2
from virga.v1 import migration_pb2 as pb
from virga.v1 import node_pb2, vm_pb2

OVER = (pb.MIGRATION_PHASE_SUCCEEDED, pb.MIGRATION_PHASE_FAILED)


@pytest.fixture
async def site(tmp_path):
    async with cloud(tmp_path, nodes=("node-1", "node-2")) as made:
        yield made


async def running(site, name="web"):
    await site.api.create(name)
    return await site.api.until(name, "RUNNING")


def other(site, vm):
    return next(name for name in site.agents if name != vm.status.node)


async def begin(site, name="web", target=""):
    return (await site.api.migrations.CreateMigration(
        pb.CreateMigrationRequest(vm=name, target_node=target), metadata=USER)).migration


async def get(site, uid):
    return (await site.api.migrations.GetMigration(pb.GetMigrationRequest(migration=uid), metadata=USER)).migration


async def over(site, uid):
    return await until(lambda: get(site, uid), lambda migration: migration.phase in OVER)


async def test_a_vm_moves(site):
    vm = await running(site)
    migration = await over(site, (await begin(site)).uid)
    assert (migration.phase, migration.gap_ms, migration.decision_ms) == (pb.MIGRATION_PHASE_SUCCEEDED, 5.0, 1.0)
    moved = await site.api.until("web", "RUNNING")
    target = other(site, vm)
    assert (moved.status.node, moved.status.ownership_generation, moved.status.run) == (target, 2, 1)
    assert site.site.running == {vm.uid: target}
    source = site.agents[vm.status.node].disk.vms
    await until(_of(lambda: source), lambda vms: vm.uid not in vms)
    assert not (await site.api.vm("web")).status.migration
    assert len(moved.status.phases) == 3


async def test_cancelled_before_the_decision_it_stays(site):
    vm = await running(site)
    site.agents[vm.status.node].hold.add("copy")
    migration = await begin(site)
    await until(lambda: get(site, migration.uid), lambda m: m.phase == pb.MIGRATION_PHASE_COPYING)
    await site.api.migrations.CancelMigration(pb.CancelMigrationRequest(migration=migration.uid), metadata=USER)
    ended = await over(site, migration.uid)
    assert (ended.phase, ended.reason) == (pb.MIGRATION_PHASE_FAILED, "CANCELLED")
    stays = await site.api.vm("web")
    assert (stays.status.node, stays.status.ownership_generation) == (vm.status.node, 2)
    assert site.site.running == {vm.uid: vm.status.node}
    await until(_of(lambda: site.agents[other(site, vm)].disk.vms), lambda vms: vm.uid not in vms)


async def test_target_fails_while_preparing(site):
    vm = await running(site)
    target = site.agents[other(site, vm)]
    target.hold.add("prepare")
    migration = await begin(site)
    target.fail_target(migration.uid, vm.uid)
    ended = await over(site, migration.uid)
    assert (ended.phase, ended.reason) == (pb.MIGRATION_PHASE_FAILED, "TARGET_FAILED")
    assert site.site.running == {vm.uid: vm.status.node}


async def test_given_back_when_the_target_dies_after_the_commit(site):
    vm = await running(site)
    target = site.agents[other(site, vm)]
    target.hold.add("run")
    migration = await begin(site)
    await until(lambda: get(site, migration.uid), lambda m: m.phase == pb.MIGRATION_PHASE_FINISHING)
    assert site.site.running == {}                       # in doubt nobody runs it
    assert (await site.api.vm("web")).status.node == target.name
    target.fail_target(migration.uid, vm.uid)
    ended = await over(site, migration.uid)
    assert ended.phase == pb.MIGRATION_PHASE_FAILED
    back = await site.api.until("web", "RUNNING")
    assert (back.status.node, back.status.ownership_generation) == (vm.status.node, 3)
    assert site.site.running == {vm.uid: vm.status.node}


async def test_the_decision_is_made_once(site):
    vm = await running(site)
    source, target = site.agents[vm.status.node], site.agents[other(site, vm)]
    target.hold |= {"commit", "run"}
    migration = await begin(site)
    await until(_of(lambda: source.disk.migrations), lambda m: m and m[migration.uid].step ==
                agent_pb2.MIGRATION_STEP_PAUSED)
    abort, commit = agent_pb2.MIGRATION_DECISION_ABORT, agent_pb2.MIGRATION_DECISION_COMMIT
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await source.wish(migration.uid, vm.uid, agent_pb2.MIGRATION_ROLE_SOURCE, commit)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    first = await target.wish(migration.uid, vm.uid, agent_pb2.MIGRATION_ROLE_TARGET, commit)
    second = await source.wish(migration.uid, vm.uid, agent_pb2.MIGRATION_ROLE_SOURCE, abort)
    assert first == second
    assert (first.decision, first.owner_generation, first.owner_node) == (commit, 2, target.name)


async def test_controller_dies_between_pause_and_decision(site):
    vm = await running(site)
    target = site.agents[other(site, vm)]
    target.hold.add("commit")
    migration = await begin(site)
    await until(lambda: get(site, migration.uid), lambda m: m.phase == pb.MIGRATION_PHASE_SWITCHING)
    await site.stop_controller()
    assert site.site.running == {}
    target.hold.clear()
    await site.start_controller()
    ended = await over(site, migration.uid)
    assert ended.phase == pb.MIGRATION_PHASE_SUCCEEDED
    assert site.site.running == {vm.uid: target.name}


async def test_agents_die_after_the_commit(site):
    vm = await running(site)
    target = site.agents[other(site, vm)]
    target.hold.add("run")
    migration = await begin(site)
    await until(lambda: get(site, migration.uid), lambda m: m.phase == pb.MIGRATION_PHASE_FINISHING)
    for name in (vm.status.node, target.name):
        await site.stop_agent(name)
    assert site.site.running == {}
    for name in (vm.status.node, target.name):
        await site.start_agent(name)
    assert (await over(site, migration.uid)).phase == pb.MIGRATION_PHASE_SUCCEEDED
    assert site.site.running == {vm.uid: target.name}
    await until(_of(lambda: site.agents[vm.status.node].disk.vms), lambda vms: vm.uid not in vms)


async def test_deleting_a_vm_that_moves_decides_first(site):
    vm = await running(site)
    site.agents[vm.status.node].hold.add("copy")
    migration = await begin(site)
    await until(lambda: get(site, migration.uid), lambda m: m.phase == pb.MIGRATION_PHASE_COPYING)
    await site.api.vms.DeleteVm(vm_pb2.DeleteVmRequest(vm="web"), metadata=USER)
    await until(lambda: site.api.vms.ListVms(vm_pb2.ListVmsRequest(), metadata=USER), lambda answer: not answer.vms)
    for agent in site.agents.values():
        await until(_of(lambda agent=agent: agent.disk.vms), lambda vms: vm.uid not in vms)
    assert site.site.running == {}


@pytest.mark.parametrize("target, code, reason", [
    ("same", grpc.StatusCode.FAILED_PRECONDITION, "SAME_NODE"), ("nowhere", grpc.StatusCode.NOT_FOUND, ""),
    ("cordoned", grpc.StatusCode.FAILED_PRECONDITION, "NODE_UNFIT"),
    ("", grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_CAPACITY")])
async def test_refused(site, target, code, reason):
    vm = await running(site)
    await site.api.nodes.CordonNode(node_pb2.CordonNodeRequest(node=other(site, vm)), metadata=USER)
    target = {"same": vm.status.node, "cordoned": other(site, vm)}.get(target, target)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await begin(site, target=target)
    assert refused.value.code() == code
    assert site.agents[vm.status.node].disk.vms[vm.uid].state == RUNNING


async def test_back_to_where_an_old_copy_still_is(site):
    vm = await running(site)
    first, second = site.agents[vm.status.node], site.agents[other(site, vm)]
    await over(site, (await begin(site)).uid)
    copies = first.disk.vms
    await until(_of(lambda: copies), lambda vms: vm.uid not in vms)
    first.tell()                                                              # without it: nobody orders its removal now
    await until(_of(lambda: first.desired.vms), lambda vms: vm.uid not in {wanted.uid for wanted in vms})
    copies[vm.uid] = FakeVm(vm.uid, "web", 1, run=1, state=PAUSED)            # as if it had not been removed yet
    first.tell()
    removed = []
    first.on_remove = lambda uid: removed.append(uid)
    assert (await over(site, (await begin(site)).uid)).phase == pb.MIGRATION_PHASE_SUCCEEDED
    assert removed == [vm.uid]
    assert site.site.running == {vm.uid: first.name}
    assert second.name != first.name


async def test_disks_do_not_move_yet(site):
    await site.api.create("disky", disks=[vm_pb2.Disk(size_mib=1)])
    await site.api.until("disky", "RUNNING")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await begin(site, "disky")
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_one_at_a_time(site):
    vm = await running(site)
    site.agents[vm.status.node].hold.add("copy")
    await begin(site)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await begin(site)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_drain_moves_running_vms_away(site):
    for name in ("a", "b", "c"):
        await running(site, name)
    await site.api.nodes.DrainNode(node_pb2.DrainNodeRequest(node="node-1"), metadata=USER)
    on_first = sum(node == "node-1" for node in site.site.running.values())
    await until(_of(lambda: site.site.running), lambda where: len(where) == 3 and set(where.values()) == {"node-2"})
    node = await until(lambda: site.api.nodes.GetNode(node_pb2.GetNodeRequest(node="node-1"), metadata=USER),
                       lambda answer: answer.node.status.drain.remaining == 0)
    assert (node.node.status.drain.moved, node.node.spec.cordoned) == (on_first, True)


def _of(value):
    async def read():
        return value()
    return read
