"""etcd in memory: the same behaviour as the real client's, for tests of everything above it.

Owns:    its keys and whole history.
Never:   I/O; sleeps.
Threads: one event loop.
"""

import asyncio
import bisect
from collections.abc import AsyncGenerator, Callable, Sequence

from controller.etcd.types import (
    Compacted, CreatedAt, Delete, EtcdUnavailable, Guard, KeyValue, LeaseGone, Listing, ModIs, Op, Put, TxnResult,
    WatchBatch, WatchEvent,
)


class FakeEtcd:
    """See controller.etcd.types.Etcd. `down` makes every call fail; `lose_answers` applies writes, then fails."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.revision = 1
        self.compacted = 0
        self.down = False
        self.lose_answers = 0
        self._clock = clock
        self._keys: dict[str, KeyValue] = {}
        self._history: list[WatchEvent] = []
        self._leases: dict[int, tuple[int, float]] = {}        # id -> (ttl, deadline)
        self._next_lease = 1
        self._changed = asyncio.Event()

    async def close(self) -> None: ...

    async def scan(self, prefix: str, revision: int = 0) -> Listing:
        self._answer()
        if revision and revision != self.revision:
            raise ValueError("the fake lists the present only")
        return Listing([self._keys[key] for key in sorted(self._keys) if key.startswith(prefix)], self.revision)

    async def get(self, key: str) -> KeyValue | None:
        self._answer()
        return self._keys.get(key)

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> TxnResult:
        self._answer()
        if len(guards) > 128 or len(ops) > 128:
            raise ValueError("etcd takes 128 of each at most")
        if len({op.key for op in ops}) != len(ops):
            raise ValueError("duplicate key given in txn request")
        if not all(map(self._holds, guards)):
            found = {guard.key: self._keys[guard.key] for guard in guards if guard.key in self._keys}
            return TxnResult(False, self.revision, found)
        for op in ops:
            if isinstance(op, Put) and op.lease and op.lease not in self._leases:
                raise LeaseGone(f"lease {op.lease:x} is gone")
        self._apply(ops)
        if self.lose_answers:
            self.lose_answers -= 1
            raise EtcdUnavailable("the answer was lost")
        return TxnResult(True, self.revision, {})

    async def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        position = start_revision
        while True:
            if position <= self.compacted:
                raise Compacted(self.compacted)
            first = bisect.bisect_left(self._history, position, key=lambda event: event.kv.mod_revision)
            events = [] if self.down else [e for e in self._history[first:] if e.kv.key.startswith(prefix)]
            if events:
                position = events[-1].kv.mod_revision + 1
                yield WatchBatch(events, position - 1)
            else:
                changed = self._changed
                await changed.wait()

    async def compact(self, revision: int) -> None:
        self.compacted = revision - 1
        self._history = [event for event in self._history if event.kv.mod_revision >= revision]
        self._wake()

    async def lease_grant(self, ttl_s: int) -> int:
        self._answer()
        lease, self._next_lease = self._next_lease, self._next_lease + 1
        self._leases[lease] = (ttl_s, self._clock() + ttl_s)
        return lease

    async def lease_keep_alive(self, lease: int) -> float:
        self._answer()
        if lease not in self._leases:
            raise LeaseGone(f"lease {lease:x} is gone")
        ttl = self._leases[lease][0]
        self._leases[lease] = (ttl, self._clock() + ttl)
        return float(ttl)

    async def lease_revoke(self, lease: int) -> None:
        self._answer()
        if self._leases.pop(lease, None):
            self._apply(self._of_lease(lease))

    def set_down(self, down: bool) -> None:
        """Stop answering, or come back."""
        self.down = down
        self._wake()

    def _answer(self) -> None:
        if self.down:
            raise EtcdUnavailable("etcd is down")
        now = self._clock()
        for lease in [lease for lease, (_, deadline) in self._leases.items() if deadline <= now]:
            del self._leases[lease]
            self._apply(self._of_lease(lease))

    def _of_lease(self, lease: int) -> list[Op]:
        return [Delete(key) for key, kv in self._keys.items() if kv.lease == lease]

    def _holds(self, guard: Guard) -> bool:
        kv = self._keys.get(guard.key)
        match guard:
            case ModIs(_, revision):
                return (kv.mod_revision if kv else 0) == revision
            case CreatedAt(_, revision):
                return (kv.create_revision if kv else 0) == revision

    def _apply(self, ops: Sequence[Op]) -> None:
        revision, changed = self.revision + 1, False
        for op in ops:
            old = self._keys.get(op.key)
            if isinstance(op, Put):
                kv = KeyValue(op.key, op.value, old.create_revision if old else revision, revision, op.lease)
                self._keys[op.key] = kv
                self._history.append(WatchEvent(kv, False))
                changed = True
            elif old:
                del self._keys[op.key]
                self._history.append(WatchEvent(KeyValue(op.key, b"", 0, revision), True))
                changed = True
        if changed:
            self.revision = revision
            self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
