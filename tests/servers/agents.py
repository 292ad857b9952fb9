"""Real agents in this process, on a real controller on the fake etcd; zygotes and VM processes are processes."""

import asyncio
import sys
from contextlib import asynccontextmanager

from node_agent.agent.config import Config
from node_agent.agent.main import serve
from node_agent.console.ring import RingReader
from tests.node_agent.agent.processes import end_all
from tests.servers.cloud import USER, Client, cloud, until
from virga.v1 import node_pb2

NAMES = ("node-1", "node-2")
_SERVE = ("import sys; from pathlib import Path; from node_agent.zygote.main import serve; "
          "from node_agent.vmprocess.{module} import {machines}; sys.exit(serve(Path(sys.argv[1]), {machines}()))")
FAKE = _SERVE.format(module="fakes", machines="FakeMachines")
REAL = _SERVE.format(module="machines", machines="RealMachines")


class Agents:
    def __init__(self, folder, address, zygote):
        self.folder, self.address, self.tasks, self._zygote = folder, address, {}, zygote

    async def start(self, name):
        state = self.folder / name
        (self.folder / f"token-of-{name}").write_text(f"token-{name}")
        config = Config(name=name, state=state, controller=self.address, token_file=self.folder / f"token-of-{name}",
                        metrics="", memory_bytes=4 << 30, cpus=8, labels={}, address="127.0.0.1",
                        zygote=(sys.executable, "-c", self._zygote, str(state)))
        stop = asyncio.Event()
        self.tasks[name] = asyncio.create_task(serve(config, stop)), stop

    async def crash(self, name):
        """As kill -9 leaves it: nobody is told anything."""
        task, _ = self.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def console(self, node, uid):
        ring = RingReader(self.folder / node / "vms" / uid / "console")
        data = ring.read(0, 1 << 20).data
        ring.close()
        return data


@asynccontextmanager
async def agents_on_a_controller(folder, zygote=FAKE):
    """(cloud, client, agents): two nodes, READY."""
    nodes = folder / "nodes"
    nodes.mkdir()
    async with cloud(folder, nodes=(), image=False) as running:
        client = Client(running.address)
        agents = Agents(nodes, running.address, zygote)
        for name in NAMES:
            await agents.start(name)
        await until(lambda: client.nodes.ListNodes(node_pb2.ListNodesRequest(), metadata=USER),
                    lambda answer: len(answer.nodes) == len(NAMES))
        try:
            yield running, client, agents
        finally:
            for name in list(agents.tasks):
                await agents.crash(name)
            await client.channel.close()
            end_all(nodes)
