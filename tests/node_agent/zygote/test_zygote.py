"""A real zygote, real VM processes, the fake machine: the control socket's calls, and how processes end."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys

import pytest

from node_agent.console.ring import RingReader
from node_agent.vmprocess import files, sockets, wire
from node_agent.vmprocess.client import CallFailed, Client, Gone
from node_agent.vmprocess.identity import ProcessId
from tests.node_agent.agent.processes import end_all
from virga.vmm.v1 import vmm_pb2 as pb

CODE = ("import sys; from pathlib import Path; from node_agent.zygote.main import serve; "
        "from node_agent.vmprocess.fakes import FakeMachines; "
        "sys.exit(serve(Path(sys.argv[1]), FakeMachines()))")


class Zygote:
    def __init__(self, state):
        self.state = state
        self.process = None
        self.client = None
        self.clients = []

    async def start(self):
        self.process = subprocess.Popen([sys.executable, "-c", CODE, str(self.state)], stderr=subprocess.DEVNULL)
        for _ in range(500):
            try:
                self.client = await Client.connect(self.state / "zygote.sock")
                return
            except Gone:
                await asyncio.sleep(0.02)
        raise AssertionError("no zygote")

    def folder(self, uid, append="count", memory=4 << 20, **config):
        folder = files.VmFolder.under(self.state, uid)
        folder.path.mkdir(parents=True)
        files.write_record(folder.record_file, pb.VmRecord(format=1, generation=1, config=pb.VmConfig(
            uid=uid, memory_bytes=memory, cpus=1, append=append, console_bytes=1 << 16, **config)))
        return folder

    async def spawn(self, folder):
        return (await self.client.call(spawn=pb.Spawn(vm_dir=str(folder.path), generation=1))).spawned

    async def vm(self, uid="vm1", append="count", **config):
        folder = self.folder(uid, append, **config)
        await self.spawn(folder)
        client = await self.connect(folder)
        await client.call(start=pb.Start())
        return folder, client

    async def connect(self, folder):
        client = await Client.connect(folder.socket)
        self.clients.append(client)
        return client

    async def end(self, folder):
        async with asyncio.timeout(10):
            while (end := folder.end()) is None:
                await asyncio.sleep(0.01)
        return end

    async def close(self):
        for client in [*self.clients, self.client]:
            await client.close()
        end_all(self.state.parent)
        self.process.wait()


@pytest.fixture
async def zygote(tmp_path):
    (tmp_path / "node").mkdir()
    zygote = Zygote(tmp_path / "node")
    await zygote.start()
    yield zygote
    await zygote.close()


async def test_who_is_there(zygote):
    assert zygote.client.hello.role == "zygote" and zygote.client.hello.pid == zygote.process.pid
    folder, client = await zygote.vm()
    hello = client.hello
    assert (hello.role, hello.uid, hello.generation) == ("vm", "vm1", 1)
    who = folder.process()
    assert (who.pid, who.start_time) == (hello.pid, hello.start_time) and hello.pid != zygote.process.pid
    assert [p.pid for p in (await zygote.client.call(list=pb.List())).list.processes] == [hello.pid]


async def test_a_second_zygote_and_a_second_process_are_refused(zygote):
    again = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", CODE, str(zygote.state)],
                                    capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "already" in again.stderr
    folder, _ = await zygote.vm()
    with pytest.raises(CallFailed) as error:
        await zygote.spawn(folder)
    assert error.value.kind == pb.Error.KIND_CONFLICT


async def test_a_process_that_no_zygote_knows_keeps_others_out(zygote):
    folder, _ = await zygote.vm()
    zygote.process.kill()
    zygote.process.wait()
    await zygote.client.close()
    await zygote.start()
    with pytest.raises(CallFailed) as error:
        await zygote.spawn(folder)
    assert error.value.kind == pb.Error.KIND_CONFLICT, "the lock for life"
    assert ProcessId(zygote.clients[0].hello.pid, zygote.clients[0].hello.start_time).alive()


async def test_what_cannot_be_made_is_told_with_its_reason(zygote):
    for folder, field in ((zygote.folder("small", memory=1000), "memory"),):
        with pytest.raises(CallFailed) as error:
            await zygote.spawn(folder)
        assert (error.value.kind, error.value.field) == (pb.Error.KIND_INVALID, field)
    with pytest.raises(CallFailed):
        await zygote.client.call(spawn=pb.Spawn(vm_dir="/etc"))
    broken = zygote.folder("broken")
    broken.record_file.write_bytes(b"x" * 100)
    with pytest.raises(CallFailed, match="vm.pb"):
        await zygote.spawn(broken)
    ring = zygote.folder("ring")
    ring.console.write_bytes(b"no ring" * 1000)
    with pytest.raises(CallFailed, match="ring"):
        await zygote.spawn(ring)
    with pytest.raises(CallFailed):
        await zygote.client.call(pause=pb.Pause())
    await zygote.vm("fine")


async def test_ends_and_who_writes_them(zygote):
    for uid, append, reason, value in (("a", "exit=5", pb.END_REASON_DEBUG_EXIT, 5),
                                       ("b", "triplefault", pb.END_REASON_TRIPLE_FAULT, 0)):
        folder, _ = await zygote.vm(uid, append)
        end = await zygote.end(folder)
        assert (end.reason, end.value, end.ran) == (reason, value, True)
    folder, client = await zygote.vm("c")
    os.kill(client.hello.pid, signal.SIGILL)
    end = await zygote.end(folder)
    assert (end.reason, end.value) == (pb.END_REASON_SIGNAL, signal.SIGILL)
    folder, client = await zygote.vm("d")
    os.kill(client.hello.pid, signal.SIGTERM)
    assert (await zygote.end(folder)).reason == pb.END_REASON_KILLED
    never = zygote.folder("e")
    spawned = await zygote.spawn(never)
    os.kill(spawned.pid, signal.SIGKILL)
    assert not (await zygote.end(never)).ran, "certain: it never executed an instruction"


async def test_calls_in_wrong_states(zygote):
    folder, client = await zygote.vm()
    await client.call(start=pb.Start())                               # idempotent
    await client.call(pause=pb.Pause())
    await client.call(pause=pb.Pause())
    before = (await client.call(describe=pb.Describe())).description
    await asyncio.sleep(0.05)
    after = (await client.call(describe=pb.Describe())).description
    assert before.retired_instructions == after.retired_instructions and after.state == pb.VM_STATE_PAUSED
    await client.call(resume=pb.Resume())
    for call in (dict(decide=pb.Decide(id="m")), dict(release=pb.Release(id="m")),
                 dict(console_input=pb.ConsoleInput(data=b"x")), dict(migrate_in=pb.MigrateIn(id="m"))):
        with pytest.raises(CallFailed) as error:
            await client.call(**call)
        assert error.value.kind == pb.Error.KIND_CONFLICT
    with pytest.raises(CallFailed) as error:
        await client.call(migrate_out=pb.MigrateOut(id="m", host="192.0.2.1", port=1))
    assert error.value.kind == pb.Error.KIND_INVALID, "off loopback without TLS"
    with pytest.raises(CallFailed) as error:
        await client.call()
    assert error.value.kind == pb.Error.KIND_UNKNOWN_CALL
    await client.call(kill=pb.Kill(detail="enough"))
    assert (await zygote.end(folder)).detail == "enough"


async def test_one_writer_several_readers(zygote):
    folder, one = await zygote.vm(append="hello")
    two, three = await zygote.connect(folder), await zygote.connect(folder)
    heard = {client: b"" for client in (one, two, three)}

    def listen(client):
        def hear(notice):
            heard[client] += notice.console.data
        client.on_notice = hear
    for client in heard:
        listen(client)
    await one.call(attach_console=pb.AttachConsole(write=True))
    with pytest.raises(CallFailed):
        await two.call(attach_console=pb.AttachConsole(write=True))
    await two.call(attach_console=pb.AttachConsole())
    await one.call(console_input=pb.ConsoleInput(data=b"ping"))
    await three.call(attach_console=pb.AttachConsole(write=True, steal=True))
    await three.call(console_input=pb.ConsoleInput(data=b"pong"))
    with pytest.raises(CallFailed):
        await one.call(console_input=pb.ConsoleInput(data=b"late"))
    async with asyncio.timeout(5):
        while not all(text == b"hello\npingpong" for text in heard.values()):
            await asyncio.sleep(0.01)


async def test_a_flood_harms_nobody(zygote):
    folder, client = await zygote.vm(append="flood")
    deaf = sockets.connect(folder.socket, 5)
    wire.receive(deaf, pb.FromServer)
    wire.send(deaf, pb.Request(id=1, attach_console=pb.AttachConsole()))   # and never reads again
    await asyncio.sleep(0.2)
    description = (await client.call(describe=pb.Describe())).description
    assert description.console_written > 1 << 20 and description.state == pb.VM_STATE_RUNNING
    assert folder.console.stat().st_size == (1 << 16) + 4096
    ring = RingReader(folder.console)
    piece = ring.read(0)
    assert piece.lost > 0 and set(piece.data) == {ord("x")}
    ring.close()
    deaf.close()


def talk(path, data):
    """Send, and read until the other side has had enough."""
    with contextlib.closing(sockets.connect(path, 5)) as sock, contextlib.suppress(ConnectionResetError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


async def test_garbage_on_the_socket_ends_that_connection_alone(zygote):
    folder, client = await zygote.vm()
    for garbage in (b"\xff" * 100, b"\0\0\0\4\xff\xff\xff\xff", b"\0\0"):
        talk(folder.socket, garbage)
    for garbage in (b"\xff" * 100, b""):
        talk(zygote.state / "zygote.sock", garbage)
    assert (await client.call(describe=pb.Describe())).description.state == pb.VM_STATE_RUNNING
    await zygote.vm("vm2")


async def test_milestones_are_phases(zygote):
    _, client = await zygote.vm(append="hello", ready_marker="hello")
    async with asyncio.timeout(5):
        while True:
            phases = (await client.call(describe=pb.Describe())).description.phases
            if {p.name for p in phases} == {"process", "kernel", "user_space"}:
                break
            await asyncio.sleep(0.01)
    assert [p.name for p in phases] == ["process", "kernel", "user_space"]


async def test_the_process_is_small(zygote):
    _, client = await zygote.vm()
    with open(f"/proc/{client.hello.pid}/maps") as maps:
        assert "cygrpc" not in maps.read()
