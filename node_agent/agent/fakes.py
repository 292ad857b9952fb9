"""A controller that only plays AgentService: it wants what a test says, and remembers what it heard.

Owns:    a gRPC server on loopback; per node the desired state and the latest report of each VM and migration.
Never:   decides by itself, but for migrations: the first wish counts, as with the real one.
Threads: one event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable

import grpc

from virga.agent.v1 import agent_pb2 as pb
from virga.agent.v1 import agent_pb2_grpc as rpc

CHUNK = 1 << 16


class FakeController(rpc.AgentServiceServicer):
    def __init__(self, cluster_uid: str = "cluster") -> None:
        self.cluster_uid = cluster_uid
        self.port = 0
        self.images: dict[str, bytes] = {}
        self.desired: dict[str, pb.DesiredState] = {}
        self.vms: dict[tuple[str, str], pb.ObservedVm] = {}              # (node, uid)
        self.migrations: dict[tuple[str, str], pb.ObservedMigration] = {}
        self.hellos: list[pb.Hello] = []
        self.stats: dict[str, pb.VmStats] = {}
        self.decisions: dict[str, pb.DecideMigrationResponse] = {}
        self.decide: Callable[[str, pb.DecideMigrationRequest], pb.DecideMigrationResponse | None] = lambda n, r: None
        self.relays: dict[str, asyncio.Queue] = {}
        self.inputs: dict[str, asyncio.Queue] = {}
        self._outboxes: dict[str, asyncio.Queue] = {}
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None
        self._revision = 0

    # ---- for tests -------------------------------------------------------------------------------------------

    async def start(self, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> None:
        self._server = grpc.aio.server()
        rpc.add_AgentServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{port}"
        self.port = self._server.add_secure_port(address, credentials) if credentials else \
            self._server.add_insecure_port(address)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def add_image(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.images[sha256] = data
        return sha256

    def want(self, node: str, vms: list[pb.DesiredVm], migrations: list[pb.MigrationOrder] = ()) -> None:
        self._revision += 1
        self.desired[node] = pb.DesiredState(revision=self._revision, vms=vms, migrations=migrations)
        if node in self._outboxes:
            self._outboxes[node].put_nowait(pb.ControllerMessage(desired=self.desired[node]))

    def send(self, node: str, message: pb.ControllerMessage) -> None:
        self._outboxes[node].put_nowait(message)

    async def until(self, what: Callable[[], object], timeout_s: float = 20.0) -> None:
        async with self._changed:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait_for(what)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # ---- AgentService ----------------------------------------------------------------------------------------

    async def Connect(self, requests: AsyncIterator[pb.AgentMessage], context: grpc.aio.ServicerContext):
        hello = (await anext(aiter(requests))).hello
        metadata = dict(context.invocation_metadata())
        if metadata.get("authorization") != "Bearer secret" or metadata.get("virga-node") != hello.node:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "token")
        self.hellos.append(hello)
        outbox = self._outboxes[hello.node] = asyncio.Queue()
        await self._observe(hello.node, hello.observed)
        reader = asyncio.create_task(self._read(hello.node, requests))
        try:
            yield pb.ControllerMessage(welcome=pb.Welcome(heartbeat_seconds=0.2, cluster_uid=self.cluster_uid))
            if hello.node in self.desired:
                yield pb.ControllerMessage(desired=self.desired[hello.node])
            while True:
                yield await outbox.get()
        finally:
            reader.cancel()

    async def _read(self, node: str, requests: AsyncIterator[pb.AgentMessage]) -> None:
        async for message in requests:
            if message.HasField("observed"):
                await self._observe(node, message.observed)
            elif message.HasField("stats"):
                self.stats[message.stats.uid] = message.stats
                await self._notify()
            elif message.HasField("heartbeat"):
                for stats in message.heartbeat.stats:
                    self.stats[stats.uid] = stats
                self._outboxes[node].put_nowait(pb.ControllerMessage(
                    heartbeat_ack=pb.HeartbeatAck(sequence=message.heartbeat.sequence)))
                await self._notify()

    async def _observe(self, node: str, observed: pb.ObservedState) -> None:
        if observed.full:
            self.vms = {key: vm for key, vm in self.vms.items() if key[0] != node}
        for vm in observed.vms:
            self.vms[node, vm.uid] = vm
        for migration in observed.migrations:
            self.migrations[node, migration.uid] = migration
        await self._notify()

    async def FetchImage(self, request: pb.FetchImageRequest, context: grpc.aio.ServicerContext):
        data = self.images.get(request.sha256)
        if data is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such file")
        for at in range(request.offset, len(data), CHUNK):
            yield pb.FetchImageResponse(data=data[at:at + CHUNK], offset=at, size_bytes=len(data))

    async def DecideMigration(self, request: pb.DecideMigrationRequest, context: grpc.aio.ServicerContext):
        node = dict(context.invocation_metadata())["virga-node"]
        if request.migration_uid not in self.decisions:
            answer = self.decide(node, request)
            if answer is None:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "nobody knows")
            self.decisions[request.migration_uid] = answer
            await self._notify()
        return self.decisions[request.migration_uid]

    async def AttachConsole(self, requests: AsyncIterator[pb.AttachConsoleRequest], context):
        first = await anext(aiter(requests))
        outputs = self.relays.setdefault(first.session, asyncio.Queue())
        outputs.put_nowait(first)

        async def read() -> None:
            async for message in requests:
                outputs.put_nowait(message)
            outputs.put_nowait(None)
            inputs.put_nowait(None)
        inputs = self.inputs.setdefault(first.session, asyncio.Queue())
        reader = asyncio.create_task(read())
        try:
            while (data := await inputs.get()) is not None:
                yield pb.AttachConsoleResponse(input=data)
        finally:
            reader.cancel()

    async def SendLog(self, requests: AsyncIterator[pb.SendLogRequest], context) -> pb.SendLogResponse:
        async for message in requests:
            self.relays.setdefault(message.session, asyncio.Queue()).put_nowait(message)
            session = message.session
        self.relays[session].put_nowait(None)
        return pb.SendLogResponse()
