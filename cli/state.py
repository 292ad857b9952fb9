"""The folder of a local cloud: where it is, and cloud.json, which says what was started.

Owns:    cloud.json (names, ports, processes by pid and start time).
Never:   repairs or removes a file it cannot read: a corrupt one is an error that names it.
Threads: none; `virga up` and `down` hold the folder's lock.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cli.errors import CONFLICT, FAILURE, NOT_FOUND, CliError

VERSION = 1


@dataclass
class Process:
    pid: int
    start_time: int              # clock ticks since boot, field 22 of /proc/PID/stat: a pid alone may be reused


@dataclass
class Cloud:
    """What `virga up` wrote down."""

    nodes: list[str]
    ports: dict[str, int]        # etcd, etcd-peer, controller, controller-metrics, node-1-metrics …
    node_memory: str = "4G"
    node_cpus: int = 4
    etcd_endpoints: str = ""     # set: somebody else's etcd
    processes: dict[str, Process] = field(default_factory=dict)
    version: int = VERSION


def folder(given: str | None = None) -> Path:
    """--state, VIRGA_STATE, or the XDG state directory."""
    chosen = given or os.environ.get("VIRGA_STATE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "virga"


def load(state: Path) -> Cloud | None:
    """The cloud of this folder; None where none was made."""
    path = state / "cloud.json"
    try:
        raw = json.loads(path.read_text())
        if raw["version"] != VERSION:
            raise CliError("state.version", f"{path} was written by another version of Virga ({raw['version']})", FAILURE,
                           "use that version, or another --state folder")
        raw["processes"] = {name: Process(int(p["pid"]), int(p["start_time"])) for name, p in raw["processes"].items()}
        cloud = Cloud(**raw)
        if not (isinstance(cloud.nodes, list) and all(isinstance(port, int) for port in cloud.ports.values())):
            raise ValueError("nodes or ports are no such thing")
        return cloud
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CliError("state.corrupt", f"{path} cannot be read: {error}", FAILURE,
                       f"restore it, or move the folder away: mv {state} {state}.bad") from None
    except OSError as error:
        raise CliError("state.unreadable", f"{path}: {error.strerror}", FAILURE) from None


def load_existing(state: Path) -> Cloud:
    cloud = load(state)
    if cloud is None:
        raise CliError("not_found.cloud", f"no cloud in {state}", NOT_FOUND, "virga up, or --state DIR for another one")
    return cloud


def save(state: Path, cloud: Cloud) -> None:
    """Whole or not at all: written beside it, then renamed."""
    partial = state / f".cloud.json.{os.getpid()}"
    with open(partial, "w") as out:
        json.dump(asdict(cloud), out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, state / "cloud.json")


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """One `up` or `down` at a time on a folder."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = open(state / "lock", "w")
    except OSError as error:
        raise CliError("state.unwritable", f"{error.filename}: {error.strerror}", FAILURE, "another --state folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CliError("conflict.state", f"another virga up or down works on {state}", CONFLICT,
                           "wait for it") from None
        yield
