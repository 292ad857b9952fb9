"""What every benchmark needs: a figure, a cloud for the time of a measurement, and running `virga`.

Owns:    Figure; a throw-away cloud. Never: prints. Threads: one that reads a child's output with times.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "virga"


@dataclass(frozen=True)
class Figure:
    """One line of the results. value is None where it was not measured; then note says why."""

    what: str
    value: str | None
    command: str
    note: str = ""


class NotHere(Exception):
    """Something that this measurement needs is not on this machine."""


def spread(values: Sequence[float], unit: str, digits: int = 2) -> str:
    """median (least to greatest, of how many)"""
    return (f"{statistics.median(values):.{digits}f} {unit} ({min(values):.{digits}f} to {max(values):.{digits}f}, "
            f"{len(values)} runs)")


def virga(*words: str, state: Path | None = None, check: bool = True) -> str:
    environment = {**os.environ, **({"VIRGA_STATE": str(state)} if state else {})}
    done = subprocess.run([sys.executable, "-m", "cli.main", *words], cwd=ROOT, env=environment, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True)
    if check and done.returncode:
        raise NotHere(f"virga {' '.join(words)}: {(done.stderr.strip().splitlines() or ['failed'])[0]}")
    return done.stdout


def virga_json(*words: str, state: Path | None = None) -> Any:
    return json.loads(virga(*words, "-o", "json", state=state))


def debian_image() -> Path:
    """The folder of the built image."""
    return Path(virga("image", "build", "debian-cloud", "--no-upload").strip()).parent


def tiny_guest() -> str:
    return subprocess.run([sys.executable, "-m", "node_agent", "guest", "path"], cwd=ROOT, capture_output=True, text=True,
                          check=True).stdout.strip()


@contextmanager
def cloud(nodes: int) -> Iterator[Path]:
    """A cloud for the time of the block; its state folder."""
    folder = Path(tempfile.mkdtemp(prefix="virga-bench-"))
    try:
        virga("up", "--nodes", str(nodes), state=folder)
        yield folder
    finally:
        virga("down", "--force", state=folder, check=False)
        shutil.rmtree(folder)


def seconds_until(command: list[str], marker: bytes, timeout_s: float = 120) -> tuple[float, float]:
    """(wall, processor) seconds from starting the command to the marker in its output; the command is ended then.

    Processor seconds hold on a busy machine, wall seconds don't."""
    start = time.monotonic()
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert child.stdout is not None
    seen = b""
    try:
        os.set_blocking(child.stdout.fileno(), False)
        while time.monotonic() - start < timeout_s:
            data = child.stdout.read(65536)
            if data == b"":
                break
            seen += data or b""
            if marker in seen:
                wall = time.monotonic() - start
                child.kill()
                used = os.wait4(child.pid, 0)[2]
                child.returncode = -9                   # reaped here, for the sake of its rusage
                return wall, used.ru_utime + used.ru_stime
            time.sleep(0.002)
        raise NotHere(f"{command[0]} did not print {marker.decode()!r}: …{seen[-200:].decode(errors='replace')}")
    finally:
        if child.returncode is None:
            child.kill()
            child.wait()
        child.stdout.close()
        if child.stdin:
            child.stdin.close()
