"""request_id: the same request twice is one request.

Owns:    what a request_id stands for, and for how long.
Never:   answers for another request than the first.
Threads: one event loop.
"""

import hashlib
from typing import Any

from controller.errors import BadField
from controller.model.names import check_request_id
from controller.model.records import Pointer
from controller.store import keys
from controller.store.store import Commit, Store


class Once:
    """Of one call. `done` is the uid of what an earlier call with this id made; else `remember` goes into the commit."""

    def __init__(self, store: Store, method: str, request: Any, request_id: str) -> None:
        check_request_id(request_id)
        self._store, self._id = store, request_id
        self._digest = hashlib.sha256(method.encode() + b"\0" + request.SerializeToString(deterministic=True)
                                      ).hexdigest()

    def done(self) -> str | None:
        entry = self._store.entry(keys.REQUEST, self._id) if self._id else None
        if entry is None:
            return None
        if entry.record.digest != self._digest:
            raise BadField("request_id", "was used before, for another request", "REQUEST_ID_REUSED")
        uid: str = entry.record.uid
        return uid

    def remember(self, commit: Commit, uid: str, now: float) -> None:
        if self._id:
            commit.create(keys.REQUEST, self._id, Pointer(uid, self._digest, now))
