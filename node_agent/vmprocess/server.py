"""The VM process' control socket: many connections, each with its own requests, notices and console.

Owns:    connections, the table of calls, who writes the console.
Never:   lets one connection's death or slowness touch the guest or another connection.
Threads: the loop's only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine

from node_agent.migration.sides import Incoming, Outgoing
from node_agent.version import VERSION
from node_agent.vmprocess import wire
from node_agent.vmprocess.errors import Refused, to_error
from node_agent.vmprocess.identity import ProcessId
from node_agent.vmprocess.machines import BadConfig
from node_agent.vmprocess.process import VmProcess, log
from virga.vmm.v1 import vmm_pb2 as pb

PROTOCOL = 1
MAX_UNSENT_NOTICES = 256         # a connection that does not read gets no more of them

Handler = Callable[["Connection", pb.Request], Coroutine[None, None, pb.Reply]]


class Connection:
    def __init__(self, server: ControlServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.vm = server.vm
        self._reader = reader
        self._writer = writer
        self._tasks = asyncio.TaskGroup()
        self._notices: asyncio.Queue[pb.Notice] = asyncio.Queue(MAX_UNSENT_NOTICES)
        self._subscribed = False
        self._attached = False

    async def serve(self) -> None:
        try:
            await self._send(pb.FromServer(hello=self._hello()))
            async with self._tasks:
                self._tasks.create_task(self._read_requests())
        except* (wire.WireError, ConnectionError):
            pass
        finally:
            self.server.writer_left(self)
            self._writer.close()

    def _hello(self) -> pb.Hello:
        me = ProcessId.mine()
        return pb.Hello(protocol=PROTOCOL, oldest_protocol=1, role="vm", version=VERSION, pid=me.pid,
                        start_time=me.start_time, uid=self.vm.config.uid, generation=self.vm.generation)

    async def _send(self, frame: pb.FromServer) -> None:
        self._writer.write(wire.encode(frame))
        await self._writer.drain()

    async def _read_requests(self) -> None:
        while True:
            request = await wire.read(self._reader, pb.Request)
            if request.WhichOneof("call") == "console_input":        # in order, and without a reply of its own task
                await self._answer(request)
            else:
                self._tasks.create_task(self._answer(request))

    async def _answer(self, request: pb.Request) -> None:
        handler = CALLS.get(request.WhichOneof("call") or "")
        try:
            if handler is None:
                raise wire.WireError("this VM process does not know the call")
            # a change of state, once begun, is not left half done because whoever asked went away
            reply = await asyncio.shield(self.server.keep(handler(self, request)))
        except Exception as error:
            reply = pb.Reply(error=to_error(error))
        reply.id = request.id
        await self._send(pb.FromServer(reply=reply))

    # ---- notices -----------------------------------------------------------------------------------------------

    async def subscribe(self) -> None:
        if not self._subscribed:
            self._subscribed = True
            self._tasks.create_task(self._send_notices())

    def _take_notice(self, notice: pb.Notice) -> None:
        with contextlib.suppress(asyncio.QueueFull):                 # it can always ask with Describe
            self._notices.put_nowait(notice)

    async def _send_notices(self) -> None:
        with self.vm.listening(self._take_notice):
            while True:
                await self._send(pb.FromServer(notice=await self._notices.get()))

    # ---- console -----------------------------------------------------------------------------------------------

    async def attach(self, call: pb.AttachConsole) -> int:
        if self._attached:
            raise Refused("this connection is attached already")
        if call.write:
            self.server.claim_writer(self, call.steal)
        self._attached = True
        offset = call.offset
        if offset < 0:
            offset = max(0, self.vm.console.written + (offset if offset < -1 else 0))      # -1: from now on
        self._tasks.create_task(self._send_console(offset))
        return offset

    async def _send_console(self, offset: int) -> None:
        async for piece in self.vm.console.follow(offset):
            await self._send(pb.FromServer(notice=pb.Notice(console=pb.ConsoleOutput(
                offset=piece.offset, data=piece.data, lost=piece.lost))))


class ControlServer:
    def __init__(self, vm: VmProcess) -> None:
        self.vm = vm
        self.writer: Connection | None = None
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task] = set()

    def keep(self, call: Coroutine[None, None, pb.Reply]) -> asyncio.Task:
        task = asyncio.get_running_loop().create_task(call)
        self._running.add(task)                       # the loop itself holds tasks weakly
        task.add_done_callback(self._running.discard)
        return task

    async def listen(self, sock) -> None:
        self._server = await asyncio.start_unix_server(self._connected, sock=sock)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await Connection(self, reader, writer).serve()
        except asyncio.CancelledError:                # the process ends; asyncio would call this an error
            pass
        except Exception as error:
            log("connection.failed", error=repr(error))

    def claim_writer(self, who: Connection, steal: bool) -> None:
        if self.writer is not None and self.writer is not who and not steal:
            raise Refused("the console has a writer already")
        self.writer = who

    def writer_left(self, who: Connection) -> None:
        if self.writer is who:
            self.writer = None

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


# ---- the calls -------------------------------------------------------------------------------------------------


def _plain(method: Callable[[VmProcess], Awaitable[None]]) -> Handler:
    async def call(conn: Connection, request: pb.Request) -> pb.Reply:
        await method(conn.vm)
        return pb.Reply()
    return call


async def _describe(conn: Connection, request: pb.Request) -> pb.Reply:
    return pb.Reply(description=conn.vm.describe())


async def _start(conn: Connection, request: pb.Request) -> pb.Reply:
    try:
        await conn.vm.start()
    except (BadConfig, OSError) as error:
        conn.vm.finish(pb.END_REASON_FAILURE, f"could not start: {error}")
        raise
    return pb.Reply()


async def _kill(conn: Connection, request: pb.Request) -> pb.Reply:
    loop = asyncio.get_running_loop()
    loop.call_later(0.01, conn.vm.finish, pb.END_REASON_KILLED, request.kill.detail)   # after the reply
    return pb.Reply()


async def _subscribe(conn: Connection, request: pb.Request) -> pb.Reply:
    await conn.subscribe()
    return pb.Reply(description=conn.vm.describe())


async def _attach_console(conn: Connection, request: pb.Request) -> pb.Reply:
    return pb.Reply(console=pb.ConsoleReply(offset=await conn.attach(request.attach_console)))


async def _console_input(conn: Connection, request: pb.Request) -> pb.Reply:
    if conn.server.writer is not conn:
        raise Refused("this connection is not the console's writer")
    conn.vm.console_input(request.console_input.data)
    return pb.Reply()


async def _migrate_out(conn: Connection, request: pb.Request) -> pb.Reply:
    Outgoing.begin(conn.vm, request.migrate_out)
    return pb.Reply(description=conn.vm.describe(with_counts=False))


async def _migrate_in(conn: Connection, request: pb.Request) -> pb.Reply:
    port = await Incoming.begin(conn.vm, request.migrate_in)
    return pb.Reply(migrate_in=pb.MigrateInReply(port=port))


async def _decide(conn: Connection, request: pb.Request) -> pb.Reply:
    call = request.decide
    await _side(conn, call.id).decide(call.generation, call.mine)
    return pb.Reply(description=conn.vm.describe(with_counts=False))


async def _release(conn: Connection, request: pb.Request) -> pb.Reply:
    side = _side(conn, request.release.id)
    if not isinstance(side, Outgoing):
        raise Refused("only the source keeps a copy to release")
    asyncio.get_running_loop().call_later(0.01, side.release)                          # after the reply
    side.check_release()
    return pb.Reply()


async def _cancel_migration(conn: Connection, request: pb.Request) -> pb.Reply:
    await _side(conn, request.cancel_migration.id).cancel(request.cancel_migration.why)
    return pb.Reply()


def _side(conn: Connection, migration_id: str):
    side = conn.vm.migration
    if side is None or side.id != migration_id:
        raise Refused(f"no migration {migration_id} here")
    return side


CALLS: dict[str, Handler] = {
    "describe": _describe,
    "start": _start,
    "pause": _plain(VmProcess.pause),
    "resume": _plain(VmProcess.resume),
    "power_button": _plain(VmProcess.power_button),
    "reset": _plain(VmProcess.reset),
    "kill": _kill,
    "subscribe": _subscribe,
    "attach_console": _attach_console,
    "console_input": _console_input,
    "migrate_out": _migrate_out,
    "migrate_in": _migrate_in,
    "decide": _decide,
    "release": _release,
    "cancel_migration": _cancel_migration,
}
