"""Console and log bytes, from a VM's process or its ring on disk to the controller, on streams that we open.

Owns:    one task per stream.
Never:   holds more than a piece in memory: the reader's pace is the stream's.
Threads: the agent's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import grpc

from node_agent.agent.node import Node
from node_agent.agent.vm import LocalVm
from node_agent.console.ring import CorruptRing, RingReader
from node_agent.vmprocess.client import CallFailed, Client, Gone
from virga.agent.v1 import agent_pb2 as pb
from virga.agent.v1 import agent_pb2_grpc as rpc
from virga.vmm.v1 import vmm_pb2 as vmm

log = logging.getLogger("relay")

QUEUE = 16                        # pieces of at most 64 KiB between ring and stream
NEXT_RUN_POLL_S = 0.3
FINISH_S = 5.0


class Refusal(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.error = pb.StreamError(reason=reason, message=message)


class Relays:
    def __init__(self, node: Node, stub: rpc.AgentServiceStub, metadata: Callable[[], tuple]) -> None:
        self._node = node
        self._stub = stub
        self._metadata = metadata
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, order: pb.OpenStream) -> None:
        what = {pb.STREAM_KIND_CONSOLE: self._console, pb.STREAM_KIND_LOG: self._log}.get(order.kind)
        if what is None:
            log.warning("a stream of unknown kind %d", order.kind)
            return
        task = asyncio.create_task(self._guarded(what, order))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, what: Callable, order: pb.OpenStream) -> None:
        try:
            await what(order)
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.NOT_FOUND):
                log.warning("stream %s: %s: %s", order.session, error.code().name, error.details())
        except Exception:
            log.exception("stream %s", order.session)

    def _vm(self, uid: str) -> LocalVm:
        vm = self._node.vms.get(uid)
        if vm is None:
            raise Refusal("VM_NOT_HERE", "the VM is not on this node")
        return vm

    # ---- console ---------------------------------------------------------------------------------------------

    async def _console(self, order: pb.OpenStream) -> None:
        client: Client | None = None
        call = self._stub.AttachConsole(metadata=self._metadata())
        try:
            try:
                client, source = await self._attach(order)
            except Refusal as refusal:
                await call.write(pb.AttachConsoleRequest(session=order.session, error=refusal.error))
                await _finish(call)
                return
            await call.write(pb.AttachConsoleRequest(session=order.session))
            reader = asyncio.create_task(self._input(call, client))
            try:
                async for piece in source:
                    await call.write(pb.AttachConsoleRequest(session=order.session, output=_with_gap(piece)))
                    if reader.done():
                        break
                await call.done_writing()
                await asyncio.wait([reader], timeout=FINISH_S)        # a call that is cancelled loses what is under way
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
        finally:
            call.cancel()
            if client is not None:
                await client.close()

    async def _attach(self, order: pb.OpenStream) -> tuple[Client | None, AsyncIterator[vmm.ConsoleOutput]]:
        """Output from a living VM's process, or what a VM that ended left."""
        vm = self._vm(order.vm_uid)
        if vm.client is None:
            if order.writer:
                raise Refusal("VM_NOT_RUNNING", "the VM does not run: there is nobody to type to")
            return None, _kept(vm, -int(order.replay_bytes), order.replay_bytes > 0)
        client = await _connect(vm)
        try:
            source = await _follow(client, vmm.AttachConsole(write=order.writer, steal=order.steal,
                                                             offset=-int(order.replay_bytes) or _END))
        except CallFailed as error:
            await client.close()
            reason = "CONSOLE_BUSY" if error.kind == vmm.Error.KIND_CONFLICT else "CONSOLE_FAILED"
            raise Refusal(reason, str(error)) from error
        return client, source

    async def _input(self, call: grpc.aio.StreamStreamCall, client: Client | None) -> None:
        while (message := await call.read()) is not grpc.aio.EOF:
            if client is not None and message.input:
                with contextlib.suppress(CallFailed):        # the writer's place was taken
                    await client.call(console_input=vmm.ConsoleInput(data=message.input))
        if client is not None:
            await client.close()                             # the other end left: so does our reading

    # ---- log -------------------------------------------------------------------------------------------------

    async def _log(self, order: pb.OpenStream) -> None:
        call = self._stub.SendLog(self._log_messages(order), metadata=self._metadata())
        try:
            await call
        finally:
            call.cancel()

    async def _log_messages(self, order: pb.OpenStream) -> AsyncIterator[pb.SendLogRequest]:
        """An exception in a request iterator reaches nobody, so all of them become messages here."""
        try:
            vm = self._vm(order.vm_uid)
            yield pb.SendLogRequest(session=order.session)
            offset = -int(order.replay_bytes)
            async for piece in self._log_pieces(vm, offset, order.follow):
                yield pb.SendLogRequest(session=order.session, data=_with_gap(piece), offset=piece.offset)
        except Refusal as refusal:
            yield pb.SendLogRequest(session=order.session, error=refusal.error)
        except (CorruptRing, OSError) as error:
            yield pb.SendLogRequest(session=order.session,
                                    error=pb.StreamError(reason="LOG_FAILED", message=str(error)))

    async def _log_pieces(self, vm: LocalVm, offset: int, follow: bool) -> AsyncIterator[vmm.ConsoleOutput]:
        """What the ring keeps; with follow what comes, over stops and new runs, until the VM is gone from here."""
        async for piece in _kept(vm, offset, everything=True):
            yield piece
            offset = piece.offset + len(piece.data)
        offset = max(offset, 0)
        while follow and not vm.gone:
            try:
                client = await _connect(vm)
            except Refusal:
                await asyncio.sleep(NEXT_RUN_POLL_S)
                continue
            try:
                async for piece in await _follow(client, vmm.AttachConsole(offset=offset)):
                    yield piece
                    offset = piece.offset + len(piece.data)
            except CallFailed:
                await asyncio.sleep(NEXT_RUN_POLL_S)
            finally:
                await client.close()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _finish(call: grpc.aio.StreamStreamCall) -> None:
    """All is said: give the other end time to take it."""
    await call.done_writing()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FINISH_S):
            while await call.read() is not grpc.aio.EOF:
                pass


_END = -1                          # from now on


def _with_gap(piece: vmm.ConsoleOutput) -> bytes:
    if not piece.lost:
        return piece.data
    return b"\r\n[%d bytes of console output are lost here]\r\n" % piece.lost + piece.data


async def _connect(vm: LocalVm) -> Client:
    """A connection of the stream's own: the VM's process keeps the reader's place there."""
    try:
        return await Client.connect(vm.folder.socket)
    except Gone as error:
        raise Refusal("VM_NOT_RUNNING", str(error)) from error


async def _follow(client: Client, attach: vmm.AttachConsole) -> AsyncIterator[vmm.ConsoleOutput]:
    """Attach (raises CallFailed) and return the pieces; they end with the process."""
    pieces: asyncio.Queue[vmm.ConsoleOutput] = asyncio.Queue(QUEUE)

    async def heard(notice: vmm.Notice) -> None:
        if notice.HasField("console"):
            await pieces.put(notice.console)             # a slow stream holds up its own connection, nothing else

    client.on_notice = heard
    await client.call(attach_console=attach)

    async def generate() -> AsyncIterator[vmm.ConsoleOutput]:
        closed = asyncio.create_task(client.closed.wait())
        try:
            while True:
                getting = asyncio.create_task(pieces.get())
                await asyncio.wait([getting, closed], return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    while not pieces.empty():
                        yield pieces.get_nowait()
                    return
                yield getting.result()
        finally:
            closed.cancel()
    return generate()


async def _kept(vm: LocalVm, offset: int, everything: bool) -> AsyncIterator[vmm.ConsoleOutput]:
    """What the ring on disk holds."""
    try:
        ring = RingReader(vm.folder.console)
    except FileNotFoundError:
        return
    try:
        end = ring.written
        offset = max(0, end + offset) if offset < 0 else offset
        while everything and offset < end:
            piece = ring.read(offset)
            if not piece.data:
                return
            yield vmm.ConsoleOutput(offset=piece.offset, data=piece.data, lost=piece.lost)
            offset = piece.offset + len(piece.data)
    finally:
        ring.close()
