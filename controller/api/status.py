"""Refusals to gRPC statuses: the one table.

Owns:    which kind becomes which code, and the google.rpc details that go with it.
Never:   reads texts to tell errors apart.
Threads: pure functions.
"""

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from controller import errors

DOMAIN = "virga.v1"
CODES: dict[type[errors.Refusal], int] = {
    errors.BadField: code_pb2.INVALID_ARGUMENT,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.Taken: code_pb2.ALREADY_EXISTS,
    errors.NodeNameTaken: code_pb2.ALREADY_EXISTS,
    errors.WrongState: code_pb2.FAILED_PRECONDITION,
    errors.NoCapacity: code_pb2.RESOURCE_EXHAUSTED,
    errors.Exhausted: code_pb2.RESOURCE_EXHAUSTED,
    errors.Denied: code_pb2.PERMISSION_DENIED,
    errors.Unknown: code_pb2.UNAUTHENTICATED,
    errors.Superseded: code_pb2.ABORTED,
    errors.Busy: code_pb2.ABORTED,
    errors.Unavailable: code_pb2.UNAVAILABLE,
    errors.Corrupt: code_pb2.DATA_LOSS,
}


def status_of(refusal: errors.Refusal) -> grpc.Status:
    status = status_pb2.Status(code=CODES[type(refusal)], message=refusal.message[:2000])
    _attach(status, error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN, metadata=refusal.details))
    match refusal:
        case errors.BadField(field=field, why=why):
            _attach(status, error_details_pb2.BadRequest(field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field=field, description=why[:1000])]))
        case errors.NotFound() | errors.Taken() | errors.WrongState() | errors.NodeNameTaken():
            _attach(status, error_details_pb2.ResourceInfo(
                resource_type=f"virga.v1.{refusal.kind.capitalize()}", resource_name=refusal.name[:200],
                description=refusal.message[:1000]))
    return rpc_status.to_status(status)


def failure(incident: str) -> grpc.Status:
    """Our own mistake: nothing about it but a number to look for in the log."""
    status = status_pb2.Status(code=code_pb2.INTERNAL, message=f"the controller failed; its log says more: {incident}")
    _attach(status, error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"incident": incident}))
    return rpc_status.to_status(status)


def code_name(status: grpc.Status) -> str:
    return str(status.code.name)


def _attach(status: status_pb2.Status, detail: object) -> None:
    packed = AnyMessage()
    packed.Pack(detail)                                        # type: ignore[arg-type]
    status.details.append(packed)
