"""Booting Debian's kernel: against QEMU's TCG, in instructions per second, and the virtual clock's sameness.

Owns:    these measurements. Never: changes the command line between rivals. Threads: none.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench.measure import ROOT, Figure, NotHere, debian_image, seconds_until, spread, tiny_guest

MARKER = b"virga: user space is up"
MEMORY_MIB = 256


def run_command(image: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "node_agent", "run", "--kernel", str(image / "kernel"), "--initrd", str(image / "initrd"),
            "--append", "console=ttyS0", "--memory", f"{MEMORY_MIB}M", *more]


def qemu_command(image: Path) -> list[str]:
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise NotHere("QEMU is not installed")
    # the CPU that Virga announces has no known leaks, so its Linux turns mitigations off; TCG's gets the same
    return [qemu, "-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", str(MEMORY_MIB), "-kernel", str(image / "kernel"),
            "-initrd", str(image / "initrd"), "-append", "console=ttyS0 mitigations=off", "-display", "none", "-serial", "stdio",
            "-no-reboot", "-nodefaults"]


def boot(runs: int) -> list[Figure]:
    """Seconds from the start of the command to the marker, by turns, so that a busy machine is as busy for both."""
    image, command = debian_image(), "python -m bench boot"
    seconds_until(run_command(image), MARKER)                 # the kernel is unpacked and cached once
    ours, theirs, why = [], [], ""
    for _ in range(runs):
        ours.append(seconds_until(run_command(image), MARKER))
        try:
            theirs.append(seconds_until(qemu_command(image), MARKER))
        except NotHere as error:
            why = str(error)
    figures = both("Linux to user space, 256 MiB, 1 CPU", ours, command)
    for cpus in (2, 4):
        many = [seconds_until(run_command(image, "--cpus", str(cpus)), MARKER) for _ in range(max(1, runs // 2))]
        figures += both(f"the same with {cpus} CPUs", many, command)
    rival = "QEMU TCG, same bzImage, initramfs, mitigations"
    if not theirs:
        return [*figures, Figure(rival, None, command, why)]
    ratios = [median(mine) / median(other) for mine, other in zip(zip(*ours), zip(*theirs))]
    return [*figures, *both(rival, theirs, command),
            Figure("ratio to TCG of the medians", f"{ratios[0]:.2f} × wall, {ratios[1]:.2f} × processor time", command)]


def both(what: str, times: list[tuple[float, float]], command: str) -> list[Figure]:
    wall, processor = zip(*times)
    return [Figure(what, spread(wall, "s"), command, f"processor time {spread(processor, 's')}")]


def stats_of(command: list[str]) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        done = subprocess.run([*command, "--stats", out.name], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True)
        try:
            return dict(json.loads(Path(out.name).read_text()), status=done.returncode)
        except ValueError:
            raise NotHere(f"virga run failed: {done.stderr.decode(errors='replace')[-200:]}") from None


def speed(runs: int) -> list[Figure]:
    """Instructions per second while the engine runs: a counting guest, and a boot that powers off by itself."""
    figures = []
    tiny = [sys.executable, "-m", "node_agent", "run", "--kernel", tiny_guest(), "--append", "work=400 exit=0"]
    rates = []
    for _ in range(runs):
        stats = stats_of(tiny)
        rates.append(stats["retired_instructions"] / stats["engine_seconds"] / 1e6)
    figures.append(Figure("integer loop of the tiny guest", spread(rates, "million instructions/s", 0), "python -m bench speed"))
    try:
        image = debian_image()
    except NotHere as error:
        return [*figures, Figure("a Linux boot", None, "python -m bench speed", str(error))]
    rates, counts = [], []
    for _ in range(runs):
        stats = stats_of([*run_command(image, "--append", "console=ttyS0 virga.poweroff"), "--timeout", "120"])
        rates.append(stats["retired_instructions"] / stats["engine_seconds"] / 1e6)
        counts.append(stats["retired_instructions"] / 1e9)
    return [*figures, Figure("a Linux boot and power-off", spread(rates, "million instructions/s", 0), "python -m bench speed",
                             f"{counts[-1]:.2f} thousand million instructions")]


def virtual(runs: int) -> list[Figure]:
    """Two boots by the virtual clock retire the same number of instructions."""
    image = debian_image()
    figures = []
    for cpus in (1, 2):
        command = run_command(image, "--append", "console=ttyS0 virga.poweroff", "--clock", "virtual", "--cpus", str(cpus),
                              "--timeout", "300")
        counts = {stats_of(command)["retired_instructions"] for _ in range(2)}
        figures.append(Figure(f"two boots by the virtual clock, {cpus} CPU{'s' if cpus > 1 else ''}",
                              f"{'equal' if len(counts) == 1 else 'NOT EQUAL'}: {' and '.join(f'{c:,}' for c in sorted(counts))}"
                              " instructions", "python -m bench virtual"))
    return figures
