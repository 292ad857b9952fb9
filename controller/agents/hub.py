"""Which nodes are connected, what each last said, and how to reach them.

Owns:    one Session per connected node; when each node was last heard; streams that agents were asked to open.
Never:   writes to the store; knows VMs beyond what nodes report of them.
Threads: one event loop.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from controller import errors
from controller.model.vms import Report

ATTACH_TIMEOUT_S = 5.0
STATS_TIMEOUT_S = 2.0
RELAY_DEPTH = 64                     # chunks on their way to a reader before the agent has to wait


@dataclass(slots=True)
class MigrationReport:
    """One side's view of a migration; `step` is the wire's name without its prefix."""

    uid: str
    vm_uid: str
    step: str
    address: str = ""
    rounds: int = 0
    bytes: int = 0
    gap_ms: float = 0.0
    decision_ms: float = 0.0
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Stats:
    uid: str
    run: int
    retired_instructions: int
    exits: dict[str, int]
    memory_bytes: int
    cpu_seconds: float
    time: float


@dataclass(slots=True)
class Session:
    """A connected node. `outbox` takes wire messages; `dirty` asks for the desired state to be computed again."""

    node: str
    node_uid: str
    outbox: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    dirty: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    superseded: bool = False                       # ended because the node has opened another stream
    vms: dict[str, Report] = field(default_factory=dict)
    migrations: dict[str, MigrationReport] = field(default_factory=dict)


@dataclass(slots=True)
class Relay:
    """Bytes between a caller of the API and an agent that was asked to open a stream for it."""

    session: str
    node: str
    from_agent: asyncio.Queue[Any] = field(default_factory=lambda: asyncio.Queue(RELAY_DEPTH))
    to_agent: asyncio.Queue[bytes | None] = field(default_factory=lambda: asyncio.Queue(RELAY_DEPTH))
    attached: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)


class Hub:
    def __init__(self, clock: Callable[[], float], token: Callable[[], str]) -> None:
        """clock: monotonic seconds."""
        self.sessions: dict[str, Session] = {}
        self.stats: dict[str, Stats] = {}                 # by VM
        self._clock, self._token = clock, token
        self._seen: dict[str, float] = {}
        self._relays: dict[str, Relay] = {}
        self._stats_waiters: dict[str, list[asyncio.Future[Stats]]] = {}
        self._listeners: list[Callable[[str, set[str], set[str]], None]] = []

    # ── sessions ──────────────────────────────────────────────────────────────────────────────────────────────────

    def listen(self, listener: Callable[[str, set[str], set[str]], None]) -> None:
        """listener(node, uids of VMs, uids of migrations) is told when a node reports."""
        self._listeners.append(listener)

    def open(self, session: Session) -> None:
        """A node has connected; its earlier stream, if any, ends."""
        if earlier := self.sessions.get(session.node):
            earlier.superseded = True
            earlier.ended.set()
        self.sessions[session.node] = session
        self.heard(session.node)
        self.reported(session, set(session.vms), set(session.migrations))

    def close(self, session: Session) -> None:
        session.ended.set()
        if self.sessions.get(session.node) is session:
            del self.sessions[session.node]
            for relay in [relay for relay in self._relays.values() if relay.node == session.node]:
                relay.closed.set()

    def close_all(self) -> None:
        for session in list(self.sessions.values()):
            self.close(session)

    def heard(self, node: str) -> None:
        self._seen[node] = self._clock()

    def silent_for(self, node: str, since: float) -> float:
        """Seconds without a word from the node, counted from `since` at the earliest."""
        return self._clock() - max(self._seen.get(node, since), since)

    def seconds_since_seen(self, node: str) -> float | None:
        return self._clock() - self._seen[node] if node in self._seen else None

    def reported(self, session: Session, vms: set[str], migrations: set[str]) -> None:
        for listener in self._listeners:
            listener(session.node, vms, migrations)

    def all_dirty(self) -> None:
        for session in self.sessions.values():
            session.dirty.set()

    def report(self, node: str, uid: str) -> Report | None:
        session = self.sessions.get(node)
        return session.vms.get(uid) if session else None

    def migration_report(self, node: str, uid: str) -> MigrationReport | None:
        session = self.sessions.get(node)
        return session.migrations.get(uid) if session else None

    # ── statistics ────────────────────────────────────────────────────────────────────────────────────────────────

    def put_stats(self, stats: Stats) -> None:
        self.stats[stats.uid] = stats
        for waiter in self._stats_waiters.pop(stats.uid, []):
            if not waiter.done():
                waiter.set_result(stats)

    async def fresh_stats(self, node: str, uid: str, request: Any) -> Stats | None:
        """Ask the node; the last known ones where it doesn't answer in time."""
        session = self.sessions.get(node)
        if session is None:
            return self.stats.get(uid)
        waiter: asyncio.Future[Stats] = asyncio.get_running_loop().create_future()
        self._stats_waiters.setdefault(uid, []).append(waiter)
        session.outbox.put_nowait(request)
        try:
            return await asyncio.wait_for(waiter, STATS_TIMEOUT_S)
        except TimeoutError:
            return self.stats.get(uid)
        finally:
            waiters = self._stats_waiters.get(uid, [])
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters:
                self._stats_waiters.pop(uid, None)

    def forget_vm(self, uid: str) -> None:
        self.stats.pop(uid, None)

    # ── relays ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def open_relay(self, node: str, order: Callable[[str], Any]) -> Relay:
        """Have the node open a stream for us; `order` makes the wire message from the session's name."""
        session = self.sessions.get(node)
        if session is None:
            raise errors.Unavailable("NODE_UNREACHABLE", f"{node} is not connected", node=node)
        relay = Relay(self._token(), node)
        self._relays[relay.session] = relay
        session.outbox.put_nowait(order(relay.session))
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT_S):
                await relay.attached.wait()
        except TimeoutError:
            self.close_relay(relay)
            raise errors.Unavailable("NODE_UNREACHABLE", f"{node} did not open the stream in time", node=node) from None
        except asyncio.CancelledError:
            self.close_relay(relay)
            raise
        return relay

    def attach(self, session: str, node: str) -> Relay:
        """An agent has opened the stream it was asked for."""
        relay = self._relays.get(session)
        if relay is None or relay.node != node or relay.attached.is_set():
            raise errors.NotFound("session", session)
        relay.attached.set()
        return relay

    def close_relay(self, relay: Relay) -> None:
        relay.closed.set()
        self._relays.pop(relay.session, None)
