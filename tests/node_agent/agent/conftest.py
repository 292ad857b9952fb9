"""Agents in this process, zygotes and VM processes as real ones with the fake machine, a controller that obeys tests."""

import asyncio
import random
import sys

import pytest

from node_agent.agent.config import Config
from node_agent.agent.fakes import FakeController
from node_agent.agent.main import serve
from node_agent.vmprocess import files
from node_agent.vmprocess.identity import ProcessId
from tests.node_agent.agent.processes import end_all
from virga.agent.v1 import agent_pb2 as agent
from virga.v1 import image_pb2 as image_v1
from virga.v1 import vm_pb2 as v1
from virga.vmm.v1 import vmm_pb2 as pb

FAKE_ZYGOTE = ("import sys; from pathlib import Path; from node_agent.zygote.main import serve; "
               "from node_agent.vmprocess.fakes import FakeMachines; "
               "sys.exit(serve(Path(sys.argv[1]), FakeMachines()))")


class Nodes:
    """Start, stop and kill agents; kill what they left at the end."""

    def __init__(self, folder, controller):
        self.folder = folder
        self.controller = controller
        self.tasks = {}
        self.kernel = b"a kernel of sorts " * 1000
        self.sha256 = controller.add_image(self.kernel)
        (folder / "token").write_text("secret\n")

    def state(self, name):
        return self.folder / name

    def config(self, name, **more):
        state = self.state(name)
        return Config(**{**dict(
            name=name, state=state, controller=f"127.0.0.1:{self.controller.port}",
            token_file=self.folder / "token", metrics="", memory_bytes=4 << 30, cpus=4, labels={"rack": "a"},
            address="127.0.0.1", zygote=(sys.executable, "-c", FAKE_ZYGOTE, str(state))), **more})

    async def start(self, name, **more):
        stop = asyncio.Event()
        task = asyncio.create_task(serve(self.config(name, **more), stop))
        self.tasks[name] = (task, stop)
        known = len(self.controller.hellos)
        waiter = asyncio.create_task(self.controller.until(
            lambda: any(h.node == name for h in self.controller.hellos[known:])))
        await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        if task.done():
            task.result()

    async def stop(self, name):
        task, stop = self.tasks.pop(name)
        stop.set()
        await task

    async def crash(self, name):
        """As kill -9 leaves it: nothing is said to anybody, nothing is tidied but what the kernel tidies."""
        task, _ = self.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def vm(self, uid, append="count", run=1, generation=1, power=v1.POWER_STATE_RUNNING, memory_mib=16, **more):
        image = image_v1.Image(uid="i1", name="tiny", kind=image_v1.IMAGE_KIND_MULTIBOOT, files=[image_v1.ImageFile(
            role=image_v1.FILE_ROLE_KERNEL, size_bytes=len(self.kernel), sha256=self.sha256)])
        return agent.DesiredVm(uid=uid, name=uid, disposition=agent.DISPOSITION_KEEP, generation=generation, run=run,
                               spec=v1.VmSpec(memory_mib=memory_mib, cpus=1, append=append), image=image,
                               power=power, **more)

    async def until_state(self, node, uid, state, reason=None, timeout_s=20.0):
        def reached():
            vm = self.controller.vms.get((node, uid))
            return vm is not None and vm.state == state and (reason is None or vm.reason == reason)
        try:
            await self.controller.until(reached, timeout_s)
        except TimeoutError:
            raise AssertionError(f"{uid} on {node} is {self.controller.vms.get((node, uid))}") from None
        return self.controller.vms[node, uid]

    def process(self, node, uid):
        record = files.VmFolder.under(self.state(node), uid).process()
        return ProcessId(record.pid, record.start_time)

    def zygote(self, node):
        record = files.read_record(self.state(node) / "zygote.pb", pb.ProcessRecord)
        return ProcessId(record.pid, record.start_time)

    async def close(self):
        for name in list(self.tasks):
            await self.stop(name)
        end_all(self.folder)


@pytest.fixture
async def controller():
    random.seed(1)
    fake = FakeController()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def nodes(tmp_path, controller):
    nodes = Nodes(tmp_path, controller)
    yield nodes
    await nodes.close()
