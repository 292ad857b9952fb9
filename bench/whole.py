"""How long the commands of the README take.

Owns:    these measurements, in fresh clones below a temporary folder. Never: touches this tree. Threads: none.
"""

import subprocess
import tempfile
import time

from bench.measure import ROOT, Figure


def timed(what: str, command: list[str], folder: str) -> Figure:
    start = time.monotonic()
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = f"{time.monotonic() - start:.0f} s"
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode:
        return Figure(what, None, " ".join(command), f"failed with status {done.returncode} after {seconds}: {last}")
    return Figure(what, seconds, " ".join(command), last)


def setup(runs: int) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="virga-setup-") as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), f"{folder}/virga"], check=True)
        first = timed("set-up from a fresh clone", ["make", "build"], f"{folder}/virga")
        again = timed("set-up again, nothing to do", ["make", "build"], f"{folder}/virga")
    return [first, again]


def demo(runs: int) -> list[Figure]:
    return [timed("the demo, set-up done", ["make", "demo"], str(ROOT))]


def test(runs: int) -> list[Figure]:
    return [timed("all tests, set-up done", ["make", "test"], str(ROOT))]
