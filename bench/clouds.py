"""Measurements in a cloud: memory of idle VMs, and what a live move costs.

Owns:    these measurements. Never: leaves a cloud running. Threads: none.
"""

import time
from pathlib import Path

from bench.measure import Figure, cloud, spread, tiny_guest, virga, virga_json

IDLE_SECONDS = 5


def memory(runs: int) -> list[Figure]:
    """PSS of VM processes with an idle Linux, guest memory included, as the agent reports it."""
    with cloud(1) as state:
        virga("image", "build", "debian-cloud", state=state)
        virga("vm", "create", "idle", "--image", "debian-cloud", "--count", "2", state=state)
        virga("image", "import", "tiny", "--kernel", tiny_guest(), "--append", "idle", "--ready-marker", "# ready", state=state)
        virga("vm", "create", "tiny", "--image", "tiny", state=state)
        time.sleep(IDLE_SECONDS)
        linux = [virga_json("vm", "exits", f"idle-{i}", state=state)["memory_bytes"] / 2**20 for i in (1, 2)]
        tiny = virga_json("vm", "exits", "tiny", state=state)["memory_bytes"] / 2**20
    return [Figure("memory (PSS) of a VM with an idle Linux of 256 MiB", spread(linux, "MiB", 1), "python -m bench memory"),
            Figure("memory (PSS) of a VM with the tiny guest", f"{tiny:.1f} MiB", "python -m bench memory")]


def gap(runs: int) -> list[Figure]:
    """Moves of a 256 MiB guest between two nodes, there and back."""
    figures = []
    with cloud(2) as state:
        for name, append in (("idle", "count rate=20"), ("20 MB/s dirtying", "count rate=20 dirty=20 span=64")):
            image = f"tiny-{append.count('dirty')}"
            virga("image", "import", image, "--kernel", tiny_guest(), "--append", append, "--ready-marker", "# ready", state=state)
            figures += moves(state, image, f"a tiny guest of 256 MiB, {name}", runs)
        try:
            virga("image", "build", "debian-cloud", state=state)
        except Exception as error:
            return [*figures, Figure("moves of Linux", None, "python -m bench gap", str(error))]
        return figures + moves(state, "debian-cloud", "Linux of 256 MiB, idle", runs)


def moves(state: Path, image: str, what: str, runs: int) -> list[Figure]:
    virga("vm", "create", "mover", "--image", image, "--memory", "256M", state=state)
    records = [virga_json("vm", "migrate", "mover", state=state) for _ in range(max(2, runs))]
    virga("vm", "delete", "mover", state=state)
    command = "python -m bench gap"
    return [Figure(f"gap of a move: {what}", spread([r["gap_ms"] for r in records], "ms", 1), command,
                   f"of it the decision {spread([r['decision_ms'] for r in records], 'ms', 1)}"),
            Figure(f"whole move: {what}", spread([r["total_ms"] for r in records], "ms", 0), command,
                   f"{max(r['rounds'] for r in records)} rounds, {max(r['bytes'] for r in records) / 2**20:.0f} MiB at most")]
