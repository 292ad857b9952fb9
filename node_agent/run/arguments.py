"""The arguments of `virga run`, and the MachineSpec that they mean.

    virga run [IMAGE | --kernel K [--initrd I] [--append S]] [--memory 256M] [--cpus N] [--disk F]…
              [--clock real|virtual] [--timeout S] [--stats F.json]

IMAGE is a kernel file, a folder with a manifest, or the name of an image that `virga image build` made.

Owns:    what the words mean.
Never:   opens a kernel: the loader does.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from node_agent.machine.spec import DiskSpec, MachineSpec, SpecError

UNITS = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="virga run", description="Run one machine, its serial port on this terminal. Ctrl-A X leaves.",
        epilog="Exit status: 0 power-off; (value << 1) | 1 debug exit; 124 time-out; 254 triple fault; 126 failure.")
    made.add_argument("image", nargs="?", metavar="IMAGE", help="an image's name or folder, or a kernel file")
    made.add_argument("--kernel", metavar="K", help="bzImage, vmlinux or multiboot 1 file")
    made.add_argument("--initrd", metavar="I", help="initial RAM disk")
    made.add_argument("--append", metavar="S", default="", help="kernel command line")
    made.add_argument("--module", metavar="M", action="append", default=[], help="multiboot module: file and arguments")
    made.add_argument("--memory", metavar="SIZE", default="256M", help="256M, 2G …; a bare number is MiB")
    made.add_argument("--cpus", metavar="N", type=int, default=1)
    made.add_argument("--disk", metavar="F", action="append", default=[], help="raw file; F,ro to write-protect it")
    made.add_argument("--clock", choices=("real", "virtual"), default="real")
    made.add_argument("--seed", metavar="N", type=int, default=0, help="of the virtual clock's random numbers")
    made.add_argument("--timeout", metavar="S", type=float, help="seconds of the host, then leave with 124")
    made.add_argument("--stats", metavar="F.json", help="write what was counted")
    return made


def memory_bytes(text: str) -> int:
    digits = text.upper().removesuffix("B").removesuffix("I")
    unit = digits[-1:] if digits[-1:] in UNITS else ""
    try:
        return int(digits.removesuffix(unit)) * UNITS[unit]
    except ValueError:
        raise SpecError("memory", f"{text!r} is no size; try 256M or 2G") from None


def disk(text: str) -> DiskSpec:
    return DiskSpec(text.removesuffix(",ro"), text.endswith(",ro"))


def images_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "virga" / "images"


def resolve_image(name: str) -> tuple[str, str | None, str]:
    """(kernel, initrd, append) of IMAGE. Raises SpecError."""
    if Path(name).is_file():
        return name, None, ""
    for folder in (Path(name), images_folder() / name):
        manifest = folder / "manifest.json"
        if manifest.is_file():
            return read_manifest(manifest)
    raise SpecError("image", f"{name!r} is neither a file nor a built image; try: virga image build {name}")


def read_manifest(manifest: Path) -> tuple[str, str | None, str]:
    try:
        content = json.loads(manifest.read_text())
        files = {part: str(manifest.parent / entry["file"]) for part, entry in content["files"].items()}
        return files["kernel"], files.get("initrd"), content.get("append", "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise SpecError("image", f"{manifest} is damaged; try: virga image build {manifest.parent.name}") from None


def machine_spec(arguments: argparse.Namespace, now_s: int) -> MachineSpec:
    """Raises SpecError."""
    if bool(arguments.image) == bool(arguments.kernel):
        raise SpecError("image", "say either IMAGE or --kernel")
    kernel, initrd, append = arguments.kernel, arguments.initrd, arguments.append
    if arguments.image:
        kernel, own_initrd, own_append = resolve_image(arguments.image)
        initrd = initrd or own_initrd
        append = f"{own_append} {append}".strip()
    spec = MachineSpec(
        kernel=kernel, initrd=initrd, append=append, modules=tuple(arguments.module),
        memory_bytes=memory_bytes(arguments.memory), cpus=arguments.cpus, clock=arguments.clock, seed=arguments.seed,
        disks=tuple(disk(text) for text in arguments.disk), rtc_epoch_s=now_s if arguments.clock == "real" else None)
    spec.check()
    return spec
