"""The real controller and real agents, with VM processes around the fake machine: the whole path but the processor."""

import asyncio

import pytest

from tests.servers.agents import agents_on_a_controller
from tests.servers.cloud import USER, until
from virga.v1 import migration_pb2, vm_pb2

@pytest.fixture
async def world(tmp_path):
    async with agents_on_a_controller(tmp_path) as made:
        await made[1].upload()
        yield made


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
