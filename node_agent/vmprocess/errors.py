"""What went wrong inside a VM process, as the wire says it: one table from exception to kind.

Owns:    the table.
Never:   logs; nobody downstream reads the text to tell errors apart.
Threads: none.
"""

from __future__ import annotations

import errno
import traceback

from node_agent.console.ring import CorruptRing
from node_agent.migration.protocol import NotAllowed
from node_agent.migration.stream import StreamError
from node_agent.vmprocess.files import CorruptRecord
from node_agent.vmprocess.lifecycle import NotNow
from node_agent.vmprocess.machines import BadConfig
from node_agent.vmprocess.wire import WireError
from virga.vmm.v1 import vmm_pb2 as pb


class Refused(Exception):
    """Not now: the VM or the connection is in another state."""


_KINDS: tuple[tuple[type[Exception], int], ...] = (
    (BadConfig, pb.Error.KIND_INVALID),
    (Refused, pb.Error.KIND_CONFLICT),
    (NotNow, pb.Error.KIND_CONFLICT),
    (NotAllowed, pb.Error.KIND_CONFLICT),
    (WireError, pb.Error.KIND_UNKNOWN_CALL),
    (StreamError, pb.Error.KIND_INVALID),
    (CorruptRecord, pb.Error.KIND_FAILED),
    (CorruptRing, pb.Error.KIND_FAILED),
    (MemoryError, pb.Error.KIND_NO_MEMORY),
    (ValueError, pb.Error.KIND_INVALID),
)
_ERRNOS = {errno.ENOSPC: pb.Error.KIND_NO_SPACE, errno.EDQUOT: pb.Error.KIND_NO_SPACE,
           errno.ENOMEM: pb.Error.KIND_NO_MEMORY}


def to_error(error: Exception) -> pb.Error:
    for kind_of_exception, kind in _KINDS:
        if isinstance(error, kind_of_exception):
            return pb.Error(kind=kind, message=str(error)[:2000], field=getattr(error, "field", ""))
    if isinstance(error, OSError):
        return pb.Error(kind=_ERRNOS.get(error.errno or 0, pb.Error.KIND_FAILED), message=str(error))
    traceback.print_exception(error)                      # nobody expected it: the process's log says where
    return pb.Error(kind=pb.Error.KIND_FAILED, message=f"{type(error).__name__}: {error}"[:2000])
