"""The zygote: imports everything once, freezes it, and forks a VM process per request.

Exec'd before anything imports grpc or starts a thread, so that a fork copies one thread and no locks held by others.
It outlives the agent. It reaps its children and writes down how each ended, where the child could not itself.

    STATE/zygote.lock     held (flock) while it lives
          zygote.pb       ProcessRecord
          zygote.sock     its socket
          zygote.log      stderr

Owns:    the socket, its children.
Never:   imports grpc, starts a thread, touches a machine; takes a VM with it when it ends.
Threads: one.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from node_agent.version import VERSION
from node_agent.vmprocess import files, sockets, wire
from node_agent.vmprocess.identity import ProcessId
from node_agent.vmprocess.machines import Machines
from node_agent.vmprocess.main import become_vm, run
from node_agent.vmprocess.process import log
from virga.vmm.v1 import vmm_pb2 as pb

PROTOCOL = 1
CLIENT_TIMEOUT_S = 5.0
PIPE_BUF = 4096                       # written and read as one piece: pipe(7)


@dataclass
class Child:
    id: ProcessId
    folder: files.VmFolder
    generation: int
    client: socket.socket | None         # waits for the answer
    request: int
    pipe: int                            # where the child says that it listens, or why not


class Zygote:
    def __init__(self, state: Path, machines: Machines, held: int) -> None:
        self.state = state
        self._held = held                    # the lock's descriptor; a child that kept it would keep the lock
        self.machines = machines
        self.children: dict[int, Child] = {}
        self.leaving = False
        self._selector = selectors.DefaultSelector()
        self._me = ProcessId.mine()

    # ---- life --------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        files.write_record(self.state / "zygote.pb",
                           pb.ProcessRecord(format=1, pid=self._me.pid, start_time=self._me.start_time))
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._leave)
        self._listener = sockets.listen(self.state / "zygote.sock")
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(wake_read, selectors.EVENT_READ, self._woken)
        log("zygote.ready", pid=self._me.pid)
        while not self.leaving:
            for key, _ in self._selector.select():
                key.data(key.fileobj)
        (self.state / "zygote.sock").unlink(missing_ok=True)
        log("zygote.left", children=len(self.children))

    def _leave(self, *_: object) -> None:
        self.leaving = True

    def _woken(self, fd: int) -> None:
        try:
            while os.read(fd, 4096):
                pass
        except BlockingIOError:
            pass
        self._reap()

    # ---- clients -----------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        client.settimeout(CLIENT_TIMEOUT_S)
        try:
            wire.send(client, pb.FromServer(hello=pb.Hello(
                protocol=PROTOCOL, oldest_protocol=1, role="zygote", version=VERSION, pid=self._me.pid,
                start_time=self._me.start_time)))
        except OSError:
            client.close()
            return
        self._selector.register(client, selectors.EVENT_READ, self._request)

    def _request(self, client: socket.socket) -> None:
        try:
            request = wire.receive(client, pb.Request)
        except (wire.WireError, OSError):
            self._drop(client)
            return
        call = request.WhichOneof("call")
        if call == "spawn":
            self._spawn(client, request)
        elif call == "list":
            self._reply(client, pb.Reply(id=request.id, list=pb.ListReply(processes=[
                pb.ProcessRecord(format=1, pid=c.id.pid, start_time=c.id.start_time, generation=c.generation)
                for c in self.children.values()])))
        elif call == "shutdown":
            self._reply(client, pb.Reply(id=request.id))
            self.leaving = True
        else:
            self._refuse(client, request.id, pb.Error.KIND_UNKNOWN_CALL, "this zygote does not know the call")

    def _reply(self, client: socket.socket | None, reply: pb.Reply) -> None:
        if client is None:
            return
        try:
            wire.send(client, pb.FromServer(reply=reply))
        except OSError:
            self._drop(client)

    def _refuse(self, client: socket.socket | None, request: int, kind: int, why: str) -> None:
        self._reply(client, pb.Reply(id=request, error=pb.Error(kind=kind, message=why)))

    def _drop(self, client: socket.socket) -> None:
        for child in self.children.values():
            if child.client is client:
                child.client = None
        try:
            self._selector.unregister(client)
        except (KeyError, ValueError):
            return
        client.close()

    # ---- children ----------------------------------------------------------------------------------------------

    def _spawn(self, client: socket.socket, request: pb.Request) -> None:
        asked_at = time.monotonic()
        folder = files.VmFolder(Path(request.spawn.vm_dir))
        if folder.path.parent.resolve() != (self.state / "vms").resolve() or not folder.path.is_dir():
            self._refuse(client, request.id, pb.Error.KIND_INVALID, f"{folder.path} is no VM's folder here")
            return
        if any(c.folder.path == folder.path for c in self.children.values()):
            self._refuse(client, request.id, pb.Error.KIND_CONFLICT, "the VM has a process already")
            return
        pipe_read, pipe_write = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
        except OSError as error:
            os.close(pipe_read)
            os.close(pipe_write)
            self._refuse(client, request.id, pb.Error.KIND_FAILED, f"fork: {error.strerror}")
            return
        if pid == 0:
            self._child(folder, asked_at, pipe_write)
        os.close(pipe_write)
        who = ProcessId.of(pid) or ProcessId(pid, 0)        # 0: a zombie already
        self.children[pid] = Child(who, folder, request.spawn.generation, client, request.id, pipe_read)
        self._selector.register(pipe_read, selectors.EVENT_READ, self._child_said)

    def _child(self, folder: files.VmFolder, asked_at: float, pipe: int) -> None:
        """The VM process' whole life; never returns."""
        status = 1
        try:
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket):
                    key.fileobj.close()
                else:
                    os.close(key.fileobj)
            self._selector.close()
            os.close(self._held)
            gc.enable()
            become_vm(folder)

            def ready(why: pb.Error | None) -> None:
                nonlocal pipe
                if pipe >= 0:
                    reply = pb.Reply(error=why) if why else pb.Reply(spawned=pb.Spawned())
                    os.write(pipe, wire.encode(reply)[:PIPE_BUF])
                    os.close(pipe)
                    pipe = -1
            status = run(folder, self.machines, asked_at, ready)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _child_said(self, pipe: int) -> None:
        child = next(c for c in self.children.values() if c.pipe == pipe)
        said = os.read(pipe, PIPE_BUF)
        self._selector.unregister(pipe)
        os.close(pipe)
        child.pipe = -1
        try:
            reply = wire.decode(pb.Reply, said[4:])
        except wire.WireError:
            reply = pb.Reply()
        if reply.HasField("spawned"):
            reply.spawned.pid, reply.spawned.start_time = child.id.pid, child.id.start_time
        elif not reply.HasField("error"):
            reply.error.kind, reply.error.message = pb.Error.KIND_FAILED, "the VM process ended before it began"
        reply.id = child.request
        self._reply(child.client, reply)
        child.client = None

    def _reap(self) -> None:
        while self.children:
            try:
                pid, status, _ = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self.children.get(pid)
            if child is None:
                continue
            if child.pipe >= 0:
                self._child_said(child.pipe)
            del self.children[pid]
            self._write_end(child, status)

    def _write_end(self, child: Child, status: int) -> None:
        """Only where the child did not: its own word says more."""
        try:
            process, old = child.folder.process(), child.folder.end()
            if process is None or process.pid != child.id.pid:
                return                                    # it never was the VM's process
            if old is not None and (old.pid, old.start_time) == (child.id.pid, child.id.start_time):
                return
        except files.CorruptRecord as error:
            log("end.corrupt", error=str(error))
        code = os.waitstatus_to_exitcode(status)
        end = pb.End(format=1, generation=child.generation, pid=child.id.pid, start_time=child.id.start_time,
                     unix_time=time.time(), ran=child.folder.ran.exists())
        if code < 0:
            end.reason, end.value = pb.END_REASON_SIGNAL, -code
            end.detail = f"killed by signal {-code} ({signal.strsignal(-code) or 'unknown'})"
        else:
            end.reason, end.value = pb.END_REASON_EXIT_STATUS, code
            end.detail = f"ended with status {code} without a word"
        try:
            if child.folder.path.is_dir():
                files.write_record(child.folder.end_file, end)
        except OSError as error:
            log("end.not_written", vm=child.folder.uid, error=str(error))
        log("vm.ended", vm=child.folder.uid, detail=end.detail)


def lock(state: Path) -> int | None:
    """The lock's descriptor, or None where a zygote lives already."""
    fd = os.open(state / "zygote.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def serve(state: Path, machines: Machines) -> int:
    (state / "vms").mkdir(parents=True, exist_ok=True, mode=0o700)
    held = lock(state)
    if held is None:
        print(f"a zygote lives in {state} already", file=sys.stderr)
        return 0
    gc.collect()
    gc.freeze()
    gc.disable()                                          # nothing here makes cycles; children turn it on again
    Zygote(state, machines, held).serve()
    return 0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m node_agent zygote")
    parser.add_argument("--state", type=Path, required=True, help="the node's state folder")
    args = parser.parse_args(argv)
    from node_agent.vmprocess.machines import RealMachines

    return serve(args.state.resolve(), RealMachines())
