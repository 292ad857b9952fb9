"""The processes of a local cloud: started detached, known by pid and start time, found again, stopped.

Owns:    spawning, and finding what belongs to a folder: each process started here, and all that it starts in turn,
         carries VIRGA_CLOUD=FOLDER in its environment.
Never:   signals a pid whose start time does not fit.
Threads: none.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from cli.errors import FAILURE, TIMED_OUT, CliError
from cli.state import Process

MARK = "VIRGA_CLOUD"
POLL_SECONDS = 0.05
MARKED_SECONDS = 1.0             # a process that was just started shows its environment within


def start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None where the process is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def alive(process: Process | None) -> bool:
    return process is not None and start_time(process.pid) == process.start_time


def spawn(folder: Path, name: str, command: list[str]) -> Process:
    """Start it in a session of its own; what it prints goes to FOLDER/logs/NAME.log."""
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    with open(logs / f"{name}.log", "ab") as log:
        child = subprocess.Popen(command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                 start_new_session=True, env={**os.environ, MARK: str(folder), "PYTHONUNBUFFERED": "1"})
    give_up = time.monotonic() + MARKED_SECONDS
    while child.poll() is None and not _environment(child.pid) and time.monotonic() < give_up:
        time.sleep(0.001)                              # the kernel shows the mark a little after exec has begun
    started = start_time(child.pid)
    if started is None:
        raise died(folder, name)
    _children.append(child)
    return Process(child.pid, started)


_children: list[subprocess.Popen[bytes]] = []       # reaped by poll(), so that a death is seen as one


def reap() -> None:
    for child in _children:
        child.poll()


def last_lines(folder: Path, name: str, count: int = 3) -> list[str]:
    try:
        data = (folder / "logs" / f"{name}.log").read_bytes()[-8192:]
    except OSError:
        return []
    return [line[:300] for line in data.decode(errors="replace").strip().splitlines()[-count:]]


def died(folder: Path, name: str) -> CliError:
    return CliError(f"failure.{name.split('-')[0]}", f"{name} ended right after its start", FAILURE,
                    f"see {folder}/logs/{name}.log", tuple(last_lines(folder, name)))


def wait_until(folder: Path, name: str, process: Process, ready: Callable[[], bool], seconds: float) -> None:
    """Until ready(); an error where the process dies first or the time is up."""
    give_up = time.monotonic() + seconds
    while not ready():
        reap()
        if not alive(process):
            raise died(folder, name)
        if time.monotonic() > give_up:
            raise CliError("timed_out", f"{name} is not ready after {seconds:g} s", TIMED_OUT,
                           f"see {folder}/logs/{name}.log", tuple(last_lines(folder, name)))
        time.sleep(POLL_SECONDS)


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int, but: Iterable[int] = ()) -> list[int]:
    """Ports that nobody has now. All are held until the last is found, so that they differ."""
    taken, held, ports = set(but), [], []
    try:
        while len(ports) < count:
            probe = socket.socket()
            held.append(probe)
            probe.bind(("127.0.0.1", 0))
            if probe.getsockname()[1] not in taken:
                ports.append(probe.getsockname()[1])
    finally:
        for probe in held:
            probe.close()
    return ports


def belonging_to(folder: Path) -> dict[int, Process]:
    """Every living process that carries this folder's mark, but ourselves."""
    mark = f"{MARK}={folder}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        started = start_time(int(entry.name)) if mark in _environment(int(entry.name)) else None
        if started is not None:
            found[int(entry.name)] = Process(int(entry.name), started)
    return found


def _environment(pid: int) -> list[bytes]:
    """Empty where it is another user's, or gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def send(processes: Iterable[Process], number: int) -> None:
    for process in processes:
        if alive(process):
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:                 # it ended in between
                pass


def stop(processes: Iterable[Process], seconds: float) -> None:
    """SIGTERM, then, for those that stay, SIGKILL; returns when all are gone."""
    waiting = list(processes)
    send(waiting, signal.SIGTERM)
    give_up = time.monotonic() + seconds
    killed = False
    while waiting := [process for process in waiting if alive(process)]:
        reap()
        if time.monotonic() > give_up and not killed:
            send(waiting, signal.SIGKILL)
            killed = True
        if time.monotonic() > give_up + 10:
            raise CliError("failure.stop", f"process {waiting[0].pid} cannot be ended", FAILURE, f"ps -fp {waiting[0].pid}")
        time.sleep(POLL_SECONDS)
