"""Kernel modules: what each says about itself, and the index files that modprobe reads.

Owns:    reading .modinfo (Linux include/linux/moduleinfo.h), the closure of dependencies, modules.dep and
         modules.alias. depmod is a host's tool that need not be there.
Never:   runs anything.
Threads: none.
"""

import lzma
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Module:
    path: str                    # below lib/modules/VERSION/
    data: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


def module_name(path: str) -> str:
    """kernel/drivers/char/hw_random/virtio-rng.ko.xz → virtio_rng"""
    return path.rsplit("/", 1)[-1].split(".ko")[0].replace("-", "_")


def parse(path: str, data: bytes) -> Module:
    """A module from its file; a compressed one is unpacked, since insmod of busybox takes plain ELF alone."""
    if path.endswith(".xz"):
        path, data = path[:-3], lzma.decompress(data)
    info = [item.decode("utf-8", "replace") for item in _section(data, b".modinfo").split(b"\0") if item]
    depends = [item[8:] for item in info if item.startswith("depends=")]
    return Module(path, data, tuple(name.replace("-", "_") for text in depends for name in text.split(",") if name),
                  tuple(item[6:] for item in info if item.startswith("alias=")))


def _section(elf: bytes, wanted: bytes) -> bytes:
    """A section of a 64-bit ELF by its name (System V ABI, section header table)."""
    if elf[:5] != b"\x7fELF\x02":
        raise ValueError("not a 64-bit ELF module")
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    names = headers[names_index][4]
    for name, _, _, _, offset, length in headers:
        if elf[names + name:elf.index(b"\0", names + name)] == wanted:
            return elf[offset:offset + length]
    return b""


def closure(wanted: Iterable[str], known: Mapping[str, Module]) -> list[Module]:
    """The wanted modules and all they need, each after what it needs. Names that don't exist are built in."""
    order: dict[str, Module] = {}

    def visit(name: str) -> None:
        module = known.get(name)
        if module is None or name in order:
            return
        for needed in module.depends:
            visit(needed)
        order[name] = module

    for name in wanted:
        visit(name)
    return list(order.values())


def modules_dep(modules: Iterable[Module]) -> str:
    """modules.dep: each module's path, a colon, and all it needs, nearest first."""
    known = {module_name(module.path): module for module in modules}
    lines = []
    for name, module in known.items():
        needed = [m.path for m in closure([name], known)][:-1]
        lines.append(f"{module.path}: {' '.join(reversed(needed))}".rstrip())
    return "".join(line + "\n" for line in lines)


def modules_alias(modules: Iterable[Module]) -> str:
    return "".join(f"alias {alias} {module_name(module.path)}\n" for module in modules for alias in module.aliases)
