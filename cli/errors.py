"""What can go wrong for a person at the command line, and the exit status that says so.

Owns:    the exit codes, the one table from gRPC's status to them, and the hints.
Never:   matches on an error's text; the reason words are the API's stable ones.
Threads: none.

grpc is imported only by those who already hold one of its errors.
"""

from dataclasses import dataclass

FAILURE, USAGE, NOT_FOUND, CONFLICT, REFUSED, TIMED_OUT, UNREACHABLE = 1, 2, 3, 4, 5, 6, 7

# name of the gRPC status -> (exit code, kind)
STATUS = {
    "INVALID_ARGUMENT": (USAGE, "usage"),
    "OUT_OF_RANGE": (USAGE, "usage"),
    "NOT_FOUND": (NOT_FOUND, "not_found"),
    "ALREADY_EXISTS": (CONFLICT, "conflict"),
    "ABORTED": (CONFLICT, "conflict"),
    "FAILED_PRECONDITION": (CONFLICT, "conflict"),
    "RESOURCE_EXHAUSTED": (REFUSED, "refused"),
    "PERMISSION_DENIED": (REFUSED, "refused"),
    "UNAUTHENTICATED": (REFUSED, "refused"),
    "DEADLINE_EXCEEDED": (TIMED_OUT, "timed_out"),
    "UNAVAILABLE": (UNREACHABLE, "unreachable"),
}
# preconditions that are a refusal by policy or capacity rather than a conflict
REFUSING_REASONS = {"NODE_UNFIT", "NO_CAPACITY"}

# reason -> the nearest thing to do; {name} is the resource's
HINTS = {
    "VM_NOT_FOUND": "virga vm list",
    "NODE_NOT_FOUND": "virga node list",
    "IMAGE_NOT_FOUND": "virga image list, or virga image build debian-cloud",
    "VM_NOT_RUNNING": "virga vm start {name}",
    "VM_MIGRATING": "wait for it: virga vm watch {name}",
    "VM_DELETING": "wait until it is gone: virga vm watch {name}",
    "VM_NOT_PLACED": "see why: virga vm show {name}",
    "SAME_NODE": "name another node: virga node list",
    "NODE_LOST": "virga node list; virga up starts what died",
    "NODE_UNFIT": "virga node list, or leave --to out and let the scheduler choose",
    "NO_CAPACITY": "virga node list, or virga node uncordon NODE",
    "CONSOLE_BUSY": "look on with --read-only, or take the keyboard with --steal",
    "NODE_UNREACHABLE": "virga status; virga up starts what died",
    "IMAGE_IN_USE": "delete its VMs first: virga vm list -o wide",
    "AMBIGUOUS_ID": "give more letters of the id, or the name",
    "DISK_FULL": "free some space in the state folder: virga status names it",
    "NODE_ALIVE": "only a node that is LOST can be forgotten",
    "NODE_HAS_VMS": "virga vm list -o wide; virga vm delete --forget VM gives up one whose node never comes back",
}
KIND_HINTS = {
    "conflict.vm": "another name, or virga vm delete {name}",
    "conflict.image": "another name, or virga image delete {name}",
    "not_found.vm": "virga vm list",
    "not_found.node": "virga node list",
    "not_found.image": "virga image list, or virga image build debian-cloud",
    "unreachable": "virga status shows what runs; virga up starts what doesn't",
    "timed_out": "nothing was undone; look with virga vm list, or wait longer with --timeout",
}


@dataclass
class CliError(Exception):
    """kind is `word` or `word.detail`; hint is a command or a sentence, or empty."""

    kind: str
    message: str
    code: int = FAILURE
    hint: str = ""
    details: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        lines = [f"error[{self.kind}]: {self.message}", *(f"  {detail}" for detail in self.details)]
        return lines + ([f"  try: {self.hint}"] if self.hint else [])


def refused_capacity(name: str, memory_mib: int, summary: str, largest: str, left_pending: bool) -> CliError:
    """A VM that no node can hold now."""
    size = f"{memory_mib / 1024:g} GiB" if memory_mib >= 1024 else f"{memory_mib} MiB"
    details = [summary + (f" ({largest})" if largest else "")]
    if left_pending:
        details.append(f"{name} stays PENDING and starts when there is room; virga vm delete {name} gives it up")
    return CliError("refused.capacity", f"no node can hold {name} (memory {size})", REFUSED,
                    "virga node list, or a smaller --memory", tuple(details))


def from_rpc(error: Exception, name: str = "") -> CliError:
    """A grpc.RpcError with its google.rpc details as an error for people."""
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    status_name = error.code().name                                    # type: ignore[attr-defined]
    code, kind = STATUS.get(status_name, (FAILURE, "failure"))
    reason, details = "", []
    try:
        status = rpc_status.from_call(error)
    except ValueError:                                                 # details that belong to another message
        status = None
    for packed in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        resource = error_details_pb2.ResourceInfo()
        if packed.Is(info.DESCRIPTOR) and packed.Unpack(info):
            reason = info.reason
        elif packed.Is(bad.DESCRIPTOR) and packed.Unpack(bad):
            details += [f"{violation.field}: {violation.description}" for violation in bad.field_violations]
        elif packed.Is(resource.DESCRIPTOR) and packed.Unpack(resource):
            kind = f"{kind}.{resource.resource_type.rsplit('/', 1)[-1].rsplit('.', 1)[-1].lower()}"
            name = resource.resource_name or name
    if reason in REFUSING_REASONS:
        code, kind = REFUSED, "refused.capacity"
    message = error.details() or status_name                           # type: ignore[attr-defined]
    if status_name == "UNAVAILABLE" and not reason:
        message = "the controller does not answer"
    hint = HINTS.get(reason) or KIND_HINTS.get(kind) or KIND_HINTS.get(kind.split(".")[0], "")
    return CliError(kind if "." in kind or not reason else f"{kind}.{reason.lower()}", message, code,
                    hint.format(name=name or "NAME"), tuple(details))
