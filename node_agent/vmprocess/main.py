"""The life of a VM process, from the fork to the end.

Owns:    the order of start and stop.
Never:   returns into the zygote: the caller leaves with os._exit.
Threads: called once, on the main thread, before any other exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from node_agent.vmprocess import files, sockets
from node_agent.vmprocess.errors import Refused, to_error
from node_agent.vmprocess.identity import ProcessId, boot_id
from node_agent.vmprocess.machines import Machines
from node_agent.vmprocess.process import VmProcess, log
from node_agent.vmprocess.server import ControlServer
from virga.vmm.v1 import vmm_pb2 as pb

SWITCH_INTERVAL_S = 0.0005       # a device's turn never waits 5 ms behind a busy Python thread


def run(folder: files.VmFolder, machines: Machines, asked_at: float, ready: Callable[[pb.Error | None], None]) -> int:
    """`ready(None)` once the socket listens, or `ready(why)` where it never will."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        return asyncio.run(_live(folder, machines, asked_at, ready))
    except Exception as error:
        traceback.print_exc()
        ready(to_error(error))
        return 1


async def _live(folder: files.VmFolder, machines: Machines, asked_at: float, ready: Callable[[pb.Error | None], None]) -> int:
    held = _lock(folder)
    record = folder.record()
    if record is None:
        raise FileNotFoundError(f"{folder.record_file} is missing")
    me = ProcessId.mine()
    files.write_record(folder.process_file, pb.ProcessRecord(
        format=1, pid=me.pid, start_time=me.start_time, generation=record.generation, boot_id=boot_id()))
    vm = VmProcess(folder, record, machines, asked_at)
    server = ControlServer(vm)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, vm.finish, pb.END_REASON_KILLED, "SIGTERM")
    loop.set_exception_handler(lambda _, context: log("loop.exception", message=context.get("message"),
                                                      error=repr(context.get("exception"))))
    await vm.create()
    await server.listen(sockets.listen(folder.socket))
    vm.milestone("process", "")
    ready(None)
    await vm.ended.wait()
    await asyncio.sleep(0.02)                        # whoever listens hears of the end
    server.close()
    folder.socket.unlink(missing_ok=True)
    await vm.close()
    os.close(held)
    return 0


def _lock(folder: files.VmFolder) -> int:
    """Whoever was forked twice, and however: only one gets past here while it lives."""
    fd = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Refused("the VM has a process already") from None
    return fd


def become_vm(folder: files.VmFolder) -> None:
    """Right after the fork: a session of its own, its own log, none of the zygote's handlers."""
    os.setsid()
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    null = os.open("/dev/null", os.O_RDWR)
    log_fd = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(null)
    os.close(log_fd)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(f"virga-vm:{folder.uid[-6:]}"[:15])
