"""The real controller and real agents, with VM processes around the fake machine: the whole path but the processor."""

import asyncio
import sys

import pytest

from node_agent.agent.config import Config
from node_agent.agent.main import serve
from node_agent.console.ring import RingReader
from tests.servers.cloud import USER, Client, cloud, until
from virga.v1 import migration_pb2, node_pb2, vm_pb2

FAKE_ZYGOTE = ("import sys; from pathlib import Path; from node_agent.zygote.main import serve; "
               "from node_agent.vmprocess.fakes import FakeMachines; "
               "sys.exit(serve(Path(sys.argv[1]), FakeMachines()))")


class Agents:
    def __init__(self, folder, address):
        self.folder, self.address, self.tasks = folder, address, {}

    async def start(self, name):
        state = self.folder / name
        (self.folder / f"token-of-{name}").write_text(f"token-{name}")
        config = Config(name=name, state=state, controller=self.address, token_file=self.folder / f"token-of-{name}",
                        metrics="", memory_bytes=4 << 30, cpus=8, labels={}, address="127.0.0.1",
                        zygote=(sys.executable, "-c", FAKE_ZYGOTE, str(state)))
        stop = asyncio.Event()
        self.tasks[name] = asyncio.create_task(serve(config, stop)), stop

    async def crash(self, name):
        task, _ = self.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def console(self, node, uid):
        ring = RingReader(self.folder / node / "vms" / uid / "console")
        data = ring.read(0, 1 << 20).data
        ring.close()
        return data


@pytest.fixture
async def world(tmp_path):
    from contextlib import AsyncExitStack

    from tests.node_agent.agent.processes import end_all
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(cloud(tmp_path, nodes=(), image=False))
        client = Client(running.address)
        agents = Agents(tmp_path / "nodes", running.address)
        (tmp_path / "nodes").mkdir()
        for name in ("node-1", "node-2"):
            await agents.start(name)
        await until(lambda: client.nodes.ListNodes(node_pb2.ListNodesRequest(), metadata=USER),
                    lambda answer: len(answer.nodes) == 2)
        await client.upload()
        yield running, client, agents
        for name in list(agents.tasks):
            await agents.crash(name)
        await client.channel.close()
        end_all(tmp_path / "nodes")


async def test_create_move_log_stop_delete(world):
    running, client, agents = world
    await client.create("web", append="count dirty=5", memory_mib=64)
    vm = await client.until("web", "RUNNING")
    source = vm.status.node
    assert {"image", "process"} <= {p.name for p in vm.status.phases}
    move = (await client.migrations.CreateMigration(
        migration_pb2.CreateMigrationRequest(vm="web"), metadata=USER)).migration

    async def read():
        return (await client.migrations.GetMigration(
            migration_pb2.GetMigrationRequest(migration=move.uid), metadata=USER)).migration
    done = await until(read, lambda m: m.phase in (migration_pb2.MIGRATION_PHASE_SUCCEEDED,
                                                   migration_pb2.MIGRATION_PHASE_FAILED), 20)
    assert done.phase == migration_pb2.MIGRATION_PHASE_SUCCEEDED, done
    assert done.gap_ms > done.decision_ms > 0 and done.rounds > 1 and done.bytes > 0
    vm = await client.until("web", "RUNNING")
    assert vm.status.node != source
    print(done)
    await asyncio.sleep(0.3)
    data = b""
    async for piece in client.vms.StreamLog(vm_pb2.StreamLogRequest(vm="web"), metadata=USER):
        data += piece.data
    numbers = [int(n) for n in data.split(b"\n")[:-1]]
    assert numbers and numbers == list(range(len(numbers)))
    async with asyncio.timeout(10):
        while (agents.folder / source / "vms" / vm.uid).exists():
            await asyncio.sleep(0.02)
    await client.vms.StopVm(vm_pb2.StopVmRequest(vm="web"), metadata=USER)
    await client.until("web", "STOPPED")
    await client.vms.DeleteVm(vm_pb2.DeleteVmRequest(vm="web"), metadata=USER)
    async with asyncio.timeout(10):
        while (agents.folder / vm.status.node / "vms" / vm.uid).exists():
            await asyncio.sleep(0.02)
