"""`virga run` as people call it, with the tiny guest: output, input by a pipe, exit statuses, statistics."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, "-m", "node_agent", "run"]
PATIENCE_S = 60


@pytest.fixture(scope="module")
def tiny():
    done = subprocess.run([sys.executable, "-m", "node_agent", "guest", "path"], cwd=ROOT, check=True, text=True,
                          capture_output=True)
    return done.stdout.strip()


def run(*words, **options):
    return subprocess.run([*RUN, *words], cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=False, **options)


@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_hello(tiny, clock, tmp_path):
    done = run(tiny, "--append", "hello", "--clock", clock, "--stats", str(tmp_path / "stats.json"))
    assert done.returncode == 0, done.stderr
    assert b"hello" in done.stdout.lower()
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert stats["retired_instructions"] > 100 and stats["exits"]["io_instruction"] > 5
    assert 0 < stats["engine_seconds"] and 0 < stats["wall_seconds"]


def test_virtual_runs_are_equal(tiny, tmp_path):
    counts = []
    for name in ("one", "two"):
        run(tiny, "--append", "count until=30", "--clock", "virtual", "--stats", str(tmp_path / name))
        stats = json.loads((tmp_path / name).read_text())
        counts.append((stats["retired_instructions"], stats["exits"], stats["guest_seconds"]))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("words, status, text", [
    (["--append", "hello exit=5"], 11, b""),
    (["--append", "triplefault"], 254, b"rip"),
    (["--append", "spin", "--timeout", "1"], 124, b""),
    (["--memory", "0"], 126, b"memory"),
    (["--cpus", "0"], 126, b"cpus"),
    (["--disk", "/nonexistent/disk"], 126, b"/nonexistent/disk"),
])
def test_exit_statuses(tiny, words, status, text):
    done = run(tiny, *words)
    assert done.returncode == status, done.stderr
    assert text in done.stderr


@pytest.mark.parametrize("content, text", [(None, b"neither a file"), (b"", b"is empty"), (b"text" * 1000, b"no kernel")])
def test_what_is_no_kernel(tmp_path, content, text):
    path = tmp_path / "kernel"
    if content is not None:
        path.write_bytes(content)
    done = run(str(path))
    assert done.returncode == 126 and text in done.stderr


def test_output_that_is_lost_is_a_failure(tiny):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*RUN, tiny, "--append", "hello"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE,
                              timeout=PATIENCE_S, check=False)
    assert done.returncode == 126 and b"No space left" in done.stderr


def test_input_by_a_pipe(tiny):
    process = subprocess.Popen([*RUN, tiny, "--append", "echo"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        seen = b""
        while not seen.endswith(b"\n"):
            seen += os.read(process.stdout.fileno(), 100)
        process.stdin.write(b"over and out\n")
        process.stdin.flush()
        while b"over and out" not in seen:
            seen += os.read(process.stdout.fileno(), 100)
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 128 + 15
        process.stdin.close()
        process.stdout.close()


def test_control_a_x_leaves_a_terminal_as_it_was(tiny):
    import termios

    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen([*RUN, tiny, "--append", "count"], cwd=ROOT, stdin=slave, stdout=slave)
    try:
        seen = b""
        while seen.count(b"\n") < 3:
            seen += os.read(master, 100)
        assert termios.tcgetattr(slave) != before
        os.write(master, b"\x01x")
        end = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        assert process.returncode == 0
        assert termios.tcgetattr(slave) == before
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)
        os.close(slave)
