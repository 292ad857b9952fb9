"""A VM's life through the API, with agents that play the protocol without machines."""

import pytest

from tests.servers.cloud import USER, cloud, until
from virga.v1 import vm_pb2 as pb


@pytest.fixture
async def site(tmp_path):
    async with cloud(tmp_path) as made:
        yield made


async def test_a_vm_is_placed_and_runs(site):
    created = await site.api.create("web", memory_mib=512)
    assert created.status.state == pb.VM_STATE_PENDING
    vm = await site.api.until("web", "RUNNING")
    assert vm.status.node in site.agents
    assert site.site.running == {vm.uid: vm.status.node}
    assert [phase.name for phase in vm.status.phases] == ["placed", "image", "kernel"]


async def test_stop_and_start_make_a_new_run(site):
    await site.api.create("web")
    vm = await site.api.until("web", "RUNNING")
    await site.api.vms.StopVm(pb.StopVmRequest(vm="web"), metadata=USER)
    await site.api.until("web", "STOPPED")
    assert site.site.running == {}
    await site.api.vms.StartVm(pb.StartVmRequest(vm="web"), metadata=USER)
    again = await site.api.until("web", "RUNNING")
    assert (again.status.run, again.status.node) == (vm.status.run + 1, vm.status.node)
    assert [start[2] for start in site.site.starts] == [1, 2]


async def test_pause_and_resume(site):
    await site.api.create("web")
    await site.api.until("web", "RUNNING")
    await site.api.vms.PauseVm(pb.PauseVmRequest(vm="web"), metadata=USER)
    await site.api.until("web", "PAUSED")
    await site.api.vms.ResumeVm(pb.ResumeVmRequest(vm="web"), metadata=USER)
    vm = await site.api.until("web", "RUNNING")
    assert vm.status.run == 1


async def test_delete_waits_for_the_nodes_word(site):
    await site.api.create("web")
    vm = await site.api.until("web", "RUNNING")
    gone = await site.api.vms.DeleteVm(pb.DeleteVmRequest(vm="web"), metadata=USER)
    assert gone.vm.status.state == pb.VM_STATE_DELETING
    await until(lambda: site.api.vms.ListVms(pb.ListVmsRequest(), metadata=USER), lambda answer: not answer.vms)
    await until(_now(site.agents[vm.status.node].disk.vms), lambda vms: vm.uid not in vms)
    assert site.site.running == {}


async def test_a_guest_that_powers_off_stays_off(site):
    await site.api.create("web", restart_policy=pb.RESTART_POLICY_ON_FAILURE)
    vm = await site.api.until("web", "RUNNING")
    site.agents[vm.status.node].end(vm.uid, pb.VM_STATE_STOPPED, "GUEST_POWEROFF")
    vm = await until(lambda: site.api.vm("web"), lambda vm: vm.spec.power == pb.POWER_STATE_STOPPED)
    assert (vm.status.state, vm.status.reason, vm.status.run) == (pb.VM_STATE_STOPPED, "GUEST_POWEROFF", 1)


async def test_a_crash_is_repaired_where_asked(site):
    await site.api.create("web", restart_policy=pb.RESTART_POLICY_ON_FAILURE)
    await site.api.create("once")
    web, once = await site.api.until("web", "RUNNING"), await site.api.until("once", "RUNNING")
    for vm in (web, once):
        site.agents[vm.status.node].end(vm.uid, pb.VM_STATE_CRASHED, "TRIPLE_FAULT")
    again = await until(lambda: site.api.vm("web"), lambda vm: vm.status.restarts == 1
                        and vm.status.state == pb.VM_STATE_RUNNING)
    assert (again.status.node, again.status.run) == (web.status.node, 2)
    assert (await site.api.vm("once")).status.state == pb.VM_STATE_CRASHED


async def test_what_fits_nowhere_waits_with_counted_reasons(site):
    from virga.v1 import node_pb2
    await site.api.nodes.CordonNode(node_pb2.CordonNodeRequest(node="node-2"), metadata=USER)
    await site.api.create("big", memory_mib=100_000)
    vm = await until(lambda: site.api.vm("big"), lambda vm: vm.status.placement.nodes == 3)
    assert vm.status.state == pb.VM_STATE_PENDING
    assert vm.status.placement.summary == "3 nodes: 2 too little memory, 1 cordoned"
    await site.start_agent("node-9", memory_mib=200_000)
    vm = await site.api.until("big", "RUNNING")
    assert vm.status.node == "node-9"


async def test_watch_shows_every_last_state(site):
    watch = site.api.vms.WatchVms(pb.WatchVmsRequest(), metadata=USER)
    first = [await watch.read() for _ in range(2)]
    assert [each.kind for each in first] == [pb.WATCH_KIND_RESET, pb.WATCH_KIND_SYNCED]
    await site.api.create("web")
    while (change := await watch.read()).vm.status.state != pb.VM_STATE_RUNNING:
        pass
    watch.cancel()
    await site.api.vms.DeleteVm(pb.DeleteVmRequest(vm="web"), metadata=USER)
    resumed = site.api.vms.WatchVms(pb.WatchVmsRequest(start_revision=change.revision), metadata=USER)
    kinds = []
    async for later in resumed:
        kinds.append(later.kind)
        if later.kind == pb.WATCH_KIND_DELETED:
            assert (later.vm.uid, later.vm.name) == (change.vm.uid, "web")
            break
    assert pb.WATCH_KIND_RESET not in kinds
    resumed.cancel()


def _now(value):
    async def read():
        return value
    return read
