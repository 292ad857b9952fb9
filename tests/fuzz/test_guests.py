"""Nothing that a guest does crashes, hangs or raises in the process that runs it."""

import os
import random
import subprocess
import sys
from pathlib import Path

SECONDS = float(os.environ.get("VIRGA_FUZZ_SECONDS", "10"))


def test_random_programs(tmp_path: Path) -> None:
    """VIRGA_FUZZ_SEED=N repeats a run; VIRGA_FUZZ_SECONDS=N makes it longer."""
    seed = int(os.environ.get("VIRGA_FUZZ_SEED", random.SystemRandom().getrandbits(32)))
    note = tmp_path / "program"
    script = Path(__file__).with_name("guest_fuzz.py")
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-X", "faulthandler", script, str(seed), str(SECONDS), note], text=True,
                          capture_output=True, timeout=SECONDS + 60, cwd=root,
                          env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 0, f"seed {seed}, program {note.read_text()}\n{done.stderr[-2000:]}"
    assert int(done.stdout) > 100
