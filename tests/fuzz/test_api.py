"""Every method of the API, agents' included, with messages nobody would send: each is answered, or refused with a reason;
none makes the controller fail, and it works afterwards. VIRGA_FUZZ_SECONDS makes it longer (`make fuzz`)."""

import asyncio
import os
import random
import time

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from tests.servers.cloud import USER, cloud
from virga.agent.v1 import agent_pb2, agent_pb2_grpc
from virga.v1 import event_pb2, image_pb2, migration_pb2, node_pb2, vm_pb2

SECONDS = float(os.environ.get("VIRGA_FUZZ_SECONDS", "5"))
SERVICES = [module.DESCRIPTOR.services_by_name[name] for module, name in (
    (vm_pb2, "VmService"), (node_pb2, "NodeService"), (image_pb2, "ImageService"),
    (migration_pb2, "MigrationService"), (event_pb2, "EventService"), (agent_pb2, "AgentService"))]
METHODS = [method for service in SERVICES for method in service.methods]
NODE = (("authorization", "Bearer token-node-2"), ("virga-node", "node-2"))
WORDS = ["", "web", "tiny", "node-1", "node-2", "a" * 300, "Web", "../x", "\x00", "ü", "%s", "0", "01", "*", "vm/web",
         "a" * 64, "f" * 64, "-", "a-", " ", "\n", "\u202e", "x,y", "default"]
NUMBERS = [0, 1, -1, 2, 255, 256, 65535, 2**31 - 1, -2**31, 2**32 - 1, 2**63 - 1, -2**63, 2**64 - 1]
RANGES = {FieldDescriptor.CPPTYPE_INT32: (-2**31, 2**31), FieldDescriptor.CPPTYPE_INT64: (-2**63, 2**63),
          FieldDescriptor.CPPTYPE_UINT32: (0, 2**32), FieldDescriptor.CPPTYPE_UINT64: (0, 2**64),
          FieldDescriptor.CPPTYPE_ENUM: (-2**31, 2**31)}
ANSWERED = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED}


class Generator:
    """Messages of any kind: fields left out, known words, borders of numbers, rubbish."""

    def __init__(self, seed, words=()):
        self.rng, self.words = random.Random(seed), [*words, *WORDS]

    def message(self, kind, depth=0):
        message = GetMessageClass(kind)()
        for field in kind.fields:
            if self.rng.random() < 0.35 or depth > 4:
                continue
            if field.message_type and field.message_type.GetOptions().map_entry:
                for _ in range(self.rng.randrange(3)):
                    getattr(message, field.name)[self.rng.choice(WORDS[:8])] = self.value(
                        field.message_type.fields_by_name["value"])
            elif field.is_repeated:
                for _ in range(self.rng.randrange(4)):
                    if field.message_type:
                        getattr(message, field.name).append(self.message(field.message_type, depth + 1))
                    else:
                        getattr(message, field.name).append(self.value(field))
            elif field.message_type:
                getattr(message, field.name).CopyFrom(self.message(field.message_type, depth + 1))
            else:
                setattr(message, field.name, self.value(field))
        return message

    def value(self, field):
        kind = field.cpp_type
        if kind in RANGES:
            low, high = RANGES[kind]
            small = self.rng.randrange(0, 6) if self.rng.random() < 0.6 else self.rng.choice(NUMBERS)
            return min(max(small, low), high - 1)
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return self.rng.random() < 0.5
        if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return self.rng.choice([0.0, -1.0, 1e308, float("nan"), float("inf")])
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self.rng.randbytes(self.rng.randrange(200))
        return self.rng.choice(self.words[:5] if self.rng.random() < 0.6 else self.words)


async def call_once(channel, method, generator):
    """The status of one call with made-up messages."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    metadata = NODE if "agent" in path else USER
    kind = {(False, False): channel.unary_unary, (False, True): channel.unary_stream,
            (True, False): channel.stream_unary, (True, True): channel.stream_stream}[
        method.client_streaming, method.server_streaming]
    stub = kind(path, request_serializer=lambda message: message.SerializeToString(), response_deserializer=bytes)
    messages = [generator.message(method.input_type) for _ in range(generator.rng.randrange(1, 4))]
    if method.client_streaming:
        async def stream():
            for message in messages:
                yield message
        call = stub(stream(), metadata=metadata, timeout=0.5)
    else:
        call = stub(messages[0], metadata=metadata, timeout=0.5)
    try:
        if method.server_streaming:
            async for _ in call:
                if generator.rng.random() < 0.2:
                    call.cancel()
                    return grpc.StatusCode.OK
        else:
            await call
    except grpc.aio.AioRpcError as error:
        assert "the controller failed" not in error.details(), (method.full_name, error.details())
        if error.details() == "Internal error from Core":       # grpc's client wrote to a stream that was refused already
            return grpc.StatusCode.ABORTED
        return error.code()
    except asyncio.CancelledError:
        if not call.cancelled():
            raise
    return grpc.StatusCode.OK


async def work_afterwards(site):
    """Whatever garbage has cordoned, filled, or deleted: the API puts it right, and a VM runs."""
    for node in (await site.api.nodes.ListNodes(node_pb2.ListNodesRequest(), metadata=USER)).nodes:
        if node.name == "node-1":
            await site.api.nodes.UncordonNode(node_pb2.UncordonNodeRequest(node="node-1"), metadata=USER)
        else:
            await site.api.nodes.CordonNode(node_pb2.CordonNodeRequest(node=node.name), metadata=USER)
    for vm in (await site.api.vms.ListVms(vm_pb2.ListVmsRequest(node="node-1"), metadata=USER)).vms:
        await site.api.vms.DeleteVm(vm_pb2.DeleteVmRequest(vm=vm.uid), metadata=USER)
    await site.api.upload("afterwards")
    await site.api.create("afterwards", image="afterwards")
    await site.api.until("afterwards", "RUNNING")


async def test_no_message_makes_the_controller_fail(tmp_path, monkeypatch):
    monkeypatch.setattr("controller.agents.hub.ATTACH_TIMEOUT_S", 0.05)
    monkeypatch.setattr("controller.agents.hub.STATS_TIMEOUT_S", 0.05)
    seed = int(os.environ.get("VIRGA_FUZZ_SEED", random.randrange(1 << 32)))
    print(f"VIRGA_FUZZ_SEED={seed}")
    generator, deadline, calls = Generator(seed), time.monotonic() + SECONDS, 0
    async with cloud(tmp_path, nodes=("node-1",)) as site:
        await site.api.create("web")
        await site.api.until("web", "RUNNING")
        while time.monotonic() < deadline:
            methods = generator.rng.choices(METHODS, k=8)
            codes = await asyncio.gather(*(call_once(site.api.channel, method, generator) for method in methods))
            calls += len(codes)
            for method, code in zip(methods, codes, strict=True):
                assert code in ANSWERED, f"{method.full_name}: {code}, seed {seed}"
        await work_afterwards(site)
    assert calls > 50


async def mad_agent(site, generator, deadline):
    """A registered node that says anything."""
    stub = agent_pb2_grpc.AgentServiceStub(site.api.channel)
    hello = agent_pb2.Hello(node="node-2", node_uid="mad", protocol=1, memory_mib=8192, cpus=8)
    sent = 0
    while time.monotonic() < deadline:
        call = stub.Connect(metadata=NODE)
        try:
            await call.write(agent_pb2.AgentMessage(hello=hello))
            await call.read()
            for _ in range(generator.rng.randrange(1, 60)):
                message = generator.message(agent_pb2.AgentMessage.DESCRIPTOR)
                if not message.HasField("hello"):
                    await call.write(message)
                    sent += 1
                await asyncio.sleep(0.002)
        except grpc.aio.AioRpcError as error:
            assert error.code() in ANSWERED or error.details() == "Internal error from Core", error.details()
        except asyncio.InvalidStateError:                       # refused while we wrote
            pass
        finally:
            call.cancel()
    return sent


async def test_a_mad_agent_harms_only_its_own_vms(tmp_path):
    seed = int(os.environ.get("VIRGA_FUZZ_SEED", random.randrange(1 << 32)))
    print(f"VIRGA_FUZZ_SEED={seed}")
    async with cloud(tmp_path, nodes=("node-1",)) as site:
        vm = await site.api.create("web")
        before = await site.api.until("web", "RUNNING")
        await site.api.nodes.CordonNode(node_pb2.CordonNodeRequest(node="node-1"), metadata=USER)
        theirs = await site.api.create("theirs")
        generator = Generator(seed, (vm.uid, theirs.uid))
        assert await mad_agent(site, generator, time.monotonic() + SECONDS) > 20
        after = await site.api.vm("web")
        assert (after.status.state, after.status.node, after.status.run, after.status.ownership_generation) == (
            before.status.state, before.status.node, 1, 1)
        assert site.site.running == {vm.uid: "node-1"}
        await work_afterwards(site)
