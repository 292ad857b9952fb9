"""Console, log, exits: bytes and numbers between people and a node."""

import asyncio

import grpc
import pytest

from tests.servers.cloud import USER, cloud
from virga.v1 import migration_pb2
from virga.v1 import vm_pb2 as pb


@pytest.fixture
async def site(tmp_path):
    async with cloud(tmp_path, nodes=("node-1", "node-2")) as made:
        await made.api.create("web")
        made.vm = await made.api.until("web", "RUNNING")
        made.copy = made.agents[made.vm.status.node].disk.vms[made.vm.uid]
        yield made


def log(site, **options):
    return site.api.vms.StreamLog(pb.StreamLogRequest(vm="web", **options), metadata=USER)


async def read(stream, size):
    """size bytes, each at the offset it says."""
    data = b""
    async with asyncio.timeout(10):
        while len(data) < size:
            message = await stream.read()
            assert message is not grpc.aio.EOF
            data += message.data
    return data


async def test_log_is_what_was_kept(site):
    site.copy.log = b"x" * 200_000 + b"end\n"
    assert await read(log(site), 200_004) == site.copy.log
    tail = log(site, tail_bytes=4)
    assert (await tail.read()).data == b"end\n"
    assert await tail.read() is grpc.aio.EOF


async def test_a_followed_log_goes_on_over_a_migration(site):
    site.copy.log = b"1 2 3 "
    stream = log(site, follow=True)
    assert await read(stream, 6) == b"1 2 3 "
    await site.api.migrations.CreateMigration(migration_pb2.CreateMigrationRequest(vm="web"), metadata=USER)
    target = next(agent for agent in site.agents.values() if agent.name != site.vm.status.node)
    async with asyncio.timeout(10):
        while site.site.running.get(site.vm.uid) != target.name:
            await asyncio.sleep(0.02)
    target.disk.vms[site.vm.uid].log += b"4 5 "
    assert await read(stream, 4) == b"4 5 "
    stream.cancel()


async def test_console_carries_bytes_both_ways(site):
    site.copy.log = b"login: "
    call = site.api.vms.Console(metadata=USER)
    await call.write(pb.ConsoleRequest(open=pb.ConsoleOpen(vm="web", writer=True, replay_bytes=100)))
    first = await call.read()
    assert (first.attached, first.output) == (True, b"login: ")
    await call.write(pb.ConsoleRequest(input=b"root\n"))
    assert (await call.read()).output == b"ROOT\n"
    call.cancel()


async def test_input_to_a_console_opened_for_reading_is_refused(site):
    call = site.api.vms.Console(metadata=USER)
    await call.write(pb.ConsoleRequest(open=pb.ConsoleOpen(vm="web")))
    await call.read()
    await call.write(pb.ConsoleRequest(input=b"x"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        while await call.read() is not grpc.aio.EOF:
            pass
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_busy_console_is_refused_by_its_node(site):
    site.copy.reset_serial = 99                                 # the fake's sign that somebody types
    call = site.api.vms.Console(metadata=USER)
    await call.write(pb.ConsoleRequest(open=pb.ConsoleOpen(vm="web", writer=True)))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_a_node_that_went_is_unreachable(site):
    await site.stop_agent(site.vm.status.node)
    await asyncio.sleep(0.1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await log(site).read()
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_exits_are_asked_of_the_node(site):
    answer = await site.api.vms.GetVmExits(pb.GetVmExitsRequest(vm="web"), metadata=USER)
    assert [(exit.reason, exit.count) for exit in answer.exits] == [("CPUID", 9), ("HLT", 7)]
    assert answer.retired_instructions == 1234
