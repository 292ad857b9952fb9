"""Taking a local cloud down, whatever state it is in: politely where somebody answers, thoroughly in any case.

Owns:    the order: guests, agents, zygotes and VM processes, controller, etcd; and the last sweep by the mark that every
         process of the cloud carries (processes.MARK).
Never:   touches a process of another folder.
Threads: one.
"""

import shutil
import time
from pathlib import Path
from typing import Any

from cli import processes, state
from cli.errors import FAILURE, CliError
from cli.output import Progress

FORCE_SECONDS = 5.0
POLL_SECONDS = 0.1
AT_REST = {"STOPPED", "CRASHED", "PENDING"}


def take_down(folder: Path, polite_s: float, progress: Progress) -> int:
    """End everything; how many processes that were."""
    cloud = _load_or_none(folder, progress)
    before = processes.belonging_to(folder)
    if cloud and processes.alive(cloud.processes.get("controller")):
        stop_guests(folder, polite_s, progress)
    ends: list[tuple[str, list[processes.Process]]] = []
    for word in ("agent", "zygote", "controller"):
        ends.append((word, [p for pid, p in before.items() if word in processes.command_line(pid)[2:4]]))
    for word, group in ends:
        processes.stop(group, 5)
        progress.line(f"{word:<12} down" if group else f"{word:<12} was not running")
    processes.stop(processes.belonging_to(folder).values(), 5)
    progress.line(f"{'etcd':<12} down")
    left = processes.belonging_to(folder)
    if left:
        raise CliError("failure.down", f"still running: {', '.join(map(str, left))}", FAILURE, "virga down again")
    if cloud:
        cloud.processes = {}
        state.save(folder, cloud)
    return len(before)


def _load_or_none(folder: Path, progress: Progress) -> state.Cloud | None:
    """A corrupt cloud.json must not keep processes alive: they are found by their mark."""
    try:
        return state.load(folder)
    except CliError as error:
        progress.line(f"{error.message}; going by the processes' marks")
        return None


def stop_guests(folder: Path, polite_s: float, progress: Progress) -> None:
    """Power buttons first, then by force. Where the controller does not answer the sweep ends them."""
    from cli.api import connect
    from virga.v1 import vm_pb2

    api = connect(folder)
    try:
        for force, seconds in ((False, polite_s), (True, FORCE_SECONDS)):
            running = _running(api)
            if not running or (not force and not seconds):
                continue
            for vm in running:
                api.call(api.vms.StopVm, vm_pb2.StopVmRequest(vm=vm.uid, force=force), vm.name)
            give_up = time.monotonic() + seconds
            while (running := _running(api)) and time.monotonic() < give_up:
                time.sleep(POLL_SECONDS)
        progress.line("guests       down")
    except CliError as error:
        progress.line(f"guests       not asked: {error.message}")
    finally:
        api.close()


def _running(api: Any) -> list[Any]:
    from cli.api import every_page
    from cli.waiting import state_of
    from virga.v1 import vm_pb2

    return [vm for vm in every_page(api, api.vms.ListVms, vm_pb2.ListVmsRequest(), "vms") if state_of(vm) not in AT_REST]


def purge(folder: Path) -> None:
    """Remove the folder, if it is a cloud's."""
    if not (folder / "cloud.json").exists():
        raise CliError("refused.purge", f"{folder} holds no cloud.json: not removed", FAILURE)
    shutil.rmtree(folder)
