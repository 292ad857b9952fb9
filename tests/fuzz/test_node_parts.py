"""A VM process whose socket is told anything, and an agent whose controller wants anything: whatever it is, it is answered
or let be, and VMs that were not named go on. VIRGA_FUZZ_SECONDS makes it longer (`make fuzz`)."""

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time

import pytest

from node_agent.agent.fakes import FakeController
from node_agent.vmprocess import files
from node_agent.vmprocess.client import CallFailed, Client, Gone
from node_agent.vmprocess.identity import ProcessId
from tests.fuzz.test_api import Generator
from tests.node_agent.agent.conftest import FAKE_ZYGOTE, Nodes
from tests.node_agent.agent.processes import end_all
from virga.agent.v1 import agent_pb2 as agent
from virga.v1 import vm_pb2 as v1
from virga.vmm.v1 import vmm_pb2 as pb

SECONDS = float(os.environ.get("VIRGA_FUZZ_SECONDS", "4"))
CALLS = [field for field in pb.Request.DESCRIPTOR.fields if field.name not in ("id", "kill")]


@pytest.fixture
def seed():
    value = random.randrange(1 << 32)
    print(f"seed {value}")
    return value


async def test_the_socket_of_a_vm(tmp_path, seed):
    state = tmp_path / "node"
    state.mkdir()
    zygote_process = subprocess.Popen([sys.executable, "-c", FAKE_ZYGOTE, str(state)], stderr=subprocess.DEVNULL)
    generator, rng = Generator(seed, ["m", "127.0.0.1", "192.0.2.1"]), random.Random(seed)
    clients = []
    try:
        while not (state / "zygote.sock").exists():
            await asyncio.sleep(0.02)
        zygote = await Client.connect(state / "zygote.sock")
        clients.append(zygote)
        folder = files.VmFolder.under(state, "vm1")
        folder.path.mkdir(parents=True)
        files.write_record(folder.record_file, pb.VmRecord(format=1, generation=1, config=pb.VmConfig(
            uid="vm1", memory_bytes=4 << 20, cpus=1, append="count nopower", console_bytes=1 << 16)))
        await zygote.call(spawn=pb.Spawn(vm_dir=str(folder.path), generation=1))
        vm = await Client.connect(folder.socket)
        clients.append(vm)
        await vm.call(start=pb.Start())
        end, answered = time.monotonic() + SECONDS, 0
        while time.monotonic() < end:
            field = rng.choice(CALLS)
            to = rng.choice((vm, vm, vm, zygote))
            if to is zygote and field.name == "shutdown":
                continue
            with contextlib.suppress(CallFailed):
                await to.call(**{field.name: generator.message(field.message_type)})
            answered += 1
        assert answered > 50
        description = (await vm.call(describe=pb.Describe())).description
        assert description.state in (pb.VM_STATE_RUNNING, pb.VM_STATE_PAUSED, pb.VM_STATE_HELD)
        assert ProcessId(vm.hello.pid, vm.hello.start_time).alive() and zygote_process.poll() is None
    finally:
        for client in clients:
            await client.close()
        end_all(tmp_path)
        zygote_process.wait()


def garble(rng, generator, good):
    """A desired state: rubbish, and sometimes the right words in the wrong places. VMs are named g0 to g5, or worse."""
    desired = generator.message(agent.DesiredState.DESCRIPTOR)
    for vm in desired.vms:
        if rng.random() < 0.7:
            vm.uid = f"g{rng.randrange(6)}"
        if rng.random() < 0.5:
            vm.image.CopyFrom(good.image)
            vm.spec.memory_mib = rng.choice((0, 1, 4, 1 << 31))
            vm.spec.append = rng.choice(("count", "flood", "exit=300", "triplefault", "x" * 5000))
            vm.spec.ClearField("disks")
    for order in desired.migrations:
        if rng.random() < 0.7:
            order.vm_uid = f"g{rng.randrange(6)}"
        if rng.random() < 0.5:
            order.vm.CopyFrom(good)
            order.vm.uid = order.vm_uid
            order.peer_address = rng.choice(("127.0.0.1:1", "", "nowhere", "[::1]:99999"))
    kept = [vm for vm in desired.vms if vm.uid not in ("steady", "after")]
    del desired.vms[:]
    desired.vms.extend([good, *kept])
    return desired


async def test_an_agent_whose_controller_wants_anything(tmp_path, seed):
    controller = FakeController()
    await controller.start()
    nodes = Nodes(tmp_path, controller)
    generator, rng = Generator(seed, ["vm1", "m1"]), random.Random(seed)
    try:
        await nodes.start("n1")
        steady = nodes.vm("steady")
        controller.want("n1", [steady])
        await nodes.until_state("n1", "steady", v1.VM_STATE_RUNNING)
        who = nodes.process("n1", "steady")
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            desired = garble(rng, generator, steady)
            controller.want("n1", list(desired.vms), list(desired.migrations))
            for field in ("open_stream", "stats_request"):
                kind = agent.ControllerMessage.DESCRIPTOR.fields_by_name[field].message_type
                controller.send("n1", agent.ControllerMessage(**{field: generator.message(kind)}))
            await asyncio.sleep(0.05)
        controller.want("n1", [steady, nodes.vm("after")])
        await nodes.until_state("n1", "after", v1.VM_STATE_RUNNING, timeout_s=30)
        assert nodes.process("n1", "steady") == who and who.alive() and len(controller.hellos) == 1
    finally:
        with contextlib.suppress(Gone):
            await nodes.close()
        await controller.stop()
