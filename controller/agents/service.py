"""AgentService: what agents call.

Owns:    the life of a node's stream, registration, and the two ends of relays.
Never:   changes a VM's records (the reconcilers do, from what is reported here), but for the decision about a migration.
Threads: one event loop.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from controller import errors
from controller.agents import wire
from controller.agents.desired import decision_of, desired_of, unknown_vms
from controller.agents.hub import Hub, Relay, Session
from controller.api.access import Caller
from controller.events import Events
from controller.images.files import ImageFiles
from controller.metrics import Metrics
from controller.model import migrations, names
from controller.model.records import NodeRecord
from controller.store import keys
from controller.store.store import Commit, Store
from controller.store.world import World
from virga.agent.v1 import agent_pb2 as pb

log = logging.getLogger(__name__)
PROTOCOL = 1
HEARTBEAT_S = 1.5
COALESCE_S = 0.01                       # several changes at once make one message
HELLO_TIMEOUT_S = 10.0


class AgentService:
    def __init__(self, store: Store, world: World, hub: Hub, files: ImageFiles, events: Events, metrics: Metrics, *,
                 controller_uid: str, clock: Callable[[], float]) -> None:
        """clock: seconds since 1970."""
        self._store, self._world, self._hub, self._files, self._events = store, world, hub, files, events
        self._metrics, self._uid, self._clock = metrics, controller_uid, clock
        self._told_unknown: set[tuple[str, str]] = set()

    # ── the stream of a node ──────────────────────────────────────────────────────────────────────────────────────

    async def connect(self, requests: AsyncIterator[Any], caller: Caller) -> AsyncGenerator[Any, None]:
        """See agent.proto. Ends when a newer stream of the node takes its place, or the agent goes."""
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                first = await anext(aiter(requests))
        except (StopAsyncIteration, TimeoutError):
            raise errors.BadField("hello", "the first message must come, and be hello") from None
        session = await self._register(first, caller)
        reader = asyncio.create_task(self._read(requests, session), name=f"read-{session.node}")
        pusher = asyncio.create_task(self._push(session), name=f"push-{session.node}")
        ended = asyncio.create_task(session.ended.wait())
        self._hub.open(session)
        try:
            yield pb.ControllerMessage(welcome=pb.Welcome(
                heartbeat_seconds=HEARTBEAT_S, controller_uid=self._uid, cluster_uid=self._cluster_uid()))
            session.dirty.set()
            while not session.ended.is_set() and not reader.done():
                getting = asyncio.create_task(session.outbox.get())
                await asyncio.wait([getting, ended, reader], return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    break
                yield getting.result()
            if reader.done():
                reader.result()                                   # a malformed message is told to who sent it
            elif session.ended.is_set():
                raise (errors.Superseded("SUPERSEDED", f"{session.node} has opened another stream")
                       if session.superseded else errors.Unavailable("NOT_LEADER", "this controller leads no more"))
        finally:
            self._hub.close(session)
            for task in (reader, pusher, ended):
                task.cancel()
            await asyncio.gather(reader, pusher, ended, return_exceptions=True)

    async def _register(self, first: Any, caller: Caller) -> Session:
        if not first.HasField("hello"):
            raise errors.BadField("hello", "must be the first message")
        hello = first.hello
        if hello.node != caller.name:
            raise errors.Denied("NODE_MISMATCH", f"the token is {caller.name}'s, not {hello.node!r}'s")
        names.check("hello.node", hello.node)
        if hello.protocol != PROTOCOL:
            raise errors.BadField("hello.protocol", f"must be {PROTOCOL}, not {hello.protocol}", "PROTOCOL_UNKNOWN")
        if not hello.node_uid or len(hello.node_uid) > 64:
            raise errors.BadField("hello.node_uid", "must have 1 to 64 letters")
        if not 0 < hello.memory_mib <= 1 << 30 or not 0 < hello.cpus <= 1 << 16:
            raise errors.BadField("hello.memory_mib", "memory and cpus must be more than 0")
        if hello.cluster_uid and hello.cluster_uid != self._cluster_uid():
            self._events.from_agent(hello.node, "", "OtherCluster", f"{hello.node} belongs to cluster "
                                    f"{hello.cluster_uid[:64]}: it is not let in, and its VMs are left alone", True)
            raise errors.WrongState("OTHER_CLUSTER", "node", hello.node, f"this is cluster {self._cluster_uid()}, the "
                                    f"VMs of {hello.node} belong to {hello.cluster_uid[:64]}: give the node another "
                                    "state folder, or the controller its old etcd data")
        await self._store.change(lambda: self._decide_registration(hello))
        session = Session(hello.node, hello.node_uid)
        session.vms = {vm.uid: wire.report_from_proto(vm) for vm in hello.observed.vms}
        session.migrations = {m.uid: wire.migration_from_proto(m) for m in hello.observed.migrations}
        self._tell_unknown(session)
        log.info("%s registered, %d VMs there", hello.node, len(session.vms))
        return session

    def _decide_registration(self, hello: Any) -> tuple[Commit, None]:
        now, entry, commit = self._clock(), self._store.entry(keys.NODE, hello.node), Commit()
        known: NodeRecord | None = entry.record if entry else None
        if known and known.uid != hello.node_uid:
            session = self._hub.sessions.get(hello.node)
            if session and session.node_uid != hello.node_uid:
                raise errors.NodeNameTaken("NODE_NAME_TAKEN", "node", hello.node,
                                           f"a node called {hello.node} with another state folder is connected")
            if self._world.vms_on(hello.node):
                raise errors.NodeNameTaken("NODE_NAME_TAKEN", "node", hello.node,
                                           f"{hello.node} was another state folder, which has VMs: delete them, or "
                                           "bring that folder back, or take another name")
        fresh = NodeRecord(uid=hello.node_uid, name=hello.node, memory_mib=hello.memory_mib, cpus=hello.cpus,
                           create_time=now, state_time=now)
        record = replace(known or fresh, uid=hello.node_uid, memory_mib=hello.memory_mib, cpus=hello.cpus,
                         labels=dict(hello.labels), agent_version=hello.agent_version[:80],
                         address=hello.address[:255], lost=False,
                         state_time=now if known is None or known.lost else known.state_time)
        commit.update(keys.NODE, hello.node, entry, record)
        if known is None:
            self._events.node(commit, record, "Registered", f"{record.memory_mib} MiB, {record.cpus} CPUs", now)
        elif known.lost:
            self._events.node(commit, record, "NodeReady", f"{record.name} is back", now)
        return commit, None

    async def _read(self, requests: AsyncIterator[Any], session: Session) -> None:
        async for message in requests:
            self._hub.heard(session.node)
            match message.WhichOneof("message"):
                case "heartbeat":
                    for stats in message.heartbeat.stats:
                        self._count(session, stats)
                    session.outbox.put_nowait(pb.ControllerMessage(
                        heartbeat_ack=pb.HeartbeatAck(sequence=message.heartbeat.sequence)))
                case "observed":
                    self._observe(session, message.observed)
                case "stats":
                    self._count(session, message.stats)
                case "event":
                    self._events.from_agent(session.node, message.event.vm_uid, message.event.reason,
                                            message.event.message, message.event.warning)
                case "hello":
                    raise errors.BadField("hello", "comes once")

    def _count(self, session: Session, stats: Any) -> None:
        """A node counts for its own VMs only."""
        view = self._world.vm(stats.uid)
        if view and view.node == session.node:
            self._hub.put_stats(wire.stats_from_proto(stats, self._clock()))

    def _observe(self, session: Session, observed: Any) -> None:
        if observed.full:
            old_vms, old_migrations = set(session.vms), set(session.migrations)
            session.vms, session.migrations = {}, {}
        else:
            old_vms, old_migrations = set(), set()
        for vm in observed.vms:
            session.vms[vm.uid] = wire.report_from_proto(vm)
        for migration in observed.migrations:
            session.migrations[migration.uid] = wire.migration_from_proto(migration)
        self._tell_unknown(session)
        session.dirty.set()
        self._hub.reported(session, old_vms | {vm.uid for vm in observed.vms},
                           old_migrations | {migration.uid for migration in observed.migrations})

    def _tell_unknown(self, session: Session) -> None:
        for uid in unknown_vms(self._world, session):
            if not session.vms[uid].gone and (session.node, uid) not in self._told_unknown:
                self._told_unknown.add((session.node, uid))
                self._events.from_agent(session.node, "", "UnknownVm",
                                        f"{session.node} has a VM {uid} that nobody knows: it is left alone", True)

    async def _push(self, session: Session) -> None:
        """Send the desired state whenever it has become another one."""
        last: bytes | None = None
        while True:
            await session.dirty.wait()
            await asyncio.sleep(COALESCE_S)
            session.dirty.clear()
            desired = wire.wanted_to_proto(desired_of(self._world, session), 0)
            now = desired.SerializeToString(deterministic=True)
            if now != last:
                last = now
                desired.revision = self._world.revision
                session.outbox.put_nowait(pb.ControllerMessage(desired=desired))

    def _cluster_uid(self) -> str:
        entry = self._store.entry(keys.CLUSTER, "")
        return entry.record.uid if entry else ""

    # ── unary and streams on demand ───────────────────────────────────────────────────────────────────────────────

    async def decide_migration(self, request: Any, caller: Caller) -> Any:
        """See agent.proto: the one decision, by compare-and-swap of the ownership key."""
        wish, now = wire.wish_from_proto(request.wish), self._clock()

        def decide() -> tuple[Commit, Any]:
            entry = self._world.migration_entry(request.migration_uid)
            if entry is None:
                raise errors.NotFound("migration", request.migration_uid)
            commit = Commit()
            record = migrations.decide(entry.record, caller.name, wish, request.reason, now)
            if record != entry.record:
                migrations.commit_decision(commit, entry, self._store.entry(keys.VM_ASSIGN, record.vm_uid), record)
            return commit, record

        record = await self._store.change(decide, settle=False)        # a guest stands still meanwhile
        decision, generation, owner = decision_of(record)
        if record.phase_time == now:
            self._metrics.decided(decision)
        return pb.DecideMigrationResponse(decision=wire.DECISIONS[decision], owner_generation=generation,
                                          owner_node=owner)

    async def fetch_image(self, request: Any, caller: Caller) -> AsyncGenerator[Any, None]:
        """See agent.proto."""
        async for offset, data, size in self._files.read(request.sha256, request.offset):
            yield pb.FetchImageResponse(data=data, offset=offset, size_bytes=size)

    async def attach_console(self, requests: AsyncIterator[Any], caller: Caller) -> AsyncGenerator[Any, None]:
        """The agent's end of a console: its output goes to the relay, the relay's input to it."""
        first = await anext(aiter(requests), None)
        relay = self._hub.attach(first.session if first else "", caller.name)
        reader = asyncio.create_task(self._pump(first, requests, relay))
        closed = asyncio.create_task(relay.closed.wait())
        try:
            while not relay.closed.is_set() and not reader.done():
                getting = asyncio.create_task(relay.to_agent.get())
                await asyncio.wait([getting, reader, closed], return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    break
                data = getting.result()
                if data is None:
                    break
                yield pb.AttachConsoleResponse(input=data)
        finally:
            closed.cancel()
            await _finish(reader, relay)

    async def send_log(self, requests: AsyncIterator[Any], caller: Caller) -> Any:
        """The agent's end of a log."""
        first = await anext(aiter(requests), None)
        relay = self._hub.attach(first.session if first else "", caller.name)
        reader = asyncio.create_task(self._pump(first, requests, relay))
        closed = asyncio.create_task(relay.closed.wait())
        try:
            await asyncio.wait([reader, closed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            closed.cancel()
            await _finish(reader, relay)
        return pb.SendLogResponse()

    async def _pump(self, first: Any, requests: AsyncIterator[Any], relay: Relay) -> None:
        """Into a queue of bounded depth: an agent whose reader is slow has to wait."""
        await relay.from_agent.put(first)
        async for message in requests:
            await relay.from_agent.put(message)


async def _finish(reader: asyncio.Task[None], relay: Relay) -> None:
    """The agent's stream is over: what it has sent stays in the queue, then comes the end."""
    reader.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await reader
    relay.closed.set()
