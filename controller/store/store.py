"""The one place that commits.

Owns:    transactions: their fence, their guards, and what an unknown outcome turns out to have been.
Never:   decides anything about VMs; that is done before, by pure functions over the cache.
Threads: one event loop.

Every transaction compares the leader key's creation with what this controller saw when it was elected: a controller
that lost its place without noticing cannot write.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from controller import errors
from controller.etcd.types import (
    CreatedAt, Delete, Etcd, EtcdError, EtcdFull, EtcdUnavailable, Guard, ModIs, Op, Put, TxnResult,
)
from controller.model.codec import encode
from controller.store import keys
from controller.store.cache import Cache, Entry

T = TypeVar("T")
CHANGE_ATTEMPTS = 12
TXN_ATTEMPTS = 4
RETRY_PAUSE_S = 0.25
MAX_OPS = 120                      # etcd takes 128 of each list


class Conflict(Exception):
    """Something a transaction was decided upon had changed. `revision`: read at least this before deciding again."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"changed meanwhile, as of revision {revision}")
        self.revision = revision


class Commit:
    """Writes that happen together or not at all, each on the condition that nobody wrote there before us."""

    def __init__(self) -> None:
        self._writes: dict[str, Any] = {}
        self._guards: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._writes)

    def __len__(self) -> int:
        return max(len(self._writes), len(self._guards))

    def create(self, prefix: str, id: str, record: Any) -> "Commit":
        self._guards[prefix + id] = 0
        self._writes[prefix + id] = record
        return self

    def update(self, prefix: str, id: str, entry: Entry | None, record: Any) -> "Commit":
        """entry: what the decision was made from; None: it did not exist."""
        if entry is None or entry.record != record:
            self._guards[prefix + id] = entry.revision if entry else 0
            self._writes[prefix + id] = record
        return self

    def delete(self, prefix: str, id: str, entry: Entry | None) -> "Commit":
        if entry is not None:
            self._guards[prefix + id] = entry.revision
            self._writes[prefix + id] = None
        return self

    def require(self, prefix: str, id: str, entry: Entry | None) -> "Commit":
        """This is still so (without being written)."""
        self._guards.setdefault(prefix + id, entry.revision if entry else 0)
        return self

    def guards(self) -> list[Guard]:
        return [ModIs(key, revision) for key, revision in self._guards.items()]

    def ops(self, nonce: str) -> list[Op]:
        return [Delete(key) if record is None else Put(key, encode(record, nonce))
                for key, record in self._writes.items()]


class Store:
    """The cache to read from, and `commit` to write with. `fence` is set by whoever leads, and cleared when it ends."""

    def __init__(self, etcd: Etcd, cache: Cache, nonce: Callable[[], str]) -> None:
        self.cache = cache
        self.fence: CreatedAt | None = None
        self._etcd, self._nonce = etcd, nonce

    def entry(self, prefix: str, id: str) -> Entry | None:
        return self.cache.table(prefix).get(id)

    async def commit(self, commit: Commit, settle: bool = True) -> int:
        """Write; the cache shows it on return (settle) or soon after. Raises Conflict, Unavailable, Exhausted."""
        if not commit:
            return self.cache.revision
        if self.fence is None:
            raise errors.Unavailable("NOT_LEADER", "this controller does not lead (yet)")
        result = await self._txn([self.fence, *commit.guards()], commit.ops(self._nonce()))
        if not result.succeeded:
            leader = result.found.get(keys.LEADER)
            if leader is None or leader.create_revision != self.fence.revision:
                raise errors.Unavailable("NOT_LEADER", "this controller no longer leads")
            raise Conflict(_needed(result, commit.guards()))
        if settle:
            await self.cache.wait_for(result.revision)
        return result.revision

    async def change(self, decide: Callable[[], tuple[Commit, T]], settle: bool = True) -> T:
        """Decide from the cache and commit; decide again where somebody else was faster."""
        for _ in range(CHANGE_ATTEMPTS):
            commit, outcome = decide()
            try:
                await self.commit(commit, settle)
                return outcome
            except Conflict as conflict:
                await self.cache.wait_for(conflict.revision, timeout_s=1.0)
        raise errors.Busy("TOO_MANY_CONFLICTS", "others kept changing the same thing; try again")

    async def _txn(self, guards: list[Guard], ops: list[Op]) -> TxnResult:
        """Try again while nobody answers: every write is guarded, so at most one attempt takes effect, and a failed
        guard after a lost answer may be our own doing, which the nonce in the value tells."""
        lost_answer = False
        for attempt in range(TXN_ATTEMPTS):
            try:
                result = await self._etcd.txn(guards, ops)
            except EtcdUnavailable as error:
                if attempt == TXN_ATTEMPTS - 1:
                    raise errors.Unavailable("STORE_UNAVAILABLE", f"etcd does not answer: {error}") from error
                lost_answer = True
                await asyncio.sleep(RETRY_PAUSE_S * 2 ** attempt)
            except EtcdFull as error:
                raise errors.Exhausted("STORE_FULL", f"etcd takes no more: {error}") from error
            except EtcdError as error:
                raise errors.Unavailable("STORE_UNAVAILABLE", f"etcd: {error}") from error
            else:
                if not result.succeeded and lost_answer and _is_ours(result, ops):
                    return TxnResult(True, result.revision, {})
                return result
        raise AssertionError("the last attempt returns or raises")


def _is_ours(failed: TxnResult, ops: list[Op]) -> bool:
    """An earlier attempt went through: what it put is there, and what it deleted is not."""
    return all((found := failed.found.get(op.key)) is not None and found.value == op.value if isinstance(op, Put)
               else op.key not in failed.found for op in ops)


def _needed(failed: TxnResult, guards: list[Guard]) -> int:
    """The revision the cache must have reached before it can show what was in the way."""
    deleted = any(guard.revision and guard.key not in failed.found for guard in guards)
    return failed.revision if deleted else max((kv.mod_revision for kv in failed.found.values()), default=0)
