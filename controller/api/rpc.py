"""Handlers to gRPC methods.

Owns:    what every call has in common: authentication, the access rule, whether this controller can answer, errors
         to statuses, metrics.
Never:   knows any particular method.
Threads: one event loop.

A service is any object with a coroutine (one answer) or an async generator (a stream of them) per method, called as
`await service.create_vm(request, caller)`.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from controller import errors
from controller.api.access import ACCESS, Caller, Tokens
from controller.api.status import code_name, failure, status_of
from controller.metrics import Metrics

log = logging.getLogger(__name__)


class Gate:
    """Whether this controller can answer. `open` while it leads and its cache is filled."""

    def __init__(self) -> None:
        self.open = False

    def check(self) -> None:
        if not self.open:
            raise errors.Unavailable("NOT_LEADER", "this controller does not lead (yet)")


class Binder:
    """Makes gRPC handlers of services."""

    def __init__(self, tokens: Tokens, gate: Gate, metrics: Metrics, incident: Callable[[], str]) -> None:
        self._tokens, self._gate, self._metrics, self._incident = tokens, gate, metrics, incident

    def bind(self, descriptor: ServiceDescriptor, service: Any) -> grpc.GenericRpcHandler:
        """Raises LookupError where a method has no access rule, AttributeError where the service lacks it."""
        handlers = {}
        for method in descriptor.methods:
            path = f"/{descriptor.full_name}/{method.name}"
            if path not in ACCESS:
                raise LookupError(f"{path} has no access rule")
            handlers[method.name] = self._handler(path, method, getattr(service, snake(method.name)))
        return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)

    def _handler(self, path: str, method: MethodDescriptor, function: Any) -> grpc.RpcMethodHandler:
        make = {(False, False): grpc.unary_unary_rpc_method_handler, (False, True): grpc.unary_stream_rpc_method_handler,
                (True, False): grpc.stream_unary_rpc_method_handler, (True, True): grpc.stream_stream_rpc_method_handler,
                }[method.client_streaming, method.server_streaming]
        wrap = self._streaming if method.server_streaming else self._single
        return make(wrap(path, function), request_deserializer=GetMessageClass(method.input_type).FromString,
                    response_serializer=GetMessageClass(method.output_type).SerializeToString)

    def _enter(self, path: str, context: Any) -> Caller:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        caller = self._tokens.caller(metadata, ACCESS[path])
        self._gate.check()
        return caller

    def _single(self, path: str, function: Any) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            start = time.monotonic()
            try:
                answer = await function(request, self._enter(path, context))
            except Exception as error:
                await self._refuse(path, start, context, error)
            self._metrics.rpc(path, "OK", time.monotonic() - start)
            return answer
        return handle

    def _streaming(self, path: str, function: Any) -> Any:
        async def handle(request: Any, context: Any) -> AsyncGenerator[Any, None]:
            start = time.monotonic()
            try:
                async with aclosing(function(request, self._enter(path, context))) as answers:
                    async for answer in answers:
                        yield answer
            except Exception as error:
                await self._refuse(path, start, context, error)
            self._metrics.rpc(path, "OK", time.monotonic() - start)
        return handle

    async def _refuse(self, path: str, start: float, context: Any, error: Exception) -> None:
        """Ends the call with the error's status; raises."""
        if isinstance(error, errors.Refusal):
            status = status_of(error)
        else:
            incident = self._incident()
            log.exception("%s failed, incident %s", path, incident, exc_info=error)
            status = failure(incident)
        self._metrics.rpc(path, code_name(status), time.monotonic() - start)
        await context.abort_with_status(status)


def snake(name: str) -> str:
    """CreateVm → create_vm"""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


async def first_message(requests: AsyncIterator[Any], field: str, timeout_s: float = 10.0) -> Any:
    """What a stream begins with. Raises BadField."""
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(aiter(requests))
    except (StopAsyncIteration, TimeoutError):
        raise errors.BadField(field, "the first message must come, and carry it") from None
