"""Console and StreamLog: bytes between people and the node that has the VM. Contracts: proto/virga/v1/vm.proto.

Owns:    the API's end of a relay; resumption of a followed log on whichever node has the VM.
Never:   keeps bytes: a slow reader makes the agent wait.
Threads: one event loop.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any

from controller import errors
from controller.agents.hub import Hub, Relay
from controller.api.access import Caller
from controller.api.rpc import first_message
from controller.store.world import VmView, World
from virga.agent.v1 import agent_pb2
from virga.v1 import vm_pb2 as pb

FOLLOW_PAUSE_S = 0.3
MAX_INPUT = 64 << 10
MAX_REPLAY = 16 << 20
AGENT_ERRORS = {"CONSOLE_BUSY", "VM_NOT_HERE"}


class Consoles:
    def __init__(self, world: World, hub: Hub) -> None:
        self._world, self._hub = world, hub

    async def console(self, requests: AsyncIterator[Any], caller: Caller) -> AsyncGenerator[Any, None]:
        first = await first_message(requests, "open")
        if not first.HasField("open"):
            raise errors.BadField("open", "must be the first message")
        view = self._world.find_vm(first.open.vm)
        relay = await self._open(view, agent_pb2.STREAM_KIND_CONSOLE, writer=first.open.writer,
                                 steal=first.open.steal, replay_bytes=min(first.open.replay_bytes, MAX_REPLAY))
        typing = asyncio.create_task(self._type(requests, relay, first.open.writer))
        try:
            attached = False
            while (message := await next_from(relay, typing)) is not None:
                _raise_error(message, view)
                if message.output or not attached:
                    yield pb.ConsoleResponse(output=message.output, attached=not attached)
                attached = True
            if typing.done() and not typing.cancelled() and (error := typing.exception()):
                raise error
        finally:
            typing.cancel()
            self._hub.close_relay(relay)
            await asyncio.gather(typing, return_exceptions=True)

    async def _type(self, requests: AsyncIterator[Any], relay: Relay, writer: bool) -> None:
        async for message in requests:
            if message.HasField("open"):
                raise errors.BadField("open", "comes once")
            if not writer:
                raise errors.BadField("input", "this console was opened for reading", "NOT_A_WRITER")
            for start in range(0, len(message.input), MAX_INPUT):
                await relay.to_agent.put(message.input[start:start + MAX_INPUT])

    async def stream_log(self, request: Any, caller: Caller) -> AsyncGenerator[Any, None]:
        view: VmView | None = self._world.find_vm(request.vm)
        uid, position = view.uid if view else "", None
        while view is not None:
            try:
                relay = await self._open(view, agent_pb2.STREAM_KIND_LOG, follow=request.follow,
                                         replay_bytes=request.tail_bytes, from_offset=position)
            except (errors.Unavailable, errors.WrongState):
                if not request.follow or (position is None and view.node):
                    raise
            else:
                try:
                    while (message := await next_from(relay)) is not None:
                        _raise_error(message, view, lenient=request.follow)
                        data, start = message.data, message.offset
                        if position is not None and start < position:          # what was sent before
                            data, start = data[position - start:], position
                        if data:
                            position = start + len(data)
                            yield pb.StreamLogResponse(data=data, offset=start)
                finally:
                    self._hub.close_relay(relay)
            if not request.follow:
                return
            await asyncio.sleep(FOLLOW_PAUSE_S)
            view = self._world.vm(uid)
            if view and view.record.delete_time:
                return

    async def _open(self, view: VmView, kind: Any, **options: Any) -> Relay:
        if not view.node:
            raise errors.WrongState("VM_NOT_PLACED", "vm", view.record.name, f"{view.record.name} has no node yet")
        options = {key: value for key, value in options.items() if value is not None}
        return await self._hub.open_relay(view.node, lambda session: agent_pb2.ControllerMessage(
            open_stream=agent_pb2.OpenStream(session=session, kind=kind, vm_uid=view.uid, **options)))


async def next_from(relay: Relay, stop: asyncio.Task[None] | None = None) -> Any | None:
    """The agent's next message; None when its stream is over and all was read. A `stop` that failed ends it too."""
    getting = asyncio.create_task(relay.from_agent.get())
    closed = asyncio.create_task(relay.closed.wait())
    waiting = {getting, closed} | ({stop} if stop else set())
    try:
        while True:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if getting in done:
                return getting.result()
            if stop in done and not stop.cancelled() and stop.exception():          # type: ignore[union-attr]
                return None
            waiting -= done
            if closed in done:
                with suppress(asyncio.QueueEmpty):
                    return relay.from_agent.get_nowait()
                return None
    finally:
        for task in (getting, closed):
            task.cancel()


def _raise_error(message: Any, view: VmView, lenient: bool = False) -> None:
    """What the agent refuses. lenient: a VM that has just moved away is looked for again."""
    if not message.HasField("error"):
        return
    reason, text = message.error.reason, message.error.message
    if reason == "VM_NOT_HERE" and lenient:
        return
    if reason in AGENT_ERRORS:
        raise errors.WrongState(reason, "vm", view.record.name, text or reason)
    raise errors.Unavailable(reason or "AGENT_FAILED", text or "the node could not open the stream")
