"""What the controller is told when it starts.

Owns:    the arguments, and which of their combinations are refused.
Never:   reads the environment or files.
Threads: immutable.
"""

import argparse
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from controller.scheduler.placer import Policy
from controller.scheduler.scorers import POLICIES


@dataclass(frozen=True, slots=True)
class Config:
    state: Path
    listen: str
    metrics: str
    etcd_endpoints: tuple[str, ...]
    token_file: Path
    agent_tokens: Path
    tls_cert: Path | None
    tls_key: Path | None
    tls_client_ca: Path | None
    policy: Policy


def parse(arguments: Sequence[str]) -> Config:
    """Ends the process with a sentence and status 2 where arguments are wrong."""
    parser = argparse.ArgumentParser("controller", description="Virga's controller: API, scheduler, reconcilers.")
    parser.add_argument("--state", type=Path, required=True, help="folder of this cloud")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--metrics", default="", metavar="HOST:PORT", help="for Prometheus; none by default")
    parser.add_argument("--etcd-endpoints", required=True, metavar="HOST:PORT[,HOST:PORT…]")
    parser.add_argument("--token-file", type=Path, required=True, help="the user's token")
    parser.add_argument("--agent-tokens", type=Path, required=True, help="JSON: node name → token")
    parser.add_argument("--tls-cert", type=Path, help="needed to listen off loopback")
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--tls-client-ca", type=Path, help="callers must show a certificate of this authority")
    parser.add_argument("--scheduler", choices=sorted(POLICIES), default="spread")
    parser.add_argument("--memory-overcommit", type=_ratio, default=1.0)
    parser.add_argument("--cpu-overcommit", type=_ratio, default=4.0)
    given = parser.parse_args(arguments)
    for name in ("listen", "metrics"):
        value = getattr(given, name)
        if (value or name == "listen") and not _is_address(value):
            parser.error(f"--{name} must be HOST:PORT, not {value!r}")
    endpoints = tuple(endpoint for endpoint in given.etcd_endpoints.split(",") if endpoint)
    if not endpoints or not all(map(_is_address, endpoints)):
        parser.error(f"--etcd-endpoints must be HOST:PORT[,HOST:PORT…], not {given.etcd_endpoints!r}")
    if (given.tls_cert is None) != (given.tls_key is None):
        parser.error("--tls-cert and --tls-key go together")
    if given.tls_client_ca is not None and given.tls_cert is None:
        parser.error("--tls-client-ca needs --tls-cert and --tls-key: without TLS nobody shows a certificate")
    if given.tls_cert is None and not is_loopback(given.listen):
        parser.error(f"--listen {given.listen} is not loopback: that needs --tls-cert and --tls-key")
    return Config(given.state, given.listen, given.metrics, endpoints, given.token_file, given.agent_tokens,
                  given.tls_cert, given.tls_key, given.tls_client_ca,
                  Policy(given.scheduler, given.memory_overcommit, given.cpu_overcommit))


def is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and int(port) < 1 << 16


def _ratio(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 100:
        raise argparse.ArgumentTypeError("must be 0.1 to 100")
    return value
