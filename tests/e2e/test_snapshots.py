"""A machine that was saved and loaded is the same machine: under the virtual clock both retire the same instructions,
say the same and leave the same memory; and at a move's standstill both sides' memories are equal, byte for byte."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from node_agent.machine import records
from node_agent.machine.machine import Machine
from node_agent.machine.spec import ExitKind, MachineSpec
from node_agent.vmprocess import files
from node_agent.vmprocess.client import Client
from tests.e2e.test_live_moves import linux
from tests.node_agent.agent.processes import end_all
from virga.vmm.v1 import vmm_pb2 as pb

MIB = 1 << 20


def tiny_path():
    return subprocess.run([sys.executable, "-m", "node_agent", "guest", "path"], capture_output=True, text=True,
                          check=True).stdout.strip()


class Teller:
    """What a machine said; tells when it has said enough."""

    def __init__(self, lines):
        self.text = b""
        self.enough = threading.Event()
        self._lines = lines

    def __call__(self, channel, data):
        self.text += data
        if self.text.count(b"\n") >= self._lines:
            self.enough.set()


@pytest.mark.parametrize("cpus", (1, 2))
def test_both_go_on_alike(cpus):
    spec = MachineSpec(kernel=tiny_path(), memory_bytes=48 * MIB, cpus=cpus, clock="virtual", seed=7,
                       append="count dirty=8 rate=200 until=400")
    said, again = Teller(40), Teller(0)
    first, second = Machine(spec, said), Machine(spec, again)
    try:
        first.boot()
        first.start()
        assert said.enough.wait(60)
        first.pause()
        state = records.encode_state(first.save())
        second.space.memory[:] = first.space.memory
        second.load(records.decode_state(state))
        assert records.encode_state(second.save()) == state, "a loaded machine saves the same"
        before = len(said.text)
        first.resume()
        second.start()
        ends = first.wait(120), second.wait(120)
        assert [end.kind for end in ends] == [ExitKind.POWER_OFF] * 2
        assert said.text[before:] == again.text and b"\n400" in again.text
        one, two = first.stats(), second.stats()
        assert (one.retired_instructions, one.exits, one.guest_ns) == (two.retired_instructions, two.exits, two.guest_ns)
        assert bytes(first.space.memory) == bytes(second.space.memory)
    finally:
        for machine in (first, second):
            machine.stop()
            machine.close()


def ram_of(pid, size):
    """The guest's memory, through the process' memfd."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        if "memfd:" in os.readlink(fd):
            return np.memmap(fd, np.uint64, "r", shape=size // 8)
    raise AssertionError("no memory file")


async def move_to_the_standstill(source, target):
    ready = asyncio.Event()
    target.on_notice = lambda n: ready.set() if n.migration.state == "ready" or n.changed.migration.state == "ready" \
        else None
    await target.call(subscribe=pb.Subscribe())
    port = (await target.call(migrate_in=pb.MigrateIn(id="m", token=b"t"))).migrate_in.port
    await source.call(migrate_out=pb.MigrateOut(id="m", token=b"t", host="127.0.0.1", port=port))
    async with asyncio.timeout(60):
        await ready.wait()


@pytest.mark.parametrize("guest", ("tiny", "linux, booting"))
async def test_memories_are_equal_at_the_standstill(tmp_path, guest):
    size = 256 * MIB
    if guest == "tiny":
        config = pb.VmConfig(kernel=tiny_path(), append="count dirty=50", cpus=1)
        pause_s = 1.0
    else:
        kernel, initrd, manifest = linux()
        (tmp_path / "kernel").write_bytes(kernel)
        (tmp_path / "initrd").write_bytes(initrd)
        config = pb.VmConfig(kernel=str(tmp_path / "kernel"), initrd=str(tmp_path / "initrd"),
                             append=manifest["append"], cpus=2)
        pause_s = 2.0
    config.uid, config.memory_bytes, config.clock = "vm1", size, "real"
    clients, processes = [], []
    try:
        for name in ("a", "b"):
            folder = files.VmFolder.under(tmp_path / name, "vm1")
            folder.path.mkdir(parents=True)
            files.write_record(folder.record_file, pb.VmRecord(format=1, generation=1, config=config))
            processes.append(subprocess.Popen(
                [sys.executable, "-m", "node_agent", "zygote", "--state", str(tmp_path / name)],
                stderr=subprocess.DEVNULL))
            async with asyncio.timeout(30):
                while not (tmp_path / name / "zygote.sock").exists():
                    await asyncio.sleep(0.02)
            zygote = await Client.connect(tmp_path / name / "zygote.sock")
            clients.append(zygote)
            await zygote.call(spawn=pb.Spawn(vm_dir=str(folder.path), generation=1))
            clients.append(await Client.connect(folder.socket))
        _, source, _, target = clients
        await source.call(start=pb.Start())
        await asyncio.sleep(pause_s)
        await move_to_the_standstill(source, target)
        ours, theirs = ram_of(source.hello.pid, size), ram_of(target.hello.pid, size)
        different = np.flatnonzero((ours != theirs).reshape(-1, 512).any(axis=1))
        assert ours.any() and not len(different), f"frames {different[:8]} of {len(different)} differ"
    finally:
        for client in clients:
            await client.close()
        end_all(tmp_path)
        for process in processes:
            process.wait()
