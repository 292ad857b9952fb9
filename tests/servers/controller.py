"""`python -m controller` as a process of its own, which can be killed and started again on the same state and port."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.servers.cloud import NODES
from tests.servers.etcd import free_port


class ControllerProcess:
    def __init__(self, folder: Path, etcd: str) -> None:
        self.address, self.metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self._folder, self._etcd = folder, etcd
        self._process = None
        folder.mkdir(exist_ok=True)
        (folder / "token").write_text("user-token")
        (folder / "agents.json").write_text(json.dumps({name: f"token-{name}" for name in NODES}))

    def start(self, *more: str) -> subprocess.Popen:
        with open(self._folder / "controller.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "controller", "--state", str(self._folder), "--listen", self.address, "--metrics",
                 self.metrics, "--etcd-endpoints", self._etcd, "--token-file", str(self._folder / "token"),
                 "--agent-tokens", str(self._folder / "agents.json"), *more], stdout=log, stderr=log,
                cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONWARNINGS": "default"})
        return self._process

    def log(self) -> list[dict]:
        return [json.loads(line) for line in (self._folder / "controller.log").read_text().splitlines()]

    def stop(self, number: int = signal.SIGTERM) -> int | None:
        if self._process is None:
            return None
        self._process.send_signal(number)
        status, self._process = self._process.wait(20), None
        return status

    def kill(self) -> None:
        self.stop(signal.SIGKILL)
