"""How results are printed: -o table|wide|json|yaml|name on stdout; progress on stderr and only on a terminal.

Owns:    the formats and the rule about terminals and NO_COLOR.
Never:   mixes data and progress: what a pipe reads is data alone.
Threads: none.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FORMATS = ("table", "wide", "json", "yaml", "name")
Record = Mapping[str, Any]
COLOURS = {"RUNNING": "green", "READY": "green", "up": "green", "SUCCEEDED": "green", "CRASHED": "red", "LOST": "red",
           "down": "red", "FAILED": "red", "UNKNOWN": "yellow", "PENDING": "yellow", "PAUSED": "cyan", "no": "red"}


class Columns:
    """Columns of a kind of record: heading → key; the wide ones are added by -o wide."""

    def __init__(self, narrow: Mapping[str, str], wide: Mapping[str, str] | None = None, name: str = "name") -> None:
        self.narrow, self.wide, self.name = narrow, wide or {}, name

    def of(self, form: str) -> dict[str, str]:
        return {**self.narrow, **self.wide} if form == "wide" else dict(self.narrow)


def emit(records: Sequence[Record] | Record, form: str, columns: Columns) -> None:
    """Print one record or a list of them. json and yaml keep the shape: one record is an object, not a list."""
    rows = [records] if isinstance(records, Mapping) else list(records)
    if form == "json":
        print(json.dumps(records, indent=2))
    elif form == "yaml":
        print("\n".join(yaml_lines(records)))
    elif form == "name":
        for row in rows:
            print(row[columns.name])
    else:
        table(rows, columns.of(form))


def table(rows: Iterable[Record], columns: Mapping[str, str]) -> None:
    """Aligned columns; on a terminal with colour for states."""
    cells = [[text(row.get(key)) for key in columns.values()] for row in rows]
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR") and cells:
        rich_table(list(columns), cells)
        return
    grid = [list(columns), *cells]
    widths = [max(len(row[i]) for row in grid) for i in range(len(columns))]
    for row in grid:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def rich_table(headings: list[str], cells: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        shown.add_column(heading, no_wrap=True)
    for row in cells:
        shown.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    Console(highlight=False, soft_wrap=True).print(shown)


def text(value: Any) -> str:
    """A cell: nothing is "-", a mapping k=v,…"""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, Mapping):
        return ",".join(f"{k}={text(v)}" for k, v in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ",".join(text(v) for v in value) or "-"
    return str(value)


def yaml_lines(value: Any, indent: int = 0) -> list[str]:
    """The value as YAML 1.2 block style; scalars as JSON, which YAML contains."""
    pad = "  " * indent
    if isinstance(value, Mapping) and value:
        lines = []
        for key, item in value.items():
            if isinstance(item, (Mapping, list, tuple)) and item:
                lines += [f"{pad}{key}:", *yaml_lines(item, indent + 1)]
            else:
                lines.append(f"{pad}{key}: {json.dumps(item)}")
        return lines
    if isinstance(value, (list, tuple)) and value:
        lines = []
        for item in value:
            first, *rest = yaml_lines(item, indent + 1)
            lines += [f"{pad}- {first.lstrip()}", *rest]
        return lines
    return [pad + json.dumps(value)]


def age(seconds: float) -> str:
    """42 s, 7 min, 3 h, 2 d: the largest unit that has a whole one."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def byte_size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


class Progress:
    """Lines on stderr, where a person sits; silent elsewhere."""

    def __init__(self, shown: bool | None = None) -> None:
        self.shown = sys.stderr.isatty() if shown is None else shown

    def line(self, message: str) -> None:
        if self.shown:
            print(message, file=sys.stderr, flush=True)

    def phase(self, who: str, what: str, seconds: float, detail: str = "") -> None:
        self.line(f"{who}  {what:<22} {seconds:6.1f} s" + (f"   {detail}" if detail else ""))
