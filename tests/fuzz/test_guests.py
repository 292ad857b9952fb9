"""Nothing that a guest does crashes, hangs or raises in the process that runs it."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = float(os.environ.get("VIRGA_FUZZ_SECONDS", "6"))


@pytest.mark.parametrize("cpus", [1, 2])
def test_random_programs(tmp_path: Path, cpus: int) -> None:
    """VIRGA_FUZZ_SEED=N repeats a run; VIRGA_FUZZ_SECONDS=N makes it longer."""
    seed = int(os.environ.get("VIRGA_FUZZ_SEED", random.SystemRandom().getrandbits(32)))
    note = tmp_path / "program"
    script = Path(__file__).with_name("guest_fuzz.py")
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-X", "faulthandler", script, str(seed), str(SECONDS), note, str(cpus)],
                          text=True, capture_output=True, timeout=SECONDS + 60, cwd=root,
                          env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 0, \
        f"seed {seed}, {cpus} CPUs, program {note.read_text() if note.exists() else '?'}\n{done.stderr[-2000:]}"
    assert int(done.stdout) > 20
