"""A move, and somebody killed at a random moment of it: at most one copy ever runs, one does in the end (unless it was
the one that was killed), and nothing is left behind. Real controller, real agents, real VM processes, fake machine."""

import asyncio
import contextlib
import random
import signal

import grpc
import pytest

from node_agent.vmprocess import files
from node_agent.vmprocess.identity import ProcessId
from tests.servers.agents import NAMES, agents_on_a_controller
from tests.servers.cloud import USER, until
from virga.v1 import migration_pb2, vm_pb2

OVER = (migration_pb2.MIGRATION_PHASE_SUCCEEDED, migration_pb2.MIGRATION_PHASE_FAILED)
VICTIMS = ("source vm", "target vm", "source agent", "target agent", "both agents", "controller")


@pytest.fixture
async def world(tmp_path):
    async with agents_on_a_controller(tmp_path) as made:
        await made[1].upload()
        yield made


class Scene:
    def __init__(self, world, witness):
        self.running, self.client, self.agents = world
        self.witness = witness

    def numbers(self):
        return [int(n) for n in self.witness.read_text().split("\n")[:-1]] if self.witness.exists() else []

    def folder(self, node, uid):
        return files.VmFolder(self.agents.folder / node / "vms" / uid)

    def kill_vm(self, node, uid):
        with contextlib.suppress(files.CorruptRecord, FileNotFoundError):
            record = self.folder(node, uid).process()
            if record is not None:
                ProcessId(record.pid, record.start_time).signal(signal.SIGKILL)

    async def strike(self, victim, source, target, uid):
        match victim:
            case "source vm":
                self.kill_vm(source, uid)
            case "target vm":
                self.kill_vm(target, uid)
            case "source agent":
                await self.agents.crash(source)
            case "target agent":
                await self.agents.crash(target)
            case "both agents":
                await self.agents.crash(source)
                await self.agents.crash(target)
            case "controller":
                await self.running.stop_controller()

    async def heal(self):
        if self.running._task is None:
            await self.running.start_controller()
        for name in NAMES:
            if name not in self.agents.tasks:
                await self.agents.start(name)

    async def migration(self, uid):
        return (await self.client.migrations.GetMigration(
            migration_pb2.GetMigrationRequest(migration=uid), metadata=USER)).migration

    def alive(self, uid):
        out = []
        for node in NAMES:
            record = self.folder(node, uid).process()
            if record is not None and ProcessId(record.pid, record.start_time).alive():
                out.append(node)
        return out


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("seed", (1, 2))
async def test_killed_at_some_moment(world, tmp_path, victim, seed):
    delay = random.Random(f"{victim} {seed}").uniform(0.0, 0.5)
    print(f"{victim} after {delay:.3f} s")
    scene = Scene(world, tmp_path / "witness")
    client = scene.client
    vm = await client.create("web", append=f"count dirty=5 witness={scene.witness}", memory_mib=64)
    vm = await client.until("web", "RUNNING")
    source = vm.status.node
    target = next(name for name in NAMES if name != source)
    move = (await client.migrations.CreateMigration(
        migration_pb2.CreateMigrationRequest(vm="web"), metadata=USER)).migration
    await asyncio.sleep(delay)
    await scene.strike(victim, source, target, vm.uid)
    await asyncio.sleep(0.2)
    await scene.heal()
    done = await until(lambda: scene.migration(move.uid), lambda m: m.phase in OVER, 40)
    settled = (vm_pb2.VM_STATE_RUNNING, vm_pb2.VM_STATE_CRASHED)
    vm = await until(lambda: client.vm("web"), lambda v: v.status.state in settled and not v.status.migration, 20)
    print(migration_pb2.MigrationPhase.Name(done.phase), done.reason, vm_pb2.VmState.Name(vm.status.state))
    other = next(name for name in NAMES if name != vm.status.node)
    async with asyncio.timeout(20):
        while scene.folder(other, vm.uid).path.exists():
            await asyncio.sleep(0.02)
    if vm.status.state == vm_pb2.VM_STATE_RUNNING:
        assert scene.alive(vm.uid) == [vm.status.node]
        before = len(scene.numbers())
        async with asyncio.timeout(5):
            while len(scene.numbers()) < before + 5:
                await asyncio.sleep(0.02)
    else:
        assert victim in ("source vm", "target vm"), "nobody else's death crashes a VM"
        assert scene.alive(vm.uid) == []
    numbers = scene.numbers()
    assert numbers == list(range(len(numbers))), "two copies ran, or one ran in vain"
    with contextlib.suppress(grpc.aio.AioRpcError):
        await client.vms.DeleteVm(vm_pb2.DeleteVmRequest(vm="web"), metadata=USER)
    async with asyncio.timeout(20):
        while any(scene.folder(name, vm.uid).path.exists() for name in NAMES):
            await asyncio.sleep(0.02)
