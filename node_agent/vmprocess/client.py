"""The other end of a control socket: what the agent and the tests use to drive VM processes and the zygote.

Owns:    one connection, its requests under way.
Never:   hides that the process went: every call then raises Gone.
Threads: one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from google.protobuf.message import Message

from node_agent.vmprocess import sockets, wire
from virga.vmm.v1 import vmm_pb2 as pb

PROTOCOL = 1
CALL_TIMEOUT_S = 30.0


class Gone(Exception):
    """Nobody is at the other end (any more)."""


class CallFailed(Exception):
    """The process said no; `kind` is vmm.v1.Error.Kind."""

    def __init__(self, error: pb.Error) -> None:
        super().__init__(error.message)
        self.kind = error.kind
        self.field = error.field


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hello: pb.Hello) -> None:
        self.hello = hello
        self.closed = asyncio.Event()
        # may return something to wait for: until then nothing more is read
        self.on_notice: Callable[[pb.Notice], Awaitable[None] | None] = lambda _: None
        self._reader = reader
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[pb.Reply]] = {}
        self._next = 1
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, path: Path, timeout_s: float = 5.0) -> Client:
        try:
            reader, writer = await sockets.open_stream(path)
        except (OSError, ConnectionError) as error:
            raise Gone(f"{path.parent.name}: {error.strerror or error}") from error
        try:
            async with asyncio.timeout(timeout_s):
                hello = (await wire.read(reader, pb.FromServer)).hello
        except (wire.WireError, TimeoutError) as error:
            writer.close()
            raise Gone(f"{path.parent.name}: no hello ({error})") from error
        if hello.oldest_protocol > PROTOCOL:
            writer.close()
            raise Gone(f"{path.parent.name}: speaks protocol {hello.oldest_protocol} or newer, this agent {PROTOCOL}")
        return cls(reader, writer, hello)

    async def call(self, timeout_s: float = CALL_TIMEOUT_S, **call: Message) -> pb.Reply:
        """call(pause=pb.Pause()). Raises CallFailed, Gone, TimeoutError."""
        if self.closed.is_set():
            raise Gone("the process has gone")
        number, self._next = self._next, self._next + 1
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._writer.write(wire.encode(pb.Request(id=number, **call)))
            async with asyncio.timeout(timeout_s):
                await self._writer.drain()
                reply = await future
        except ConnectionError as error:
            raise Gone(str(error)) from error
        finally:
            self._waiting.pop(number, None)
        if reply.HasField("error"):
            raise CallFailed(reply.error)
        return reply

    async def _read(self) -> None:
        try:
            while True:
                frame = await wire.read(self._reader, pb.FromServer)
                if frame.HasField("reply"):
                    if frame.reply.HasField("description"):      # in its place among the notices: never an older word later
                        await self._tell(pb.Notice(changed=frame.reply.description))
                    future = self._waiting.get(frame.reply.id)
                    if future is not None and not future.done():
                        future.set_result(frame.reply)
                elif frame.HasField("notice"):
                    await self._tell(frame.notice)
        except wire.WireError:
            pass
        finally:
            self.closed.set()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(Gone("the process has gone"))
            self._writer.close()

    async def _tell(self, notice: pb.Notice) -> None:
        busy = self.on_notice(notice)
        if busy is not None:
            await busy

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
