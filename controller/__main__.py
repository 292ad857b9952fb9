"""`python -m controller`: the composition root.

Owns:    the process: its arguments, log, lock, signals, and the real clock, randomness and etcd.
Never:   anything else.
Threads: one event loop; Prometheus serves its page from a thread of its own.
"""

import asyncio
import fcntl
import json
import logging
import os
import random
import secrets
import signal
import ssl
import sys
import time
from pathlib import Path
from typing import IO

os.environ.setdefault("GRPC_VERBOSITY", "NONE")     # before grpc is imported: the log is JSON lines, ours alone

import grpc
from prometheus_client import CollectorRegistry, start_http_server

from controller.api.access import BadTokens, Tokens
from controller.config import Config, parse
from controller.controller import Controller
from controller.etcd.client import EtcdClient
from controller.etcd.types import EtcdError, EtcdRefused, EtcdUnavailable
from controller.metrics import Metrics

log = logging.getLogger("controller")
EXIT_BAD_SETUP = 3


class SetupError(Exception):
    """Something about this machine or these files; its text is for people."""


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "component": "controller",
                "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def main() -> int:
    config = parse(sys.argv[1:])
    handler = logging.StreamHandler(sys.stderr)
    if not sys.stderr.isatty():
        handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        with _locked(config.state) as lock:
            asyncio.run(_run(config, _folder_uid(lock)))
    except SetupError as error:
        log.error("%s", error)
        return EXIT_BAD_SETUP
    return 0


async def _run(config: Config, folder_uid: str) -> None:
    metrics = Metrics(CollectorRegistry())
    tokens = Tokens(config.token_file, config.agent_tokens)
    try:
        tokens.load()
    except BadTokens as error:
        raise SetupError(str(error)) from error
    rng = random.SystemRandom()                # tokens and ids come from the system's randomness
    etcd = EtcdClient(config.etcd_endpoints, rng=rng, observe=metrics.etcd)
    controller = Controller(etcd, config.state, tokens, config.policy, metrics, folder_uid=folder_uid, clock=time.time,
                            monotonic=lambda: time.clock_gettime(time.CLOCK_BOOTTIME), rng=rng)
    _serve_metrics(config.metrics, metrics)
    serving = asyncio.create_task(_serve(controller, etcd, config))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        log.info("stopped")
    finally:
        await etcd.close()


async def _serve(controller: Controller, etcd: EtcdClient, config: Config) -> None:
    while True:
        try:
            log.info("etcd %s at %s", await etcd.check(), ",".join(config.etcd_endpoints))
            break
        except EtcdRefused as error:
            raise SetupError(str(error)) from error
        except EtcdUnavailable as error:
            log.warning("waiting for etcd at %s: %s", ",".join(config.etcd_endpoints), error)
            await asyncio.sleep(0.5)
        except EtcdError as error:
            raise SetupError(f"etcd at {','.join(config.etcd_endpoints)}: {error}") from error
    try:
        await controller.serve(config.listen, _credentials(config))
    except (OSError, RuntimeError) as error:
        raise SetupError(f"cannot serve on {config.listen}: {error}") from error


def _credentials(config: Config) -> grpc.ServerCredentials | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    try:
        ca = config.tls_client_ca.read_bytes() if config.tls_client_ca else None
        pair = config.tls_key.read_bytes(), config.tls_cert.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read TLS files: {error}") from error
    _check_tls(config.tls_cert, config.tls_key, config.tls_client_ca)
    return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=ca is not None)


def _check_tls(cert: Path, key: Path, client_ca: Path | None) -> None:
    """grpc would say of any of them that it cannot bind to the address. Raises SetupError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    what = f"{cert} and {key} are no certificate and its key"
    try:
        context.load_cert_chain(cert, key, password="")          # never asks a terminal for one
        if client_ca:
            what = f"{client_ca} is no certificate of an authority"
            context.load_verify_locations(client_ca)
    except ssl.SSLError as error:
        raise SetupError(f"{what} in PEM: {error.reason or error}") from error


def _serve_metrics(address: str, metrics: Metrics) -> None:
    if address:
        host, _, port = address.rpartition(":")
        try:
            start_http_server(int(port), host.strip("[]"), metrics.registry)
        except OSError as error:
            raise SetupError(f"cannot serve metrics on {address}: {error.strerror}") from error


def _locked(state: Path) -> IO[bytes]:
    """The folder is this process's as long as the file is open. Raises SetupError."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = open(state / "controller.lock", "a+b")
    except OSError as error:
        raise SetupError(f"cannot use {state}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise SetupError(f"another controller runs with {state}") from error
    return lock


def _folder_uid(lock: IO[bytes]) -> str:
    """An identity of the folder, kept in the lock file itself; a new one where it was damaged."""
    lock.seek(0)
    uid = lock.read(64).decode(errors="replace").strip()
    if len(uid) != 32:
        uid = secrets.token_hex(16)
        lock.truncate(0)
        lock.write(uid.encode())
        lock.flush()
        os.fsync(lock.fileno())
    return uid


if __name__ == "__main__":
    sys.exit(main())
