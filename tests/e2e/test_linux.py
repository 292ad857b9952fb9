"""Debian's kernel by `virga run`: to a shell and off again, by both clocks, with one and two processors."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE_S = 150
# kernel and user space come up whole, drivers and all, and power off: nothing from outside takes part
OFF = "quiet virga.poweroff"


@pytest.fixture(scope="module")
def debian():
    done = subprocess.run([sys.executable, "-m", "node_agent", "image", "build", "debian-cloud"], cwd=ROOT, text=True,
                          capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no debian-cloud image: {done.stderr.strip()}")
    return str(Path(done.stdout.strip().splitlines()[-1]).parent)


def command(image, *words):
    return [sys.executable, "-m", "node_agent", "run", image, "--timeout", str(PATIENCE_S), *words]


class Console:
    """A machine on two pipes."""

    def __init__(self, *words) -> None:
        self.process = subprocess.Popen(command(*words), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.seen = b""

    def wait_for(self, text: bytes) -> None:
        end = time.monotonic() + PATIENCE_S
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while text not in self.seen:
                assert selector.select(end - time.monotonic()), f"no {text!r} in {self.seen[-2000:]!r}"
                data = os.read(self.process.stdout.fileno(), 65536)
                assert data, f"it ended without {text!r}: {self.seen[-2000:]!r}"
                self.seen += data

    def type(self, text: bytes) -> None:
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_shell_with_disk_and_power_off(debian, tmp_path, cpus):
    disk = tmp_path / "disk"
    disk.write_bytes(b"written by the host\n".ljust(1 << 20, b"\0"))
    with Console(debian, "--cpus", str(cpus), "--disk", str(disk)) as console:
        console.wait_for(b"virga: user space is up")
        console.type(b"echo cpus=$(nproc) $(cat /sys/devices/system/clocksource/clocksource0/available_clocksource)\n")
        console.wait_for(f"cpus={cpus} tsc kvm-clock".encode())
        console.type(b"head -n 1 /dev/vda; echo by the guest | dd of=/dev/vda bs=512 seek=1 conv=fsync; echo rc=$?\n")
        console.wait_for(b"written by the host\r\n")
        console.wait_for(b"rc=0")
        console.type(b"poweroff -f\n")
        assert console.process.wait(PATIENCE_S) == 0
    assert disk.read_bytes()[512:].startswith(b"by the guest\n")


@pytest.mark.parametrize("cpus", [1, 2])
def test_two_boots_in_virtual_time_are_the_same(debian, tmp_path, cpus):
    counts = []
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    for name in ("one", "two"):
        stats = tmp_path / name
        done = subprocess.run(command(debian, "--cpus", str(cpus), "--clock", "virtual", "--append", OFF, "--stats",
                                      str(stats), "--disk", str(tmp_path / "disk")), cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        counts.append(json.loads(stats.read_text()))
    for what in ("retired_instructions", "exits", "guest_seconds"):
        assert counts[0][what] == counts[1][what]
