"""A node agent without machines: it plays the agent's side of agent.proto over a real channel.

Owns:    its `Disk`, which outlives it as a real agent's state folder would; a `Site` that all fake agents of a test
         share, and that refuses to let one VM run twice.
Never:   starts a process.
Threads: one event loop.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from virga.agent.v1 import agent_pb2 as pb
from virga.agent.v1 import agent_pb2_grpc as rpc
from virga.v1 import vm_pb2

RUNNING, PAUSED, STOPPED, CRASHED, CREATING = (
    vm_pb2.VM_STATE_RUNNING, vm_pb2.VM_STATE_PAUSED, vm_pb2.VM_STATE_STOPPED, vm_pb2.VM_STATE_CRASHED,
    vm_pb2.VM_STATE_CREATING)


class RanTwice(Exception):
    """The one thing that must never be."""


@dataclass
class Site:
    """Where every VM runs, over all fake nodes."""

    running: dict[str, str] = field(default_factory=dict)
    starts: list[tuple[str, str, int]] = field(default_factory=list)          # (uid, node, run)

    def run(self, uid: str, node: str) -> None:
        if self.running.setdefault(uid, node) != node:
            raise RanTwice(f"{uid} runs on {self.running[uid]}, and was started on {node}")

    def halt(self, uid: str, node: str) -> None:
        if self.running.get(uid) == node:
            del self.running[uid]


@dataclass
class FakeVm:
    uid: str
    name: str
    generation: int
    run: int = 0
    state: int = CREATING
    reason: str = ""
    reset_serial: int = 0
    exit_status: int = 0
    migrating_in: bool = False
    log: bytes = b""


@dataclass
class FakeMigration:
    uid: str
    vm_uid: str
    role: int
    step: int
    address: str = ""
    reason: str = ""


@dataclass
class Disk:
    node_uid: str
    vms: dict[str, FakeVm] = field(default_factory=dict)
    migrations: dict[str, FakeMigration] = field(default_factory=dict)


class FakeAgent:
    """`hold` names steps at which migrations of this node stop: "prepare", "copy", "commit", "run"."""

    def __init__(self, name: str, token: str, site: Site, disk: Disk | None = None, *, memory_mib: int = 4096,
                 cpus: int = 4, labels: dict[str, str] | None = None) -> None:
        self.name, self.site = name, site
        self.disk = disk or Disk(f"uid-of-{name}")
        self.memory_mib, self.cpus, self.labels = memory_mib, cpus, labels or {}
        self.hold: set[str] = set()
        self.desired: Any = None
        self.decisions: list[Any] = []
        self.error: Exception | None = None
        self.on_remove: Callable[[str], None] = lambda uid: None
        self.connected = asyncio.Event()
        self._metadata = (("authorization", f"Bearer {token}"), ("virga-node", name))
        self._changed = asyncio.Event()
        self._peers: dict[str, FakeAgent] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._deciding: set[str] = set()
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None

    def peer(self, other: "FakeAgent") -> None:
        """The one whose memory streams reach this one, and the other way round."""
        self._peers[other.name], other._peers[self.name] = other, self

    async def run(self, address: str) -> None:
        """Dial, serve, dial again, until cancelled."""
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.max_reconnect_backoff_ms", 200),
                                                                    ("grpc.initial_reconnect_backoff_ms", 50),
                                                                    ("grpc.min_reconnect_backoff_ms", 50)])
        self._stub = rpc.AgentServiceStub(self._channel)
        try:
            while True:
                try:
                    await self._session()
                except grpc.aio.AioRpcError as error:
                    self.error = error
                self.connected.clear()
                await asyncio.sleep(0.1)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._channel.close(grace=None)

    async def _session(self) -> None:
        call = self._stub.Connect(metadata=self._metadata)
        writing = asyncio.create_task(self._write(call))
        try:
            async for message in call:
                match message.WhichOneof("message"):
                    case "welcome":
                        self.connected.set()
                    case "desired":
                        self.desired = message.desired
                        self._apply()
                    case "open_stream":
                        self._spawn(self._stream(message.open_stream))
                    case "stats_request":
                        await call.write(pb.AgentMessage(stats=self._stats(message.stats_request.vm_uid)))
        finally:
            writing.cancel()
            call.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, call: Any) -> None:
        await call.write(pb.AgentMessage(hello=pb.Hello(
            node=self.name, node_uid=self.disk.node_uid, agent_version="fake", protocol=1, memory_mib=self.memory_mib,
            cpus=self.cpus, labels=self.labels, address="127.0.0.1", observed=self._observed())))
        sequence = 0
        while True:
            changed = self._changed
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await changed.wait()
            if changed.is_set():
                self._changed = asyncio.Event()
                await call.write(pb.AgentMessage(observed=self._observed()))
                for uid in [vm.uid for vm in self.disk.vms.values() if vm.reason == "GONE"]:
                    del self.disk.vms[uid]
            sequence += 1
            await call.write(pb.AgentMessage(heartbeat=pb.Heartbeat(sequence=sequence)))

    def _observed(self) -> Any:
        vms = [pb.ObservedVm(uid=vm.uid, generation=vm.generation, gone=True) if vm.reason == "GONE" else
               pb.ObservedVm(uid=vm.uid, name=vm.name, generation=vm.generation, run=vm.run, state=vm.state,
                             reason=vm.reason, reset_serial=vm.reset_serial, exit_status=vm.exit_status,
                             migrating_in=vm.migrating_in,
                             phases=[vm_pb2.Phase(name="image", seconds=0.1), vm_pb2.Phase(name="kernel", seconds=0.2)])
               for vm in self.disk.vms.values()]
        migrations = [pb.ObservedMigration(uid=m.uid, vm_uid=m.vm_uid, role=m.role, step=m.step, address=m.address,
                                           rounds=3, bytes=1000, gap_ms=5.0, decision_ms=1.0, reason=m.reason)
                      for m in self.disk.migrations.values()]
        return pb.ObservedState(full=True, vms=vms, migrations=migrations)

    def _stats(self, uid: str) -> Any:
        vm = self.disk.vms.get(uid)
        return pb.VmStats(uid=uid, run=vm.run if vm else 0, retired_instructions=1234, exits={"HLT": 7, "CPUID": 9})

    # ── what a test does to it ────────────────────────────────────────────────────────────────────────────────────

    def tell(self) -> None:
        self._changed.set()

    def end(self, uid: str, state: int, reason: str) -> None:
        """The guest ended by itself."""
        vm = self.disk.vms[uid]
        self.site.halt(uid, self.name)
        vm.state, vm.reason = state, reason
        self.tell()

    # ── desired state ─────────────────────────────────────────────────────────────────────────────────────────────

    def _apply(self) -> None:
        for wanted in self.desired.vms:
            if wanted.disposition == pb.DISPOSITION_REMOVE:
                self._remove(wanted)
            elif wanted.disposition == pb.DISPOSITION_KEEP:
                self._keep(wanted)
        for order in self.desired.migrations:
            self._order(order)
        self.tell()

    def _remove(self, wanted: Any) -> None:
        vm = self.disk.vms.setdefault(wanted.uid, FakeVm(wanted.uid, wanted.name, wanted.generation))
        if vm.generation <= wanted.generation:
            self.on_remove(vm.uid)
            self.site.halt(vm.uid, self.name)
            vm.reason, vm.generation = "GONE", wanted.generation

    def _keep(self, wanted: Any) -> None:
        vm = self.disk.vms.get(wanted.uid)
        if vm is None:
            vm = self.disk.vms[wanted.uid] = FakeVm(wanted.uid, wanted.name, wanted.generation, state=STOPPED)
        if wanted.generation < vm.generation or (vm.migrating_in and "run" in self.hold):
            return
        resumed = wanted.generation > vm.generation
        vm.generation, vm.migrating_in = wanted.generation, False
        moving = any(m.vm_uid == vm.uid and m.step == pb.MIGRATION_STEP_PAUSED for m in self.disk.migrations.values())
        if moving and not resumed:
            return
        if wanted.power == vm_pb2.POWER_STATE_STOPPED:
            if vm.state in (RUNNING, PAUSED):
                self.end(vm.uid, STOPPED, "STOPPED_BY_USER")
        elif wanted.run > vm.run:
            vm.run, vm.reason = wanted.run, ""
            self.site.starts.append((vm.uid, self.name, vm.run))
            self._go(vm, wanted.power)
        elif vm.state in (RUNNING, PAUSED):
            self._go(vm, wanted.power)
        vm.reset_serial = wanted.reset_serial

    def _go(self, vm: FakeVm, power: int) -> None:
        if power == vm_pb2.POWER_STATE_PAUSED:
            self.site.halt(vm.uid, self.name)
            vm.state = PAUSED
        else:
            self.site.run(vm.uid, self.name)
            vm.state = RUNNING

    # ── migrations ────────────────────────────────────────────────────────────────────────────────────────────────

    def _order(self, order: Any) -> None:
        mine = self.disk.migrations.get(order.uid)
        if mine and mine.step in (pb.MIGRATION_STEP_DONE, pb.MIGRATION_STEP_FAILED):
            if not (order.decision == pb.MIGRATION_DECISION_ABORT and order.role == pb.MIGRATION_ROLE_SOURCE):
                return
        if order.role == pb.MIGRATION_ROLE_TARGET:
            self._as_target(order, mine)
        else:
            self._as_source(order, mine)

    def _as_target(self, order: Any, mine: FakeMigration | None) -> None:
        if order.decision == pb.MIGRATION_DECISION_ABORT:
            self.fail_target(order.uid, order.vm_uid)
        elif order.decision == pb.MIGRATION_DECISION_COMMIT:
            if mine and mine.step == pb.MIGRATION_STEP_READY and "run" not in self.hold:
                self._take_over(order.uid, order.owner_generation, order.vm.power)
        elif mine is None and order.vm_uid in self.disk.vms and self.disk.vms[order.vm_uid].reason != "GONE":
            self.fail_target(order.uid, order.vm_uid)           # another copy is here
        elif mine is None and "prepare" not in self.hold:
            self.disk.vms[order.vm_uid] = FakeVm(order.vm_uid, order.vm.name, order.generation, run=order.vm.run,
                                                 state=PAUSED, migrating_in=True)
            self.disk.migrations[order.uid] = FakeMigration(order.uid, order.vm_uid, order.role,
                                                            pb.MIGRATION_STEP_PREPARED, f"127.0.0.1:{len(self.name)}")
        elif mine and mine.step == pb.MIGRATION_STEP_READY:
            self._ask(mine)

    def _as_source(self, order: Any, mine: FakeMigration | None) -> None:
        vm = self.disk.vms.get(order.vm_uid)
        if vm is None:
            return
        if order.decision == pb.MIGRATION_DECISION_ABORT:
            if vm.generation < order.owner_generation:
                vm.generation = order.owner_generation
                if vm.state == PAUSED and mine:
                    self._go(vm, vm_pb2.POWER_STATE_RUNNING)
            if mine:
                mine.step = pb.MIGRATION_STEP_DONE
        elif order.decision == pb.MIGRATION_DECISION_COMMIT:
            if mine:
                mine.step = pb.MIGRATION_STEP_DONE
        elif mine is None and vm.state in (RUNNING, PAUSED):
            mine = self.disk.migrations[order.uid] = FakeMigration(order.uid, order.vm_uid, order.role,
                                                                   pb.MIGRATION_STEP_COPYING)
            if "copy" not in self.hold:
                self._switch(mine, vm, order)

    def _switch(self, mine: FakeMigration, vm: FakeVm, order: Any) -> None:
        self.site.halt(vm.uid, self.name)
        vm.state, mine.step = PAUSED, pb.MIGRATION_STEP_PAUSED
        peer = self._peers[order.peer_node]
        theirs = peer.disk.migrations[order.uid]
        theirs.step = pb.MIGRATION_STEP_READY
        peer.disk.vms[vm.uid].log = vm.log
        peer.tell()
        if "commit" not in peer.hold:
            peer._ask(theirs)

    def _ask(self, mine: FakeMigration) -> None:
        if mine.uid not in self._deciding:
            self._deciding.add(mine.uid)
            self._spawn(self._decide(mine))

    async def _decide(self, mine: FakeMigration) -> None:
        try:
            while True:
                try:
                    answer = await self.wish(mine.uid, mine.vm_uid, mine.role, pb.MIGRATION_DECISION_COMMIT)
                    break
                except grpc.aio.AioRpcError as error:
                    if error.code() == grpc.StatusCode.NOT_FOUND:
                        return
                    await asyncio.sleep(0.05)
            if answer.decision == pb.MIGRATION_DECISION_COMMIT and "run" not in self.hold:
                self._take_over(mine.uid, answer.owner_generation, vm_pb2.POWER_STATE_RUNNING)
            self.tell()
        finally:
            self._deciding.discard(mine.uid)

    async def wish(self, uid: str, vm_uid: str, role: int, wish: int) -> Any:
        answer = await self._stub.DecideMigration(pb.DecideMigrationRequest(
            migration_uid=uid, vm_uid=vm_uid, role=role, wish=wish), metadata=self._metadata, timeout=10)
        self.decisions.append(answer)
        return answer

    def _take_over(self, uid: str, generation: int, power: int) -> None:
        mine = self.disk.migrations[uid]
        if mine.step != pb.MIGRATION_STEP_READY:
            return
        vm = self.disk.vms[mine.vm_uid]
        vm.generation, vm.migrating_in, mine.step = generation, False, pb.MIGRATION_STEP_DONE
        self._go(vm, power)

    def fail_target(self, uid: str, vm_uid: str) -> None:
        """Nothing of it is left here, and it will never run here."""
        mine = self.disk.migrations.setdefault(uid, FakeMigration(uid, vm_uid, pb.MIGRATION_ROLE_TARGET, 0))
        mine.step, mine.reason = pb.MIGRATION_STEP_FAILED, "TARGET_FAILED"
        vm = self.disk.vms.get(vm_uid)
        if vm and vm.migrating_in:
            del self.disk.vms[vm_uid]
        self.tell()

    # ── streams on demand ─────────────────────────────────────────────────────────────────────────────────────────

    async def _stream(self, order: Any) -> None:
        vm = self.disk.vms.get(order.vm_uid)
        with suppress(grpc.aio.AioRpcError):
            if order.kind == pb.STREAM_KIND_LOG:
                await self._send_log(order, vm)
            else:
                await self._console(order, vm)

    async def _send_log(self, order: Any, vm: FakeVm | None) -> None:
        call = self._stub.SendLog(metadata=self._metadata)
        if vm is None:
            await call.write(pb.SendLogRequest(session=order.session, error=pb.StreamError(reason="VM_NOT_HERE")))
            await call.done_writing()
            await call
            return
        start = order.from_offset if order.HasField("from_offset") else max(
            0, len(vm.log) - order.replay_bytes) if order.replay_bytes else 0
        await call.write(pb.SendLogRequest(session=order.session))
        try:
            while True:
                if start < len(vm.log):
                    await call.write(pb.SendLogRequest(data=vm.log[start:], offset=start))
                    start = len(vm.log)
                if not order.follow or self.disk.vms.get(vm.uid) is not vm or vm.state not in (RUNNING, PAUSED):
                    break
                await asyncio.sleep(0.02)
            await call.done_writing()
            await call
        finally:
            call.cancel()

    async def _console(self, order: Any, vm: FakeVm | None) -> None:
        call = self._stub.AttachConsole(metadata=self._metadata)
        try:
            if vm is None or order.writer and vm.reset_serial == 99:
                await call.write(pb.AttachConsoleRequest(
                    session=order.session, error=pb.StreamError(reason="CONSOLE_BUSY", message="somebody types")))
                await call.done_writing()
                while await call.read() is not grpc.aio.EOF:      # a call cancelled at once may lose what was written
                    pass
                return
            await call.write(pb.AttachConsoleRequest(session=order.session, output=vm.log[:order.replay_bytes]))
            while (message := await call.read()) is not grpc.aio.EOF:
                await call.write(pb.AttachConsoleRequest(output=message.input.upper()))
        finally:
            call.cancel()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
