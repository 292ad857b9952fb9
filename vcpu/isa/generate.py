"""Writes the generated handler extensions into build/gen/: python vcpu/isa/generate.py [family …].

Owns:    which families are generated.
Never:   imports anything compiled: it runs before the extensions exist, so it stands in for the package vcpu.
"""

import sys
import types
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAMILIES = ("integer", "x87", "sse")


def write(family: str) -> None:
    target = ROOT / "build" / "gen" / f"_{family}.pyx"
    text = import_module(f"vcpu.isa.emit_{family}").emit()
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() or target.read_text() != text:
        target.write_text(text)


def main(families: list[str]) -> None:
    package = types.ModuleType("vcpu")
    package.__path__ = [str(ROOT / "vcpu")]
    sys.modules["vcpu"] = package
    for family in families or FAMILIES:
        write(family)


if __name__ == "__main__":
    main(sys.argv[1:])
