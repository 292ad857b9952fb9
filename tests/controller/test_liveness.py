"""LOST is a label, by an injected clock; and nothing else happens because of it."""

import asyncio
import time

import grpc
import pytest

from controller.fakes.agent import RUNNING, FakeVm
from controller.images.files import ImageFiles
from controller.reconcile import housekeeping, liveness
from controller.reconcile.housekeeping import Housekeeping
from controller.store import keys
from tests.servers.cloud import USER, cloud, until
from virga.v1 import event_pb2, node_pb2
from virga.v1 import vm_pb2 as pb


@pytest.fixture
async def site(tmp_path, monkeypatch):
    monkeypatch.setattr(liveness, "SILENCE_S", 0.8)            # beats come every half second
    monkeypatch.setattr(liveness, "LOOK_S", 0.05)
    async with cloud(tmp_path, nodes=("node-1", "node-2")) as made:
        yield made


async def node(site, name):
    return (await site.api.nodes.GetNode(node_pb2.GetNodeRequest(node=name), metadata=USER)).node


async def test_a_silent_node_is_lost_and_its_vms_unknown_until_it_is_back(site):
    await site.api.create("web", restart_policy=pb.RESTART_POLICY_ON_FAILURE)
    vm = await site.api.until("web", "RUNNING")
    home = vm.status.node
    await site.stop_agent(home)
    await until(lambda: node(site, home), lambda n: n.status.state == node_pb2.NODE_STATE_LOST)
    unknown = await site.api.until("web", "UNKNOWN")
    assert (unknown.status.node, unknown.status.run) == (home, 1)
    assert site.site.running == {vm.uid: home}                  # it runs on, and nowhere else
    await site.api.create("other")
    other = await site.api.until("other", "RUNNING")
    assert other.status.node != home
    await site.start_agent(home)
    back = await site.api.until("web", "RUNNING")
    assert (back.status.run, back.status.ownership_generation) == (1, 1)
    assert len(site.site.starts) == 2
    assert (await node(site, home)).status.state == node_pb2.NODE_STATE_READY


async def test_a_lost_node_without_vms_can_be_forgotten(site):
    await site.stop_agent("node-2")
    await until(lambda: node(site, "node-2"), lambda n: n.status.state == node_pb2.NODE_STATE_LOST)
    await site.api.nodes.DeleteNode(node_pb2.DeleteNodeRequest(node="node-2"), metadata=USER)
    nodes = (await site.api.nodes.ListNodes(node_pb2.ListNodesRequest(), metadata=USER)).nodes
    assert [each.name for each in nodes] == ["node-1"]


async def test_a_vm_on_a_node_that_never_comes_back_can_be_forgotten(site):
    await site.api.create("web")
    vm = await site.api.until("web", "RUNNING")
    await site.stop_agent(vm.status.node)
    await site.api.vms.DeleteVm(pb.DeleteVmRequest(vm="web"), metadata=USER)
    await site.api.until("web", "DELETING")
    await site.api.vms.DeleteVm(pb.DeleteVmRequest(vm="web", forget=True), metadata=USER)
    assert not (await site.api.vms.ListVms(pb.ListVmsRequest(), metadata=USER)).vms
    agent = await site.start_agent(vm.status.node)              # it does come back

    async def copies():
        return agent.disk.vms
    await until(copies, lambda vms: not vms)
    assert site.site.running == {}


async def test_a_newer_stream_of_the_same_node_takes_its_place(site):
    first = site.agents["node-1"]
    second = await site.start_agent("node-1", disk=first.disk)
    await asyncio.wait_for(second.connected.wait(), 5)
    async with asyncio.timeout(5):
        while first.error is None:
            await asyncio.sleep(0.02)
    assert first.error.code() == grpc.StatusCode.ABORTED


async def test_what_has_had_its_time_goes(site, monkeypatch):
    await site.api.create("web", request_id="once")
    await site.api.until("web", "RUNNING")
    await site.api.vms.DeleteVm(pb.DeleteVmRequest(vm="web"), metadata=USER)
    table = site.controller.world.cache.table

    async def left():
        return len(table(keys.VM_SPEC))
    await until(left, lambda count: count == 0)
    at = [time.time()]
    house = Housekeeping(site.controller.store, site.controller.world, ImageFiles(site.folder / "images", str),
                         lambda: at[0])
    unused = site.folder / "images" / ("0" * 64)
    unused.write_bytes(b"x")
    await house.sweep()
    assert (len(table(keys.REQUEST)), len(table(keys.VM_GONE)), unused.exists()) == (1, 1, True)
    monkeypatch.setattr(housekeeping, "MAX_EVENTS", 3)
    await house.sweep()
    assert len(table(keys.EVENT)) == 3
    at[0] += housekeeping.DAY_S + 60
    await house.sweep()
    assert (len(table(keys.REQUEST)), len(table(keys.EVENT)), len(table(keys.VM_GONE)), unused.exists()) == (
        0, 0, 1, False)
    assert len(list((site.folder / "images").iterdir())) == 1           # the image's own file stays


async def test_what_nobody_knows_is_left_alone(site):
    agent = site.agents["node-1"]
    agent.disk.vms["stranger"] = FakeVm("stranger", "x", 3, run=1, state=RUNNING)
    agent.tell()

    async def events():
        return (await site.api.events.ListEvents(event_pb2.ListEventsRequest(), metadata=USER)).events
    await until(events, lambda found: any(event.reason == "UnknownVm" for event in found))

    async def desired():
        return agent.desired
    assert not (await until(desired, lambda found: found is not None)).vms
    assert agent.disk.vms["stranger"].state == RUNNING
