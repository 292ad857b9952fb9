"""What an agent was told at its start.

Owns:    the command line and its checks.
Never:   opens anything.
Threads: none.
"""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path

from node_agent.migration.stream import is_loopback

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Config:
    name: str
    state: Path
    controller: str
    token_file: Path
    metrics: str
    memory_bytes: int
    cpus: int
    labels: dict[str, str]
    address: str                     # where other nodes reach this one's migration ports
    tls_ca: Path | None = None       # of the controller and of the other nodes
    tls_cert: Path | None = None
    tls_key: Path | None = None
    zygote: tuple[str, ...] = ()     # how to start one; empty: our own


def size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 512M or 4G")
    return int(match[1]) * _UNITS[match[2].upper()]


def labels(text: str) -> dict[str, str]:
    out = {}
    for word in filter(None, text.split(",")):
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise argparse.ArgumentTypeError(f"{word!r} is no label; write key=value")
        out[key] = value
    return out


def name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name: lower-case letters, digits and dashes, at most 63")
    return text


def parse(argv: list[str]) -> Config:
    parser = argparse.ArgumentParser(prog="python -m node_agent agent", description="The agent of one node.")
    parser.add_argument("--name", type=name, required=True)
    parser.add_argument("--state", type=Path, required=True, help="the node's folder")
    parser.add_argument("--controller", required=True, help="host:port")
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--metrics", default="", help="host:port of /metrics; empty: none")
    parser.add_argument("--memory", type=size, required=True, help="offered to VMs, e.g. 4G")
    parser.add_argument("--cpus", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--labels", type=labels, default={})
    parser.add_argument("--address", default="127.0.0.1", help="where other nodes reach this one")
    parser.add_argument("--tls-ca", type=Path)
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    a = parser.parse_args(argv)
    if a.memory < 1 << 20:
        parser.error("--memory must be at least 1M")
    if a.cpus < 1:
        parser.error("--cpus must be at least 1")
    host, _, port = a.controller.rpartition(":")
    if not host or not port.isdigit():
        parser.error(f"--controller {a.controller!r}: write host:port")
    if a.tls_ca is None and not is_loopback(host.strip("[]")):
        parser.error(f"--controller {a.controller} is off loopback: give --tls-ca, tokens do not travel in clear")
    if (a.tls_cert is None) != (a.tls_key is None):
        parser.error("--tls-cert and --tls-key go together")
    if a.tls_cert is None and not is_loopback(a.address):
        parser.error(f"--address {a.address} is off loopback: give --tls-cert and --tls-key for the memory stream")
    return Config(a.name, a.state.resolve(), a.controller, a.token_file, a.metrics, a.memory, a.cpus, a.labels,
                  a.address, a.tls_ca, a.tls_cert, a.tls_key)
