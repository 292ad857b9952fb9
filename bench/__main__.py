"""`python -m bench [NAME…] [--runs N]`: the table of measurements, and the page they are written to.

Owns:    bench/RESULTS.md. A run of some leaves the other sections as they were.
Never:   judges: figures are told, not asserted.
Threads: none.
"""

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from bench import boot, clouds, whole
from bench.measure import ROOT, Figure, NotHere

RESULTS = Path(__file__).parent / "RESULTS.md"
# name → (heading, measurement)
TABLE = {
    "boot": ("Boot of Debian's cloud kernel", boot.boot),
    "speed": ("Speed of the interpreter", boot.speed),
    "virtual": ("Virtual clock", boot.virtual),
    "memory": ("Memory of a VM", clouds.memory),
    "gap": ("Live moves", clouds.gap),
    "setup": ("Set-up", whole.setup),
    "demo": ("Demo", whole.demo),
    "test": ("Tests", whole.test),
}


def host() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return (f"{model.group(1) if model else platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the end; "
            f"Linux {platform.release()}, Python {platform.python_version()}; commit {commit or 'unknown'}; "
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC")


def section(heading: str, figures: list[Figure]) -> str:
    rows = [f"| {f.what} | {f.value or 'not measured'} | `{f.command}` | {f.note.replace('|', '/')} |" for f in figures]
    return "\n".join([f"## {heading}", "", "| what | value | command | note |", "| --- | --- | --- | --- |", *rows, "",
                      f"*{host()}*", ""])


def write(sections: dict[str, str]) -> None:
    """Replace these sections of the page, keep the others, in the table's order."""
    old = {}
    if RESULTS.exists():
        for text in re.split(r"^(?=## )", RESULTS.read_text(), flags=re.M)[1:]:
            old[text.splitlines()[0].removeprefix("## ")] = text
    merged = {heading: sections.get(heading) or old.get(heading) for heading, _ in TABLE.values()}
    body = "\n".join(text.strip() + "\n" for text in merged.values() if text)
    RESULTS.write_text("# Results\n\nWritten by `make bench`; each section names the machine and the commit it was taken on.\n\n" + body)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("names", nargs="*", choices=[*TABLE, []], metavar="NAME", help=", ".join(TABLE))
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    sections = {}
    for name in arguments.names or TABLE:
        heading, measurement = TABLE[name]
        print(f"{heading} …", file=sys.stderr, flush=True)
        try:
            figures = measurement(arguments.runs)
        except NotHere as error:
            figures = [Figure(heading, None, f"python -m bench {name}", str(error))]
        for figure in figures:
            print(f"  {figure.what}: {figure.value or 'not measured'}" + (f"  ({figure.note})" if figure.note else ""), flush=True)
        sections[heading] = section(heading, figures)
        write(sections)
    return 0


if __name__ == "__main__":
    sys.exit(main())
