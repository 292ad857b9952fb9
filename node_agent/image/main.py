"""`python -m node_agent image build NAME`: makes a guest image in the cache, prints its manifest's path.

Owns:    the cache's layout: CACHE/images/NAME/{manifest.json, kernel, initrd}. A manifest is written last, by rename.
Never:   talks to a cloud: uploading is the command line's work.
Threads: none; builds side by side wait for each other on a lock.
"""

import argparse
import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from node_agent.image import debian

BUILDERS = ("debian-cloud",)
INSTEAD = "take any kernel instead: virga image import NAME --kernel FILE [--initrd FILE] [--append TEXT]"


def cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "virga"


def recipe() -> str:
    """A hash of all that decides what the image is like, the packages' versions aside."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.iterdir()):
        if source.suffix in (".py", ".sh"):
            digest.update(source.read_bytes())
    return digest.hexdigest()


def load_cached(folder: Path) -> dict | None:
    """The manifest, if it was made by this recipe and its files are whole; else None."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        whole = all((folder / part["file"]).stat().st_size == part["size"] for part in manifest["files"].values())
        return manifest if manifest["recipe"] == recipe() and whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_atomically(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def build(name: str, cache: Path, say: Callable[[str], None], refresh: bool = False) -> Path:
    """Make the image unless it is there; returns the manifest's path."""
    folder = cache / "images" / name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not refresh and load_cached(folder):
            say("cached")
            return folder / "manifest.json"
        parts = debian.fetch_and_assemble(cache / "apt", say)
        files = {"kernel": parts.kernel, "initrd": parts.initrd}
        for part, data in files.items():
            write_atomically(folder / part, data)
        manifest = {"name": name, "kind": "linux", "version": parts.version, "append": debian.APPEND,
                    "ready_marker": debian.READY_MARKER, "recipe": recipe(),
                    "files": {part: {"file": part, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                              for part, data in files.items()}}
        write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    return folder / "manifest.json"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m node_agent image")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("build", help="make an image, print its manifest's path")
    making.add_argument("name", choices=BUILDERS)
    making.add_argument("--cache", type=Path, default=cache_root())
    making.add_argument("--refresh", action="store_true", help="ask for newer packages, build again")
    arguments = parser.parse_args(argv)
    start = time.monotonic()

    def say(step: str) -> None:
        print(f"{time.monotonic() - start:6.1f} s  {step}", file=sys.stderr, flush=True)

    try:
        print(build(arguments.name, arguments.cache, say, arguments.refresh))
    except debian.ImageError as error:
        print(f"virga: {arguments.name} cannot be built here: {error}.\n  {INSTEAD}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"virga: {arguments.name} cannot be built here: {error}", file=sys.stderr)
        return 1
    say("done")
    return 0
