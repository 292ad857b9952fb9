"""Who leads.

Owns:    the leader key, its lease, and the fence that follows from it.
Never:   assumes that it leads: the fence in every write is what counts, this only says when it is worth trying.
Threads: one event loop.

The key lives by a lease of TTL seconds. A controller that holds the lock of the same state folder as the leader
written there knows that this leader is dead (the lock dies with its process) and removes the key at once. That is
safe in any case: who led before can no longer write, because the new key has another creation revision.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from controller.etcd.types import CreatedAt, Delete, Etcd, EtcdError, LeaseGone, ModIs, Put
from controller.model.codec import BadRecord, decode, encode
from controller.model.records import Leader
from controller.store import keys

log = logging.getLogger(__name__)
TTL_S = 4
BEAT_S = 1.0
LOOK_S = 0.3


class Leadership:
    def __init__(self, etcd: Etcd, me: Leader, rng: random.Random) -> None:
        self._etcd, self._me, self._rng = etcd, me, rng

    @asynccontextmanager
    async def won(self) -> AsyncIterator[tuple[CreatedAt, asyncio.Task[None]]]:
        """Wait for the place; yields the fence and a task that ends when the place is lost. Gives it up on exit."""
        lease, fence = await self._campaign()
        beating = asyncio.create_task(self._beat(lease), name="leader-beat")
        try:
            yield fence, beating
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating
            with suppress(EtcdError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._etcd.lease_revoke(lease)

    async def _campaign(self) -> tuple[int, CreatedAt]:
        lease, told = 0, False
        while True:
            try:
                lease = lease or await self._etcd.lease_grant(TTL_S)
                await self._etcd.lease_keep_alive(lease)
                won = await self._etcd.txn([ModIs(keys.LEADER, 0)],
                                           [Put(keys.LEADER, encode(self._me, str(lease)), lease)])
                if won.succeeded:
                    return lease, CreatedAt(keys.LEADER, won.revision)
                holder = won.found[keys.LEADER]
                if holder.lease == lease:              # an attempt whose answer was lost
                    return lease, CreatedAt(keys.LEADER, holder.create_revision)
                if self._is_dead(holder.value):
                    await self._etcd.txn([ModIs(keys.LEADER, holder.mod_revision)], [Delete(keys.LEADER)])
                    continue
                if not told:
                    log.info("another controller leads; waiting for its place")
                    told = True
            except LeaseGone:
                lease = 0
                continue
            except EtcdError as error:
                log.warning("cannot stand for leader: %s", error)
            await asyncio.sleep(LOOK_S + self._rng.uniform(0, LOOK_S))

    def _is_dead(self, record: bytes) -> bool:
        try:
            holder = decode(Leader, record)
        except BadRecord:
            return False
        return holder.folder == self._me.folder and holder.uid != self._me.uid

    async def _beat(self, lease: int) -> None:
        """Ends only when the lease is gone: while etcd is silent nobody else can be elected either."""
        while True:
            try:
                await self._etcd.lease_keep_alive(lease)
            except LeaseGone:
                log.warning("lost the lead")
                return
            except EtcdError as error:
                log.warning("leader's lease: %s", error)
            await asyncio.sleep(BEAT_S)
