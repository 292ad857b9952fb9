"""What the controller says to etcd and hears from it, without a wire.

Owns:    the records and errors that the real client and the in-memory fake share.
Never:   I/O.
Threads: immutable.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol


class EtcdError(Exception):
    """Anything that went wrong between us and etcd."""


class EtcdUnavailable(EtcdError):
    """Nobody answered, or answered too late. A write may or may not have happened."""


class EtcdFull(EtcdError):
    """The database has reached its quota; reads still work."""


class EtcdRefused(EtcdError):
    """This etcd must not be used: its version loses data in a cluster of this size, or it speaks another API."""


class Compacted(EtcdError):
    """The history a watch asked for is gone: list again, watch from there."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"history before revision {revision} is gone")
        self.revision = revision


class LeaseGone(EtcdError):
    """The lease has expired or was revoked."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: str


@dataclass(frozen=True, slots=True)
class ModIs:
    """The key was last written at this revision; 0: it does not exist."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class CreatedAt:
    """The key has lived since this revision, whatever was written to it since."""

    key: str
    revision: int


Op = Put | Delete
Guard = ModIs | CreatedAt


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`found` holds the guarded keys as they are, where a guard failed; empty where all held."""

    succeeded: bool
    revision: int
    found: dict[str, KeyValue]


@dataclass(frozen=True, slots=True)
class Listing:
    items: list[KeyValue]
    revision: int


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """kv.value is empty in a deletion; kv.mod_revision is the deletion's own."""

    kv: KeyValue
    deleted: bool


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """All events up to `revision`, whole revisions only; none in a sign of progress."""

    events: list[WatchEvent]
    revision: int


class Etcd(Protocol):
    """A connection to etcd. Every method raises EtcdUnavailable while nobody answers."""

    async def scan(self, prefix: str, revision: int = 0) -> Listing: ...

    async def get(self, key: str) -> KeyValue | None: ...

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> TxnResult: ...

    def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Events from start_revision on, once each, in order, over restarts and disconnections. Raises Compacted."""

    async def lease_grant(self, ttl_s: int) -> int: ...

    async def lease_keep_alive(self, lease: int) -> float:
        """Seconds the lease lives on, counted from the call. Raises LeaseGone."""

    async def lease_revoke(self, lease: int) -> None: ...

    async def close(self) -> None: ...


def prefix_end(prefix: str) -> str:
    """The first key after every key that begins with prefix."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
