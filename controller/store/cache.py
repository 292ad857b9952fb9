"""A copy of everything under ROOT, kept up to date by one watch.

Owns:    the tables, the revision they are of, and who is told of changes.
Never:   writes to etcd.
Threads: one event loop; tables change only between awaits of `follow`.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from controller.etcd.types import Compacted, Etcd, EtcdError, KeyValue
from controller.model.codec import BadRecord, decode
from controller.store import keys

log = logging.getLogger(__name__)
RELIST_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Entry:
    """A record and the revision of its last write."""

    record: Any
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """`old` or `new` is None where the record was created or deleted."""

    prefix: str
    id: str
    old: Entry | None
    new: Entry | None
    revision: int


Listener = Callable[[list[Change]], None]


class Cache:
    def __init__(self, etcd: Etcd) -> None:
        self.revision = 0
        self._etcd = etcd
        self._tables: dict[str, dict[str, Entry]] = {prefix: {} for prefix in keys.RECORDS}
        self._listeners: list[Listener] = []
        self._advanced = asyncio.Event()
        self.synced = asyncio.Event()

    def table(self, prefix: str) -> dict[str, Entry]:
        """Entries by id. Read only; changes in place."""
        return self._tables[prefix]

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    async def wait_for(self, revision: int, timeout_s: float = 5.0) -> bool:
        """Until the tables are of this revision or a later one; False when that took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.revision < revision:
                    await self._advanced.wait()
        except TimeoutError:
            return False
        return True

    async def follow(self) -> None:
        """For ever: list, then watch; list again where history is gone. Never raises but when cancelled."""
        while True:
            try:
                listing = await self._etcd.scan(keys.ROOT)
                self._replace(listing.items, listing.revision)
                self.synced.set()
                async with aclosing(self._etcd.watch(keys.ROOT, listing.revision + 1)) as watch:
                    async for batch in watch:
                        self._advance(((e.kv, e.deleted) for e in batch.events), batch.revision)
            except Compacted as error:
                log.info("listing again: %s", error)
            except EtcdError as error:
                log.warning("cannot list: %s", error)
                await asyncio.sleep(RELIST_PAUSE_S)

    def _replace(self, items: list[KeyValue], revision: int) -> None:
        """Make the tables equal to this listing, telling only of what differs."""
        present = {kv.key for kv in items}
        gone = [KeyValue(prefix + id, b"", 0, revision) for prefix, table in self._tables.items()
                for id in table if prefix + id not in present]
        events = [(kv, False) for kv in items] + [(kv, True) for kv in gone]
        self._advance(sorted(events, key=lambda event: event[0].mod_revision), revision)      # feeds rely on this order

    def _advance(self, events: Iterable[tuple[KeyValue, bool]], revision: int) -> None:
        changes = [change for kv, deleted in events if (change := self._apply(kv, deleted))]
        self.revision = max(self.revision, revision)
        advanced, self._advanced = self._advanced, asyncio.Event()
        advanced.set()
        if changes:
            for listener in self._listeners:
                listener(changes)

    def _apply(self, kv: KeyValue, deleted: bool) -> Change | None:
        place = keys.split(kv.key)
        if place is None:
            return None
        prefix, id = place
        table = self._tables[prefix]
        old, new = table.get(id), None
        if not deleted:
            if old and old.revision == kv.mod_revision:
                return None                                    # a second listing
            try:
                new = Entry(decode(keys.RECORDS[prefix], kv.value), kv.mod_revision)
            except BadRecord as error:
                log.error("%s cannot be read and is left alone: %s", kv.key, error)
                return None
        if new:
            table[id] = new
        elif table.pop(id, None) is None:
            return None
        return Change(prefix, id, old, new, kv.mod_revision)
