"""Compiles the tiny guest with the host's gcc and ld into build/guest/tiny.elf.

Owns:    the one place that knows how the guest is built and where it lies.
Never:   writes outside build/guest; leaves a half-written ELF (renamed into place).
Threads: none; safe to run from several processes at once.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TARGET = HERE.parent.parent / "build" / "guest" / "tiny.elf"
# i686 without SSE, position-dependent, no run-time library: the entry state of multiboot has none of that
CFLAGS = ["-m32", "-march=i686", "-mgeneral-regs-only", "-O2", "-Wall", "-Wextra", "-Wno-array-bounds", "-Werror=implicit", "-ffreestanding",
          "-fno-pic", "-fno-pie", "-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables",
          "-fno-builtin", "-fno-strict-aliasing"]
LDFLAGS = ["-m", "elf_i386", "-T", str(HERE / "tiny.ld"), "-nostdlib", "--build-id=none", "-z", "noexecstack",
           "-z", "max-page-size=4096"]


def sources() -> list[Path]:
    return sorted(HERE.glob("*.S")) + sorted(HERE.glob("*.c"))


def build(target: Path = TARGET) -> Path:
    """Compile and link; returns the ELF's path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = []
        for source in sources():
            made = Path(folder) / f"{source.stem}.o"
            subprocess.run(["gcc", *CFLAGS, "-c", str(source), "-o", str(made)], check=True)
            objects.append(str(made))
        elf = Path(folder) / target.name
        subprocess.run(["ld", *LDFLAGS, "-o", str(elf), *objects], check=True)
        os.replace(elf, target)
    return target


def ensure(target: Path = TARGET) -> Path:
    """The ELF, built again only when a source is newer."""
    inputs = [*sources(), *HERE.glob("*.h"), *HERE.glob("*.ld"), Path(__file__)]
    if target.exists() and all(p.stat().st_mtime <= target.stat().st_mtime for p in inputs):
        return target
    return build(target)


def main(argv: list[str]) -> int:
    """`python -m node_agent guest path|build`."""
    if argv not in (["path"], ["build"]):
        print("usage: python -m node_agent guest path|build", file=sys.stderr)
        return 2
    try:
        elf = ensure() if argv == ["path"] else build()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"virga: the tiny guest could not be built: {error}", file=sys.stderr)
        return 1
    if argv == ["path"]:
        print(elf)
    return 0
