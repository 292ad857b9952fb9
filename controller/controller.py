"""The controller, put together.

Owns:    the life of its parts: cache, server, leadership, one Runtime per term.
Never:   decides anything.
Threads: one event loop.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from controller.agents.hub import Hub
from controller.agents.service import AgentService
from controller.api.access import Tokens
from controller.api.events import EventService
from controller.api.images import ImageService
from controller.api.migrations import MigrationService
from controller.api.nodes import NodeService
from controller.api.rpc import Binder, Gate
from controller.api.vms import VmService
from controller.etcd.types import CreatedAt, Etcd
from controller.events import Events
from controller.ids import Ids
from controller.images.files import ImageFiles
from controller.metrics import Metrics
from controller.model.records import Cluster, Leader
from controller.runtime import Runtime
from controller.scheduler.placer import Placer, Policy
from controller.store import keys
from controller.store.cache import Cache, Change
from controller.store.leader import Leadership
from controller.store.store import Commit, Conflict, Store
from controller.store.world import World
from virga.agent.v1 import agent_pb2
from virga.v1 import event_pb2, image_pb2, migration_pb2, node_pb2, vm_pb2

log = logging.getLogger(__name__)
SERVER_OPTIONS = [
    ("grpc.so_reuseport", 0),                            # a port in use is an error, not a second listener
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.server.max_pending_requests", 20_000),        # thousands of agents dial again at once
    ("grpc.server.max_pending_requests_hard_limit", 40_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
GRACE_S = 0.5


class Controller:
    def __init__(self, etcd: Etcd, state: Path, tokens: Tokens, policy: Policy, metrics: Metrics, *, folder_uid: str,
                 clock: Callable[[], float], monotonic: Callable[[], float], rng: random.Random) -> None:
        """clock: seconds since 1970; monotonic: seconds that never jump; folder_uid: see store/leader.py."""
        self._etcd, self._metrics, self._clock, self._monotonic = etcd, metrics, clock, monotonic
        self._ids = Ids(clock, rng)
        self._me = Leader(uid=self._ids.next(), folder=folder_uid)
        self._cache = Cache(etcd)
        self.world = World(self._cache)
        self.store = Store(etcd, self._cache, self._ids.next)
        self.hub = Hub(monotonic, self._ids.token)
        self._files = ImageFiles(state / "images", self._ids.token)
        self._placer = Placer(self.world, policy)
        self._events = Events(self.world, self._ids.next, clock)
        self._leadership = Leadership(etcd, self._me, rng)
        self._gate = Gate()
        self._health = health.aio.HealthServicer()
        self._binder = Binder(tokens, self._gate, metrics, self._ids.next)
        self._runtime: Runtime | None = None
        self.serving = asyncio.Event()
        self._cache.listen(self._changed)
        self.hub.listen(self._reported)
        metrics.watch(self.world, self.hub)

    async def serve(self, listen: str, credentials: grpc.ServerCredentials | None = None) -> None:
        """Until cancelled. Raises OSError where the address is taken."""
        async with AsyncExitStack() as stack:
            await asyncio.to_thread(self._files.prepare)
            server = self._server()
            address = (server.add_secure_port(listen, credentials) if credentials
                       else server.add_insecure_port(listen))
            if not address:
                raise OSError(f"cannot listen on {listen}")
            await server.start()
            stack.push_async_callback(server.stop, GRACE_S)
            stack.callback(self.hub.close_all)
            following = asyncio.create_task(self._cache.follow(), name="cache")
            stack.push_async_callback(_cancel, following)
            await self._cache.synced.wait()
            self.world.start_feeds()
            while True:
                await self._lead()

    async def _lead(self) -> None:
        """One term: from election to the loss of the lead."""
        async with self._leadership.won() as (fence, lost):
            log.info("leading")
            await self._begin_term(fence)
            runtime = self._runtime = Runtime(self.store, self.world, self.hub, self._placer, self._events, self._files,
                                              self._metrics, self._ids, self._clock, self._monotonic)
            running = asyncio.create_task(runtime.run(), name="runtime")
            try:
                await self._set_serving(True)
                await asyncio.wait([running, lost], return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    running.result()
            finally:
                self._runtime, self.store.fence = None, None
                await self._set_serving(False)
                self.hub.close_all()
                await _cancel(running)

    async def _begin_term(self, fence: CreatedAt) -> None:
        """Know everything that the leader before us wrote; name the cluster if nobody has."""
        while not await self._cache.wait_for(fence.revision):
            log.warning("waiting for the cache to reach revision %d", fence.revision)
        self.store.fence = fence
        if self.store.entry(keys.CLUSTER, "") is None:
            with suppress(Conflict):
                await self.store.commit(Commit().create(keys.CLUSTER, "", Cluster(self._ids.next(), self._clock())))

    async def _set_serving(self, serving: bool) -> None:
        self._gate.open = serving
        status = (health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._health.set("", status)
        (self.serving.set if serving else self.serving.clear)()

    def _changed(self, changes: Sequence[Change]) -> None:
        if self._runtime:
            self._runtime.changed(list(changes))

    def _reported(self, node: str, vms: set[str], migrations: set[str]) -> None:
        if self._runtime:
            self._runtime.reported(node, vms, migrations)

    def _server(self) -> grpc.aio.Server:
        store, world, events, clock = self.store, self.world, self._events, self._clock
        services = {
            vm_pb2.DESCRIPTOR.services_by_name["VmService"]:
                VmService(store, world, self.hub, self._placer, events, self._ids, clock),
            node_pb2.DESCRIPTOR.services_by_name["NodeService"]:
                NodeService(store, world, self.hub, self._placer, events, clock),
            image_pb2.DESCRIPTOR.services_by_name["ImageService"]:
                ImageService(store, world, self._files, events, self._ids, clock),
            migration_pb2.DESCRIPTOR.services_by_name["MigrationService"]:
                MigrationService(store, world, self._placer, events, self._ids, clock),
            event_pb2.DESCRIPTOR.services_by_name["EventService"]: EventService(world),
            agent_pb2.DESCRIPTOR.services_by_name["AgentService"]:
                AgentService(store, world, self.hub, self._files, events, self._metrics, controller_uid=self._me.uid,
                             clock=clock),
        }
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers(tuple(self._binder.bind(*item) for item in services.items()))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (*(descriptor.full_name for descriptor in services), health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
