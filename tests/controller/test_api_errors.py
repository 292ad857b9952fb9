"""What is wrong with a request is told to who made it: code, reason, and where to look."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from controller.fakes.agent import Disk
from tests.servers.cloud import USER, cloud
from virga.agent.v1 import agent_pb2, agent_pb2_grpc
from virga.v1 import event_pb2, image_pb2, migration_pb2, node_pb2
from virga.v1 import vm_pb2 as pb

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
async def site(tmp_path):
    async with cloud(tmp_path, nodes=("node-1",)) as made:
        await made.api.create("web")
        await made.api.until("web", "RUNNING")
        yield made


def details(error):
    """{"ErrorInfo": …, …} of a refusal."""
    found = {}
    for packed in rpc_status.from_call(error).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.ResourceInfo):
            message = kind()
            if packed.Unpack(message):
                found[kind.__name__] = message
    assert found["ErrorInfo"].domain == "virga.v1"
    return found


def create(name="x", **spec):
    return ("vms", "CreateVm", pb.CreateVmRequest(name=name, spec=pb.VmSpec(**{"image": "tiny", **spec})))


TABLE = {
    "no name": (create(""), INVALID, "INVALID_FIELD", "name"),
    "bad name": (create("Web!"), INVALID, "INVALID_FIELD", "name"),
    "long name": (create("x" * 64), INVALID, "INVALID_FIELD", "name"),
    "taken": (create("web"), grpc.StatusCode.ALREADY_EXISTS, "VM_NAME_TAKEN", "web"),
    "unknown image": (create(image="nix"), NOT_FOUND, "IMAGE_NOT_FOUND", "nix"),
    "no image": (create(image=""), NOT_FOUND, "IMAGE_NOT_FOUND", ""),
    "too much memory": (create(memory_mib=2 << 20), INVALID, "INVALID_FIELD", "spec.memory_mib"),
    "too many cpus": (create(cpus=65), INVALID, "INVALID_FIELD", "spec.cpus"),
    "unknown power": (create(power=17), INVALID, "INVALID_FIELD", "spec.power"),
    "born paused": (create(power=pb.POWER_STATE_PAUSED), INVALID, "INVALID_FIELD", "spec.power"),
    "unknown policy": (create(restart_policy=9), INVALID, "INVALID_FIELD", "spec.restart_policy"),
    "bad selector": (create(node_selector={"a b": "c"}), INVALID, "INVALID_FIELD", "spec.node_selector"),
    "control letters": (create(append="a\x00b"), INVALID, "INVALID_FIELD", "spec.append"),
    "empty disk": (create(disks=[pb.Disk()]), INVALID, "INVALID_FIELD", "spec.disks.size_mib"),
    "bad request_id": (("vms", "CreateVm", pb.CreateVmRequest(name="x", request_id="a b")), INVALID, "INVALID_FIELD",
                       "request_id"),
    "get": (("vms", "GetVm", pb.GetVmRequest(vm="nobody")), NOT_FOUND, "VM_NOT_FOUND", "nobody"),
    "get nothing": (("vms", "GetVm", pb.GetVmRequest()), NOT_FOUND, "VM_NOT_FOUND", ""),
    "start": (("vms", "StartVm", pb.StartVmRequest(vm="nobody")), NOT_FOUND, "VM_NOT_FOUND", "nobody"),
    "resume": (("vms", "ResumeVm", pb.ResumeVmRequest(vm="off")), PRECONDITION, "VM_NOT_RUNNING", "off"),
    "pause": (("vms", "PauseVm", pb.PauseVmRequest(vm="off")), PRECONDITION, "VM_NOT_RUNNING", "off"),
    "reset": (("vms", "ResetVm", pb.ResetVmRequest(vm="off")), PRECONDITION, "VM_NOT_RUNNING", "off"),
    "page": (("vms", "ListVms", pb.ListVmsRequest(page_token="%%%")), INVALID, "INVALID_FIELD", "page_token"),
    "page size": (("vms", "ListVms", pb.ListVmsRequest(page_size=-1)), INVALID, "INVALID_FIELD", "page_size"),
    "state": (("vms", "ListVms", pb.ListVmsRequest(states=[77])), INVALID, "INVALID_FIELD", "states"),
    "watch": (("vms", "WatchVms", pb.WatchVmsRequest(vm="nobody")), NOT_FOUND, "VM_NOT_FOUND", "nobody"),
    "explain": (("vms", "ExplainPlacement", pb.ExplainPlacementRequest()), NOT_FOUND, "IMAGE_NOT_FOUND", ""),
    "exits": (("vms", "GetVmExits", pb.GetVmExitsRequest(vm="off")), PRECONDITION, "VM_NOT_PLACED", "off"),
    "log": (("vms", "StreamLog", pb.StreamLogRequest(vm="off")), PRECONDITION, "VM_NOT_PLACED", "off"),
    "node": (("nodes", "GetNode", node_pb2.GetNodeRequest(node="nix")), NOT_FOUND, "NODE_NOT_FOUND", "nix"),
    "cordon": (("nodes", "CordonNode", node_pb2.CordonNodeRequest(node="nix")), NOT_FOUND, "NODE_NOT_FOUND", "nix"),
    "delete node": (("nodes", "DeleteNode", node_pb2.DeleteNodeRequest(node="node-1")), PRECONDITION, "NODE_ALIVE",
                    "node-1"),
    "image": (("images", "GetImage", image_pb2.GetImageRequest(image="nix")), NOT_FOUND, "IMAGE_NOT_FOUND", "nix"),
    "files": (("images", "FindMissingFiles", image_pb2.FindMissingFilesRequest(sha256=["/etc/passwd"])), INVALID,
              "INVALID_FIELD", "sha256"),
    "migrate off": (("migrations", "CreateMigration", migration_pb2.CreateMigrationRequest(vm="off")), PRECONDITION,
                    "VM_NOT_RUNNING", "off"),
    "migrate nobody": (("migrations", "CreateMigration", migration_pb2.CreateMigrationRequest(vm="nobody")), NOT_FOUND,
                       "VM_NOT_FOUND", "nobody"),
    "migration": (("migrations", "GetMigration", migration_pb2.GetMigrationRequest(migration="nix")), NOT_FOUND,
                  "MIGRATION_NOT_FOUND", "nix"),
    "events": (("events", "ListEvents", event_pb2.ListEventsRequest(object=event_pb2.ObjectRef(kind="cow"))), INVALID,
               "INVALID_FIELD", "object.kind"),
}


async def refusal(call):
    """The error of a call, unary or streamed."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        if hasattr(call, "read"):
            await call.read()
        else:
            await call
    return refused.value


async def test_every_mistake_has_its_code_and_reason(site):
    await site.api.create("off", power=pb.POWER_STATE_STOPPED)
    for name, ((service, method, request), code, reason, where) in TABLE.items():
        error = await refusal(getattr(getattr(site.api, service), method)(request, metadata=USER))
        assert error.code() == code, name
        found = details(error)
        assert found["ErrorInfo"].reason == reason, name
        told = (found["BadRequest"].field_violations[0].field if code == INVALID
                else found["ResourceInfo"].resource_name)
        assert told == where, name


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer wrong"),), (("authorization", "user-token"),),
                                      (("authorization", "Bearer token-node-1"),)])
async def test_strangers_are_not_answered(site, metadata):
    error = await refusal(site.api.vms.GetVm(pb.GetVmRequest(vm="web"), metadata=metadata))
    assert error.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_people_are_no_agents_and_agents_only_themselves(site):
    agent = agent_pb2_grpc.AgentServiceStub(site.api.channel)
    for metadata in (USER, (*USER, ("virga-node", "node-1")),
                     (("authorization", "Bearer token-node-1"), ("virga-node", "node-2"))):
        error = await refusal(agent.Connect(metadata=metadata))
        assert error.code() == grpc.StatusCode.UNAUTHENTICATED
    call = agent.Connect(metadata=(("authorization", "Bearer token-node-1"), ("virga-node", "node-1")))
    await call.write(agent_pb2.AgentMessage(hello=agent_pb2.Hello(node="node-2", protocol=1)))
    assert (await refusal(call)).code() == grpc.StatusCode.PERMISSION_DENIED


async def test_a_node_name_twice_is_refused_and_the_first_goes_on(site):
    first = site.agents["node-1"]
    other = await site.start_agent("node-1", disk=Disk("another folder"))
    async with asyncio.timeout(5):
        while other.error is None:
            await asyncio.sleep(0.02)
    assert other.error.code() == grpc.StatusCode.ALREADY_EXISTS
    assert details(other.error)["ErrorInfo"].reason == "NODE_NAME_TAKEN"
    assert first.connected.is_set() and not other.connected.is_set()
    other.disk = first.disk


@pytest.mark.parametrize("hello", [
    agent_pb2.Hello(node="node-2", protocol=7, node_uid="u", memory_mib=1, cpus=1),
    agent_pb2.Hello(node="node-2", protocol=1, memory_mib=1, cpus=1),
    agent_pb2.Hello(node="node-2", protocol=1, node_uid="u", cpus=1),
    agent_pb2.Hello(node="node-2", protocol=1, node_uid="u", memory_mib=1, cpus=1,
                    observed=agent_pb2.ObservedState(vms=[agent_pb2.ObservedVm()])),
    None])
async def test_a_malformed_hello_is_refused(site, hello):
    call = agent_pb2_grpc.AgentServiceStub(site.api.channel).Connect(
        metadata=(("authorization", "Bearer token-node-2"), ("virga-node", "node-2")))
    await call.write(agent_pb2.AgentMessage(hello=hello) if hello else agent_pb2.AgentMessage())
    assert (await refusal(call)).code() == INVALID


async def test_a_node_of_another_cluster_is_not_let_in(site):
    call = agent_pb2_grpc.AgentServiceStub(site.api.channel).Connect(
        metadata=(("authorization", "Bearer token-node-2"), ("virga-node", "node-2")))
    await call.write(agent_pb2.AgentMessage(hello=agent_pb2.Hello(
        node="node-2", protocol=1, node_uid="u", memory_mib=1, cpus=1, cluster_uid="another")))
    error = await refusal(call)
    assert (error.code(), details(error)["ErrorInfo"].reason) == (PRECONDITION, "OTHER_CLUSTER")
    nodes = (await site.api.nodes.ListNodes(node_pb2.ListNodesRequest(), metadata=USER)).nodes
    assert [node.name for node in nodes] == ["node-1"]


async def test_create_is_done_once(site):
    first = await site.api.create("a", request_id="r1")
    assert (await site.api.create("a", request_id="r1")).uid == first.uid
    error = await refusal(site.api.vms.CreateVm(pb.CreateVmRequest(
        name="b", spec=pb.VmSpec(image="tiny"), request_id="r1"), metadata=USER))
    assert details(error)["ErrorInfo"].reason == "REQUEST_ID_REUSED"


async def test_names_and_prefixes_of_ids_find_a_vm(site):
    vm = await site.api.vm("web")
    assert (await site.api.vm(vm.uid)).name == "web"
    assert (await site.api.vm(vm.uid[:20])).name == "web"
    assert (await refusal(site.api.vms.GetVm(pb.GetVmRequest(vm=vm.uid[:3]), metadata=USER))).code() == NOT_FOUND
    await site.api.create("other")
    error = await refusal(site.api.vms.GetVm(pb.GetVmRequest(vm=vm.uid[:4]), metadata=USER))
    assert details(error)["ErrorInfo"].reason == "AMBIGUOUS_ID"


async def test_pages_show_everything_once(site):
    for i in range(7):
        await site.api.create(f"p{i}")
    names, token = [], ""
    while True:
        page = await site.api.vms.ListVms(pb.ListVmsRequest(page_size=3, page_token=token), metadata=USER)
        names += [vm.name for vm in page.vms]
        if not (token := page.next_page_token):
            break
    assert names == ["web", *(f"p{i}" for i in range(7))]


async def test_a_store_that_is_away_is_unavailable_and_comes_back(site):
    site.etcd.set_down(True)
    call = asyncio.create_task(site.api.create("later", request_id="once"))
    await asyncio.sleep(0.3)
    assert (await site.api.vm("web")).status.state == pb.VM_STATE_RUNNING        # reads need no etcd
    site.etcd.set_down(False)
    await call
    site.etcd.lose_answers = 1
    await site.api.create("lost-answer", request_id="twice")
    await site.api.until("lost-answer", "RUNNING")


async def test_health_and_reflection(site):
    health = await health_pb2_grpc.HealthStub(site.api.channel).Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.SERVING

    async def ask():
        yield reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in reflection_pb2_grpc.ServerReflectionStub(site.api.channel).ServerReflectionInfo(ask()):
        names = {service.name for service in answer.list_services_response.service}
    assert {"virga.v1.VmService", "virga.v1.MigrationService", "grpc.health.v1.Health"} <= names


async def test_explain_scores_every_node(site):
    await site.start_agent("node-2", memory_mib=1024, labels={"disk": "ssd"})
    await site.agents["node-2"].connected.wait()
    answer = await site.api.vms.ExplainPlacement(pb.ExplainPlacementRequest(spec=pb.VmSpec(
        image="tiny", memory_mib=2048)), metadata=USER)
    assert answer.chosen_node == "node-1"
    assert [(verdict.node, verdict.fits, list(verdict.refusals)) for verdict in answer.nodes] == [
        ("node-1", True, []), ("node-2", False, ["too little memory"])]
    assert 0 < answer.nodes[0].score <= 1 and set(answer.nodes[0].scores) == {"spread", "balance"}
    answer = await site.api.vms.ExplainPlacement(pb.ExplainPlacementRequest(spec=pb.VmSpec(
        image="tiny", memory_mib=2048, node_selector={"disk": "ssd"})), metadata=USER)
    assert (answer.chosen_node, answer.report.summary) == (
        "", "2 nodes: 1 without the labels it asks for, 1 too little memory")


async def test_events_come_once_in_order_and_resume(site):
    async def read(start, count):
        call = site.api.events.WatchEvents(event_pb2.WatchEventsRequest(start_revision=start), metadata=USER)
        events = []
        async with asyncio.timeout(5):
            while len(events) < count:
                message = await call.read()
                if message.kind == pb.WATCH_KIND_PUT:
                    events.append(message.event)
        call.cancel()
        return events

    kept = (await site.api.events.ListEvents(event_pb2.ListEventsRequest(), metadata=USER)).events
    assert [event.reason for event in kept] == ["Registered", "Imported", "Created", "Placed", "Running"]
    assert [event.uid for event in await read(0, 5)] == [event.uid for event in kept]
    later = asyncio.create_task(read(kept[2].revision, 4))
    await asyncio.sleep(0.05)
    await site.api.vms.StopVm(pb.StopVmRequest(vm="web"), metadata=USER)
    assert [event.reason for event in await later] == ["Placed", "Running", "StopRequested", "Stopped"]
    only = await site.api.events.ListEvents(event_pb2.ListEventsRequest(
        object=event_pb2.ObjectRef(kind="node", name="node-1")), metadata=USER)
    assert [event.reason for event in only.events] == ["Registered"]
