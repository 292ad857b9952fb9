"""Controller and etcd as processes, killed while people create and move VMs: nothing is lost, nothing runs twice."""

import asyncio
import re
import signal
import urllib.request

import grpc
import pytest

from controller.fakes.agent import FakeAgent, Site
from tests.servers.cloud import USER, Client, until
from tests.servers.controller import ControllerProcess
from tests.servers.etcd import EtcdServer
from virga.v1 import migration_pb2, vm_pb2

OVER = (migration_pb2.MIGRATION_PHASE_SUCCEEDED, migration_pb2.MIGRATION_PHASE_FAILED)
TRY_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED)


class Processes:
    def __init__(self, folder):
        self.etcd = EtcdServer(folder)
        self.etcd.start()
        self.controller = ControllerProcess(folder / "state", self.etcd.endpoint)
        self.controller.start()
        self.site, self.agents, self.tasks = Site(), {}, []
        self.api = Client(self.controller.address)

    async def start_agents(self):
        for name in ("node-1", "node-2"):
            agent = self.agents[name] = FakeAgent(name, f"token-{name}", self.site, memory_mib=16384, cpus=16)
            self.tasks.append(asyncio.create_task(agent.run(self.controller.address)))
        self.agents["node-1"].peer(self.agents["node-2"])
        for agent in self.agents.values():
            await asyncio.wait_for(agent.connected.wait(), 20)

    async def close(self):
        for task in self.tasks:
            task.cancel()
        results = await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.api.channel.close()
        self.controller.kill()
        self.etcd.kill()
        for result in results:
            assert isinstance(result, asyncio.CancelledError), result


@pytest.fixture
async def processes(tmp_path):
    made = Processes(tmp_path)
    await made.start_agents()
    await until(made.api.upload, lambda image: image.name == "tiny")
    yield made
    await made.close()


async def again(call):
    """Until it is answered, as a caller with a request_id may."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() not in TRY_AGAIN:
                    raise
                await asyncio.sleep(0.1)


async def disturb(processes, done):
    """Kill the controller and etcd in turn."""
    await asyncio.sleep(0.3)
    for victim in ("controller", "etcd", "controller"):
        if done():
            return
        if victim == "controller":
            processes.controller.kill()
            processes.controller.start()
        else:
            processes.etcd.kill()
            await asyncio.to_thread(processes.etcd.start)
        await asyncio.sleep(1.5)


async def test_killed_while_vms_are_created(processes):
    names = [f"vm-{i}" for i in range(12)]
    made = {}

    async def create(name):
        made[name] = await again(lambda: processes.api.create(name, request_id=f"create-{name}"))

    async def create_all():
        for name in names:
            await create(name)
            await asyncio.sleep(0.1)

    await asyncio.gather(create_all(), disturb(processes, lambda: len(made) == len(names)))
    for name in names:
        vm = await processes.api.until(name, "RUNNING", 30)
        assert vm.uid == made[name].uid
    listed = await again(lambda: processes.api.vms.ListVms(vm_pb2.ListVmsRequest(), metadata=USER))
    assert sorted(vm.name for vm in listed.vms) == sorted(names)
    assert sorted(start[0] for start in processes.site.starts) == sorted(vm.uid for vm in made.values())


async def test_killed_while_vms_move(processes):
    vm = await processes.api.create("web")
    await processes.api.until("web", "RUNNING", 20)
    moves = []

    async def move(number):
        async def begin():
            return (await processes.api.migrations.CreateMigration(migration_pb2.CreateMigrationRequest(
                vm="web", request_id=f"move-{number}"), metadata=USER)).migration
        begun = await again(begin)

        async def get():
            return (await processes.api.migrations.GetMigration(migration_pb2.GetMigrationRequest(
                migration=begun.uid), metadata=USER)).migration
        moves.append(await until(get, lambda migration: migration.phase in OVER, 40))
        await processes.api.until("web", "RUNNING", 20)

    async def move_often():
        for number in range(6):
            await move(number)
            await asyncio.sleep(0.2)

    await asyncio.gather(move_often(), disturb(processes, lambda: len(moves) == 6))
    last = await processes.api.vm("web")
    assert processes.site.running == {vm.uid: last.status.node}
    succeeded = sum(migration.phase == migration_pb2.MIGRATION_PHASE_SUCCEEDED for migration in moves)
    assert last.status.ownership_generation == 1 + len(moves)
    assert succeeded > 0
    assert [start[0] for start in processes.site.starts] == [vm.uid]


async def test_watches_go_on_and_resume(processes):
    watch = processes.api.vms.WatchVms(vm_pb2.WatchVmsRequest(), metadata=USER)
    while (await watch.read()).kind != vm_pb2.WATCH_KIND_SYNCED:
        pass
    processes.etcd.kill()
    await asyncio.to_thread(processes.etcd.start)
    await again(lambda: processes.api.create("after-etcd", request_id="a"))
    while (seen := await watch.read()).vm.status.state != vm_pb2.VM_STATE_RUNNING:
        assert seen.kind in (vm_pb2.WATCH_KIND_PUT, vm_pb2.WATCH_KIND_SYNCED)
    assert seen.vm.name == "after-etcd"
    processes.controller.kill()
    with pytest.raises(grpc.aio.AioRpcError) as broken:
        while await watch.read() is not grpc.aio.EOF:
            pass
    assert broken.value.code() == grpc.StatusCode.UNAVAILABLE
    processes.controller.start()
    await again(lambda: processes.api.create("after-controller", request_id="b"))
    resumed = processes.api.vms.WatchVms(vm_pb2.WatchVmsRequest(start_revision=seen.revision), metadata=USER)
    names = set()
    while "after-controller" not in names:
        names.add((await resumed.read()).vm.name)
    resumed.cancel()


async def test_an_orderly_stop_and_metrics(processes):
    await processes.api.create("web")
    await processes.api.until("web", "RUNNING", 20)
    page = await asyncio.to_thread(_read, f"http://{processes.controller.metrics}/metrics")
    assert 'virga_vms{state="RUNNING"} 1.0' in page
    assert 'virga_nodes{state="READY"} 2.0' in page
    assert re.search(r'virga_rpc_seconds_count\{code="OK",method="virga.v1.VmService/CreateVm"\} 1.0', page)
    assert 'virga_etcd_seconds_count{operation="txn"}' in page
    assert await asyncio.to_thread(processes.controller.stop, signal.SIGTERM) == 0
    assert all(line["level"] in ("info", "warning") for line in processes.controller.log())
    processes.controller.start()
    vm = await processes.api.until("web", "RUNNING", 20)
    assert vm.status.run == 1


def _read(address):
    with urllib.request.urlopen(address, timeout=5) as answer:
        return answer.read().decode()
