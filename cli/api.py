"""The connection to a controller: channel, token, calls that repeat where that is safe, watches that resume.

Owns:    deadlines and repetition. A call is repeated on UNAVAILABLE only: every changing call of the API is
         idempotent or carries a request_id (virga/v1/vm.proto).
Never:   decides what a person sees; errors leave as CliError.
Threads: one; grpc's own threads are its own affair.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc

from cli import errors, state
from cli.tls import TlsFiles, credentials

CALL_SECONDS = 10.0              # a call's answer
PATIENCE_SECONDS = 6.0           # how long an absent controller is called again: it may just be restarting
PAUSE_SECONDS = 0.3
MESSAGE_BYTES = 16 << 20


class Api:
    """Stubs by service: api.vms.GetVm …, called through call() and watch()."""

    def __init__(self, endpoint: str, token: str, tls: TlsFiles = TlsFiles()) -> None:
        self.endpoint = endpoint
        self._metadata = (("authorization", f"Bearer {token}"),)
        options = [("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.enable_retries", 0),
                   ("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000),
                   ("grpc.enable_http_proxy", 0)]
        secret = credentials(endpoint, tls)
        self._secure = secret is not None
        self._channel = (grpc.secure_channel(endpoint, secret, options) if self._secure
                         else grpc.insecure_channel(endpoint, options))

    def close(self) -> None:
        self._channel.close()

    def _error(self, error: Any, name: str = "") -> errors.CliError:
        """For people. Under TLS silence has many reasons, which only grpc's own words tell apart."""
        found = errors.from_rpc(error, name)
        if self._secure and found.kind == "unreachable":
            found.details = (*found.details, " ".join(error.details().split()))
            found.hint = f"is {self.endpoint} right, and are --tls-ca, --tls-cert and --tls-key of its authority?"
        return found

    @cached_property
    def vms(self) -> Any:
        from virga.v1 import vm_pb2_grpc
        return vm_pb2_grpc.VmServiceStub(self._channel)

    @cached_property
    def nodes(self) -> Any:
        from virga.v1 import node_pb2_grpc
        return node_pb2_grpc.NodeServiceStub(self._channel)

    @cached_property
    def images(self) -> Any:
        from virga.v1 import image_pb2_grpc
        return image_pb2_grpc.ImageServiceStub(self._channel)

    @cached_property
    def migrations(self) -> Any:
        from virga.v1 import migration_pb2_grpc
        return migration_pb2_grpc.MigrationServiceStub(self._channel)

    @cached_property
    def events(self) -> Any:
        from virga.v1 import event_pb2_grpc
        return event_pb2_grpc.EventServiceStub(self._channel)

    def call(self, method: Callable[..., Any], request: Any, name: str = "", seconds: float = CALL_SECONDS) -> Any:
        """One answer; repeated while nobody answers, for PATIENCE_SECONDS."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return method(request, timeout=seconds, metadata=self._metadata)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE and time.monotonic() < give_up:
                    time.sleep(PAUSE_SECONDS)
                    continue
                raise self._error(error, name) from None

    def stream(self, method: Callable[..., Any], request: Any, name: str = "") -> Iterator[Any]:
        """A server's stream. Repeated while nothing came and nobody answers: a node may just be dialling again."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            call, begun = method(request, metadata=self._metadata), False
            try:
                for message in call:
                    begun = True
                    yield message
                return
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or begun or time.monotonic() > give_up:
                    raise self._error(error, name) from None
            finally:
                call.cancel()
            time.sleep(PAUSE_SECONDS)

    def open(self, method: Callable[..., Any], requests: Iterator[Any]) -> Any:
        """A two-way stream, or one of requests alone."""
        return method(requests, metadata=self._metadata)

    def watch(self, method: Callable[..., Any], request: Any, deadline: float | None = None) -> Iterator[Any]:
        """A watch's messages, resumed after a controller's restart; ends (returns) at the deadline."""
        quiet_since: float | None = None
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            call = method(request, metadata=self._metadata, timeout=left)
            try:
                for message in call:
                    quiet_since = None
                    if message.revision:
                        request.start_revision = message.revision
                    yield message
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and deadline is not None:
                    return
                quiet_since = quiet_since or time.monotonic()
                lost = time.monotonic() - quiet_since > PATIENCE_SECONDS * 5
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) or lost:
                    raise self._error(error) from None
            finally:
                call.cancel()
            time.sleep(PAUSE_SECONDS)


def connect(folder: Path, endpoint: str | None = None, token_file: Path | None = None, tls: TlsFiles = TlsFiles()) -> Api:
    """The controller of a local cloud, or another one by endpoint."""
    if not endpoint:
        cloud = state.load_existing(folder)
        endpoint = f"127.0.0.1:{cloud.ports['controller']}"
    path = token_file or folder / "token"
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise errors.CliError("state.token", f"{path}: {error.strerror}", errors.FAILURE,
                              "virga up writes it for a local cloud; --token-file names another") from None
    return Api(endpoint, token, tls)


def request_id() -> str:
    return uuid.uuid4().hex


def every_page(api: Api, method: Callable[..., Any], request: Any, field: str) -> list[Any]:
    """All pages of a list."""
    found: list[Any] = []
    while True:
        answer = api.call(method, request)
        found += getattr(answer, field)
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token
