"""TLS towards a controller that is not on this machine's loopback.

Owns:    which files a connection needs, and what is wrong with those given.
Never:   lets a token travel in clear off loopback.
Threads: none.
"""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.errors import USAGE, CliError


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: the controller's authority, and our own certificate where the controller asks for one."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


def is_loopback(endpoint: str) -> bool:
    host = endpoint.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def credentials(endpoint: str, files: TlsFiles) -> Any:
    """grpc's credentials for a channel; None: in clear, on loopback only. Raises CliError."""
    if files.ca is None:
        if files.cert or files.key or not is_loopback(endpoint):
            why = "a certificate is shown" if files.cert or files.key else f"{endpoint} is off loopback"
            raise CliError("usage.tls", f"{why}, but no --tls-ca (VIRGA_TLS_CA) is given: tokens do not travel in clear",
                           USAGE, "--tls-ca FILE, the authority that signed the controller's certificate")
        return None
    if (files.cert is None) != (files.key is None):
        raise CliError("usage.tls", "--tls-cert and --tls-key go together", USAGE)
    import grpc

    try:
        read = [path.read_bytes() if path else None for path in (files.ca, files.key, files.cert)]
    except OSError as error:
        raise CliError("usage.tls", f"{error.filename}: {error.strerror}", USAGE) from None
    _check(files.ca, files.cert, files.key)
    return grpc.ssl_channel_credentials(*read)


def _check(ca: Path, cert: Path | None, key: Path | None) -> None:
    """grpc takes anything, and fails later without a word about which file."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    what = f"{ca} is no certificate of an authority"
    try:
        context.load_verify_locations(ca)
        if cert:
            what = f"{cert} and {key} are no certificate and its key"
            context.load_cert_chain(cert, key, password="")      # never asks the terminal for one
    except ssl.SSLError as error:
        raise CliError("usage.tls", f"{what} in PEM: {error.reason or error}", USAGE) from None
