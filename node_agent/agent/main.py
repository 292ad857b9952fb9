"""`python -m node_agent agent`: the composition root of a node's agent.

Start and stop are a list of steps, each with its undo. SIGTERM and SIGINT end the agent and leave its VMs and the
zygote as they are.

Owns:    the order.
Never:   holds logic.
Threads: one event loop; prometheus-client's thread; grpc's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import sys
import time

from node_agent.agent import config as config_module
from node_agent.agent.config import Config
from node_agent.agent.link import Link
from node_agent.agent.log import set_up
from node_agent.agent.metrics import Metrics
from node_agent.agent.node import Node
from node_agent.agent.node_files import NodeFiles, NodeFilesError
from node_agent.agent.zygotes import ZygoteError

log = logging.getLogger("agent")

SETTLE_S = 2.0


async def serve(config: Config, stop: asyncio.Event) -> None:
    """Until `stop`. Raises NodeFilesError, OSError."""
    async with contextlib.AsyncExitStack() as undo:
        files = NodeFiles(config.state)
        undo.callback(files.close)
        config.token_file.read_text()                         # an unreadable token is told now
        metrics = Metrics()
        undo.callback(metrics.close)
        link = Link(config, files, metrics, random.uniform, time.time)
        undo.push_async_callback(link.close)
        node = Node(config, files, link, time.time)
        undo.push_async_callback(node.close)
        link.node = node
        if config.metrics:
            metrics.serve(config.metrics, node, link)
        try:
            await node.zygotes.client()
        except ZygoteError as error:
            log.error("%s", error)                            # VMs that run are driven without one
        node.discover()
        await node.settle(SETTLE_S)
        running = asyncio.create_task(link.run(), name="link")
        undo.push_async_callback(_cancel, running)
        log.info("agent of %s, state in %s", config.name, config.state)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            stopping.cancel()
            running.result()
        log.info("leaving; VMs stay as they are")


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _serve_until_signal(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(config, stop)


def main(argv: list[str]) -> int:
    config = config_module.parse(argv)
    set_up(config.name)
    try:
        asyncio.run(_serve_until_signal(config))
    except NodeFilesError as error:
        log.error("%s", error)
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        log.error("%s", error)
        print(f"error: {error.filename or config.metrics}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0
