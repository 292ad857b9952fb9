"""Live moves of real machines: the tiny guest counts aloud and dirties memory, Linux sits at its shell.

Controller, agents, zygotes, VM processes and processors are the real ones; only etcd is the fake.
The Linux tests need the image debian-cloud in the cache (`virga image build debian-cloud`) and say so where it is not.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from node_agent.vmprocess import files
from node_agent.vmprocess.identity import ProcessId
from tests.servers.agents import NAMES, REAL, agents_on_a_controller
from tests.servers.cloud import USER, until
from virga.v1 import image_pb2, migration_pb2, vm_pb2

OVER = (migration_pb2.MIGRATION_PHASE_SUCCEEDED, migration_pb2.MIGRATION_PHASE_FAILED)


@pytest.fixture
async def world(tmp_path):
    async with agents_on_a_controller(tmp_path, REAL) as made:
        yield made


async def import_image(client, name, kernel, initrd=None, append="", marker=""):
    import hashlib
    parts = [(image_pb2.FILE_ROLE_KERNEL, kernel)] + ([(image_pb2.FILE_ROLE_INITRD, initrd)] if initrd else [])
    image = image_pb2.Image(
        name=name, append=append, ready_marker=marker,
        kind=image_pb2.IMAGE_KIND_LINUX if initrd else image_pb2.IMAGE_KIND_MULTIBOOT,
        files=[image_pb2.ImageFile(role=role, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
               for role, data in parts])

    async def messages():
        yield image_pb2.UploadImageRequest(open=image_pb2.UploadOpen(image=image))
        for role, data in parts:
            for at in range(0, len(data), 1 << 19):
                yield image_pb2.UploadImageRequest(chunk=image_pb2.UploadChunk(
                    role=role, offset=at, data=data[at:at + (1 << 19)]))
    await client.images.UploadImage(messages(), metadata=USER)


def tiny():
    path = subprocess.run([sys.executable, "-m", "node_agent", "guest", "path"], capture_output=True, text=True,
                          check=True).stdout.strip()
    return Path(path).read_bytes()


def linux():
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "virga" / "images" / "debian-cloud"
    if not (cache / "manifest.json").exists():
        pytest.skip(f"no {cache}: virga image build debian-cloud makes it")
    manifest = json.loads((cache / "manifest.json").read_text())
    return (cache / "kernel").read_bytes(), (cache / "initrd").read_bytes(), manifest


async def move(client, name):
    begun = (await client.migrations.CreateMigration(
        migration_pb2.CreateMigrationRequest(vm=name), metadata=USER)).migration
    return begun.uid


async def moved(client, uid, timeout_s=60):
    async def read():
        return (await client.migrations.GetMigration(
            migration_pb2.GetMigrationRequest(migration=uid), metadata=USER)).migration
    return await until(read, lambda m: m.phase in OVER, timeout_s)


async def log(client, name):
    data = b""
    async for piece in client.vms.StreamLog(vm_pb2.StreamLogRequest(vm=name), metadata=USER):
        data += piece.data
    return data


async def numbers(client, name):
    return [int(n) for n in re.findall(rb"^(\d+)\r?$", await log(client, name), re.M)]


async def until_number(client, name, more=3):
    before = len(await numbers(client, name))
    async with asyncio.timeout(30):
        while len(await numbers(client, name)) < before + more:
            await asyncio.sleep(0.05)
    found = await numbers(client, name)
    assert found == list(range(found[0], found[0] + len(found))), "a number is missing, or came twice"


@pytest.mark.parametrize("cpus", (1, 2))
async def test_a_counting_guest_moves_there_and_back(world, cpus):
    _, client, agents = world
    await import_image(client, "tiny", tiny())
    await client.create("web", append="count dirty=20", memory_mib=64, cpus=cpus)
    vm = await client.until("web", "RUNNING", 30)
    await until_number(client, "web")
    for _ in range(2):
        before = (await client.vm("web")).status.node
        done = await moved(client, await move(client, "web"))
        assert done.phase == migration_pb2.MIGRATION_PHASE_SUCCEEDED, done
        print(f"gap {done.gap_ms:.1f} ms, decision {done.decision_ms:.1f} ms, {done.rounds} rounds")
        assert done.gap_ms > done.decision_ms > 0
        vm = await client.vm("web")
        assert vm.status.node != before
        await until_number(client, "web")
    async with asyncio.timeout(10):
        while sum((agents.folder / name / "vms" / vm.uid).exists() for name in NAMES) != 1:
            await asyncio.sleep(0.05)


async def test_a_triple_fault_is_that_vms_end_alone(world):
    _, client, _ = world
    await import_image(client, "tiny", tiny())
    await client.create("web", append="count", memory_mib=32)
    await client.create("bad", append="triplefault", memory_mib=32)
    bad = await client.until("bad", "CRASHED", 30)
    assert bad.status.reason == "TRIPLE_FAULT" and bad.status.exit_status == 254
    await until_number(client, "web")


async def linux_at_its_shell(client, cpus=1):
    kernel, initrd, manifest = linux()
    await import_image(client, "debian", kernel, initrd, manifest.get("append", "console=ttyS0"),
                       manifest.get("ready_marker", "user space is up"))
    await client.create("lin", image="debian", cpus=cpus, memory_mib=256)
    return await until(lambda: client.vm("lin"),
                       lambda vm: any(p.name == "user_space" for p in vm.status.phases), 120)


async def says(client, command, answer):
    """Type at the console, wait for the answer. What is typed must not hold the answer. An agent that was killed may
    still be on its way back."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await says_once(client, command, answer)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(0.2)


async def says_once(client, command, answer):
    queue = asyncio.Queue()
    queue.put_nowait(vm_pb2.ConsoleRequest(open=vm_pb2.ConsoleOpen(vm="lin", writer=True, steal=True)))

    async def requests():
        while True:
            yield await queue.get()
    call = client.vms.Console(requests(), metadata=USER)
    queue.put_nowait(vm_pb2.ConsoleRequest(input=command + b"\r"))
    heard = b""
    try:
        async with asyncio.timeout(60):
            async for message in call:
                heard += message.output
                if answer in heard:
                    return
        raise AssertionError(f"the console ended: {heard[-300:]!r}")
    except TimeoutError:
        raise AssertionError(f"{answer!r} is not in {heard[-300:]!r}") from None
    finally:
        call.cancel()


async def test_linux_moves_and_works_on(world):
    _, client, _ = world
    before = await linux_at_its_shell(client, cpus=2)
    await says(client, b"(while :; do echo $((i=i+1)) > /tmp/m; mv /tmp/m /tmp/n; done) & until [ -f /tmp/n ]; do :; done; echo be''gun", b"begun")
    done = await moved(client, await move(client, "lin"))
    assert done.phase == migration_pb2.MIGRATION_PHASE_SUCCEEDED, done
    assert (await client.vm("lin")).status.node != before.status.node
    await says(client, b"a=$(cat /tmp/n); sleep 1; b=$(cat /tmp/n); [ $b -gt $a ] && echo still coun''ting",
               b"still counting")


async def test_linux_comes_back_when_its_target_dies(world):
    _, client, agents = world
    vm = await linux_at_its_shell(client)
    target = next(name for name in NAMES if name != vm.status.node)
    uid = await move(client, "lin")
    folder = files.VmFolder(agents.folder / target / "vms" / vm.uid)
    async with asyncio.timeout(30):
        while not folder.process_file.exists():
            await asyncio.sleep(0.01)
    record = folder.process()
    ProcessId(record.pid, record.start_time).signal(signal.SIGKILL)
    done = await moved(client, uid)
    assert done.phase == migration_pb2.MIGRATION_PHASE_FAILED
    assert (await client.vm("lin")).status.node == vm.status.node
    await says(client, b"echo al''ive", b"alive")


async def test_linux_moves_while_both_agents_are_killed(world):
    _, client, agents = world
    before = await linux_at_its_shell(client)
    uid = await move(client, "lin")
    await asyncio.sleep(0.3)
    for name in NAMES:
        await agents.crash(name)
    await asyncio.sleep(0.3)
    for name in NAMES:
        await agents.start(name)
    done = await moved(client, uid)
    vm = await client.vm("lin")
    assert (vm.status.node != before.status.node) == (done.phase == migration_pb2.MIGRATION_PHASE_SUCCEEDED)
    await says(client, b"echo al''ive", b"alive")
