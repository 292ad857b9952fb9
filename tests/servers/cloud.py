"""A controller in this process, on a fake or a real etcd, with fake agents and a client: what controller tests run."""

import asyncio
import json
import random
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry

from controller.api.access import Tokens
from controller.controller import Controller
from controller.etcd.fake import FakeEtcd
from controller.fakes.agent import Disk, FakeAgent, Site
from controller.metrics import Metrics
from controller.scheduler.placer import Policy
from tests.servers.etcd import free_port
from virga.v1 import (
    event_pb2_grpc, image_pb2, image_pb2_grpc, migration_pb2_grpc, node_pb2_grpc, vm_pb2, vm_pb2_grpc,
)

USER = (("authorization", "Bearer user-token"),)
NODES = ("node-1", "node-2", "node-3")


def multiboot_kernel(size=4096):
    """The smallest thing that is a multiboot kernel: a header with its checksum."""
    header = b"".join(word.to_bytes(4, "little") for word in (0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF))
    return header.ljust(size, b"\x90")


class Client:
    """Stubs with the user's token."""

    def __init__(self, address):
        self.channel = grpc.aio.insecure_channel(address)
        self.address = address
        self.vms, self.nodes = vm_pb2_grpc.VmServiceStub(self.channel), node_pb2_grpc.NodeServiceStub(self.channel)
        self.images = image_pb2_grpc.ImageServiceStub(self.channel)
        self.migrations = migration_pb2_grpc.MigrationServiceStub(self.channel)
        self.events = event_pb2_grpc.EventServiceStub(self.channel)

    async def vm(self, name):
        return (await self.vms.GetVm(vm_pb2.GetVmRequest(vm=name), metadata=USER)).vm

    async def create(self, name, request_id="", **spec):
        spec = vm_pb2.VmSpec(image=spec.pop("image", "tiny"), **spec)
        return (await self.vms.CreateVm(vm_pb2.CreateVmRequest(name=name, spec=spec, request_id=request_id),
                                        metadata=USER)).vm

    async def until(self, name, state, timeout_s=10.0):
        """The VM once it is in this state."""
        wanted = getattr(vm_pb2, f"VM_STATE_{state}")
        return await until(lambda: self.vm(name), lambda vm: vm.status.state == wanted, timeout_s)

    async def upload(self, name="tiny", data=None, **fields):
        import hashlib
        data = multiboot_kernel() if data is None else data
        file = image_pb2.ImageFile(role=image_pb2.FILE_ROLE_KERNEL, size_bytes=len(data),
                                   sha256=hashlib.sha256(data).hexdigest())
        image = image_pb2.Image(name=name, **{"kind": image_pb2.IMAGE_KIND_MULTIBOOT, "files": [file], **fields})

        async def messages():
            yield image_pb2.UploadImageRequest(open=image_pb2.UploadOpen(image=image))
            for start in range(0, len(data), 1 << 16):
                yield image_pb2.UploadImageRequest(chunk=image_pb2.UploadChunk(
                    role=image_pb2.FILE_ROLE_KERNEL, offset=start, data=data[start:start + (1 << 16)]))

        return (await self.images.UploadImage(messages(), metadata=USER)).image


async def until(read, holds, timeout_s=10.0):
    """read() until holds(it); a refusal of the controller that has no lead yet is no answer."""
    last = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    last = await read()
                    if holds(last):
                        return last
                except grpc.aio.AioRpcError as error:
                    if error.code() != grpc.StatusCode.UNAVAILABLE:
                        raise
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"never so; last seen: {last}") from None


class Cloud:
    """`async with cloud(...)` gives one."""

    def __init__(self, folder: Path, etcd, stack: AsyncExitStack, policy: Policy):
        self.folder, self.etcd, self.site, self.policy = folder, etcd, Site(), policy
        self.address = f"127.0.0.1:{free_port()}"
        self.agents: dict[str, FakeAgent] = {}
        self.disks: dict[str, Disk] = {}
        self._stack, self._agent_tasks = stack, {}
        self._task = None
        self.controller = None
        (folder / "token").write_text("user-token")
        (folder / "agents.json").write_text(json.dumps({name: f"token-{name}" for name in (*NODES, "node-9")}))

    async def start_controller(self):
        tokens = Tokens(self.folder / "token", self.folder / "agents.json")
        tokens.load()
        self.controller = Controller(self.etcd, self.folder, tokens, self.policy, Metrics(CollectorRegistry()),
                                     folder_uid="f" * 32, clock=time.time, monotonic=time.monotonic,
                                     rng=random.Random())
        self._task = asyncio.create_task(self.controller.serve(self.address))
        serving = asyncio.create_task(self.controller.serving.wait())
        await asyncio.wait([serving, self._task], return_when=asyncio.FIRST_COMPLETED, timeout=20)
        serving.cancel()
        if self._task.done():
            self._task.result()
        assert self.controller.serving.is_set()

    async def stop_controller(self):
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def start_agent(self, name, **options):
        options.setdefault("disk", self.disks.setdefault(name, Disk(f"uid-of-{name}")))
        agent = FakeAgent(name, f"token-{name}", self.site, **options)
        for other in self.agents.values():
            agent.peer(other)
        self.agents[name] = agent
        self._agent_tasks[name] = asyncio.create_task(agent.run(self.address))
        return agent

    async def stop_agent(self, name):
        task = self._agent_tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del self.agents[name]

    async def close(self):
        for name in list(self._agent_tasks):
            await self.stop_agent(name)
        await self.stop_controller()

    def client(self):
        client = Client(self.address)
        self._stack.push_async_callback(client.channel.close)
        return client


@asynccontextmanager
async def cloud(folder, etcd=None, nodes=NODES, policy=None, image=True):
    async with AsyncExitStack() as stack:
        made = Cloud(folder, etcd or FakeEtcd(time.monotonic), stack, policy or Policy())
        stack.push_async_callback(made.close)
        await made.start_controller()
        for name in nodes:
            await made.start_agent(name)
        for agent in made.agents.values():
            await asyncio.wait_for(agent.connected.wait(), 10)
        made.api = made.client()
        if image:
            await made.api.upload()
        yield made
