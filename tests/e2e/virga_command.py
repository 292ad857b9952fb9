"""The `virga` command as a person uses it, against a cloud in a folder of its own."""

import fcntl
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path

from cli import processes

COUNT = re.compile(r"^(\d+)\r?$", re.M)


@dataclass
class Result:
    code: int
    out: str
    err: str


class Cloud:
    """Commands with --state set; status 0 is expected unless said otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", "cli.main", *words], env={**os.environ, "VIRGA_STATE": str(self.folder)},
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")

    def run(self, *words: str, code: int = 0) -> Result:
        child = self.start(*words)
        out, err = child.communicate(timeout=120)
        assert child.returncode == code, f"virga {' '.join(words)} → {child.returncode}\n{out}\n{err}\n{self.logs()}"
        return Result(child.returncode, out, err)

    def json(self, *words: str):
        return json.loads(self.run(*words, "-o", "json").out)

    def logs(self) -> str:
        tails = []
        for path in sorted((self.folder / "logs").glob("*.log")):
            tails.append(f"== {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-5:]))
        return "\n".join(tails)

    def pid(self, component: str) -> int:
        child = self.start("status", "-o", "json")               # status 1 where something is down
        return {row["name"]: row["pid"] for row in json.loads(child.communicate(timeout=60)[0])["components"]}[component]

    def numbers(self, vm: str) -> list[int]:
        return [int(number) for number in COUNT.findall(self.run("vm", "log", vm).out)]

    def counts_beyond(self, vm: str, number: int, seconds: float = 60) -> int:
        """Wait until it has; then every number from 1 on is there once. The last."""
        give_up = time.monotonic() + seconds
        while not (seen := self.numbers(vm)) or seen[-1] <= number:
            assert time.monotonic() < give_up, f"{vm} stands at {seen[-1:]}\n{self.logs()}"
            time.sleep(0.2)
        assert seen == list(range(1, seen[-1] + 1)), f"numbers missing or twice around {gaps(seen)}"
        return seen[-1]

    def becomes(self, vm: str, state: str, seconds: float = 30):
        """The VM's record, once it is in this state."""
        give_up = time.monotonic() + seconds
        while (record := self.json("vm", "show", vm))["state"] != state:
            assert time.monotonic() < give_up, f"{record}\n{self.logs()}"
            time.sleep(0.1)
        return record

    def vm_processes(self) -> list[int]:
        """VM processes: those of ours that listen at a VM's socket are children of a zygote."""
        zygotes = {pid for pid in processes.belonging_to(self.folder) if "zygote" in processes.command_line(pid)}
        parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                   for pid in processes.belonging_to(self.folder)}
        return [pid for pid, parent in parents.items() if parent in zygotes]


def gaps(seen: list[int]) -> list[tuple[int, int]]:
    return [(a, b) for a, b in zip(seen, seen[1:]) if b != a + 1][:5]


class Terminal:
    """A command on a terminal of its own, with somebody who types."""

    def __init__(self, cloud: Cloud, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        self._theirs = theirs
        self._seen = b""
        self._child = subprocess.Popen([sys.executable, "-m", "cli.main", *words], stdin=theirs, stdout=theirs, stderr=theirs,
                                       env={**os.environ, "VIRGA_STATE": str(cloud.folder)}, start_new_session=True,
                                       preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))

    def wait_for(self, text: bytes, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while text not in self._seen:
            assert select.select([self._ours], [], [], max(0, end - time.monotonic()))[0], f"no {text!r} in {self._seen!r}"
            self._seen += os.read(self._ours, 4096)

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self._theirs)[3] & termios.ICANON

    def ended(self) -> int:
        return self._child.wait(timeout=30)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.wait()
        os.close(self._ours)
        os.close(self._theirs)
