"""etcd over grpc.aio.

Owns:    one channel to all endpoints, retries of reads, resumption of watches.
Never:   retries a write (its caller knows whether its guards make that safe), keeps any state of Virga.
Threads: one event loop.

Rules that were learned by killing etcd (docs/design/0002-etcd-client.md):
  * a watch resumes after the last revision that was delivered *whole*: fragments are gathered first, and the revision
    of a response's header is no place to resume from unless the response carries no events;
  * history that was compacted away is an error of the watch: only its reader can list again;
  * every call is cancelled explicitly, also when its reader just goes away;
  * keepalive pings at 10 s: at 5 s etcd answers GOAWAY.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

import grpc

from controller.etcd.types import (
    Compacted, CreatedAt, Delete, EtcdError, EtcdFull, EtcdRefused, EtcdUnavailable, Guard, KeyValue, LeaseGone,
    Listing, ModIs, Op, Put, TxnResult, WatchBatch, WatchEvent, prefix_end,
)
from virga.etcd import rpc_pb2 as pb
from virga.etcd import rpc_pb2_grpc as rpc

CALL_TIMEOUT_S = 5.0
READ_ATTEMPTS = 4
WATCH_IDLE_S = 30.0            # a watch that hears nothing for so long asks for progress
PAGE = 2000
MAX_MESSAGE = 64 << 20
CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
]
METADATA = (("hasleader", "true"),)          # a member cut off from its cluster says so instead of serving old data
UNREACHABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED,
               grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED}

Observer = Callable[[str, float], None]      # (operation, seconds)


class EtcdClient:
    """A connection to one etcd cluster; see controller.etcd.types.Etcd."""

    def __init__(self, endpoints: Sequence[str], credentials: grpc.ChannelCredentials | None = None, *,
                 rng: random.Random, observe: Observer = lambda operation, seconds: None) -> None:
        target = endpoints[0] if len(endpoints) == 1 else "ipv4:" + ",".join(endpoints)
        self._channel = (grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS) if credentials
                         else grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS))
        self._kv, self._lease = rpc.KVStub(self._channel), rpc.LeaseStub(self._channel)
        self._watch = rpc.WatchStub(self._channel)
        self._maintenance, self._cluster = rpc.MaintenanceStub(self._channel), rpc.ClusterStub(self._channel)
        self._rng, self._observe = rng, observe

    async def close(self) -> None:
        await self._channel.close(grace=None)

    # ── reads ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def scan(self, prefix: str, revision: int = 0) -> Listing:
        """Everything under prefix, of one revision, however many pages that takes."""
        items: list[KeyValue] = []
        key, end = prefix.encode(), prefix_end(prefix).encode()
        while True:
            page = await self._read("range", self._kv.Range, pb.RangeRequest(
                key=key, range_end=end, limit=PAGE, revision=revision))
            revision = revision or page.header.revision
            items += map(_kv, page.kvs)
            if not page.more:
                return Listing(items, revision)
            key = page.kvs[-1].key + b"\0"

    async def get(self, key: str) -> KeyValue | None:
        answer = await self._read("range", self._kv.Range, pb.RangeRequest(key=key.encode()))
        return _kv(answer.kvs[0]) if answer.kvs else None

    async def check(self) -> str:
        """etcd's version. Raises EtcdRefused for one that is known to corrupt itself, or is too old."""
        status = await self._read("status", self._maintenance.Status, pb.StatusRequest())
        members = await self._read("members", self._cluster.MemberList, pb.MemberListRequest())
        judge_version(status.version, len(members.members))
        return status.version

    # ── writes ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> TxnResult:
        """All ops if all guards hold, else none. After EtcdUnavailable nobody knows which."""
        keys = list(dict.fromkeys(guard.key for guard in guards))
        request = pb.TxnRequest(
            compare=map(_compare, guards), success=map(_op, ops),
            failure=[pb.RequestOp(request_range=pb.RangeRequest(key=key.encode())) for key in keys])
        answer = await self._call("txn", self._kv.Txn, request)
        found = {} if answer.succeeded else {
            kv.key.decode(): _kv(kv) for response in answer.responses for kv in response.response_range.kvs}
        return TxnResult(answer.succeeded, answer.header.revision, found)

    async def compact(self, revision: int) -> None:
        """Forget history before revision."""
        with suppress(Compacted):
            await self._call("compact", self._kv.Compact, pb.CompactionRequest(revision=revision, physical=True))

    async def lease_grant(self, ttl_s: int) -> int:
        answer = await self._call("lease", self._lease.LeaseGrant, pb.LeaseGrantRequest(TTL=ttl_s))
        return answer.ID

    async def lease_keep_alive(self, lease: int) -> float:
        call = self._lease.LeaseKeepAlive(metadata=METADATA, timeout=CALL_TIMEOUT_S)
        try:
            await call.write(pb.LeaseKeepAliveRequest(ID=lease))
            answer = await call.read()
        except grpc.aio.AioRpcError as error:
            raise _translate(error) from error
        except asyncio.InvalidStateError as error:
            raise EtcdUnavailable("the lease's stream ended") from error
        finally:
            call.cancel()
        if answer is grpc.aio.EOF:
            raise EtcdUnavailable("the lease's stream ended")
        if answer.TTL <= 0:
            raise LeaseGone(f"lease {lease:x} is gone")
        return float(answer.TTL)

    async def lease_revoke(self, lease: int) -> None:
        with suppress(LeaseGone):
            await self._call("lease", self._lease.LeaseRevoke, pb.LeaseRevokeRequest(ID=lease))

    # ── watch ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """See Etcd.watch. Reconnects for ever; ends only by Compacted or with its reader."""
        revision, failures = start_revision, 0
        while True:
            try:
                async with aclosing(self._watch_once(prefix, revision)) as batches:
                    async for batch in batches:
                        failures, revision = 0, batch.revision + 1
                        yield batch
            except EtcdUnavailable:
                failures += 1
                await asyncio.sleep(self._rng.uniform(0, min(2.0, 0.05 * 2 ** min(failures, 8))))

    async def _watch_once(self, prefix: str, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        call = self._watch.Watch(metadata=METADATA)
        try:
            await call.write(pb.WatchRequest(create_request=pb.WatchCreateRequest(
                key=prefix.encode(), range_end=prefix_end(prefix).encode(), start_revision=start_revision,
                progress_notify=True, fragment=True)))
            gathered: list[WatchEvent] = []
            while True:
                response = await self._next_response(call)
                if response.compact_revision:
                    raise Compacted(response.compact_revision)
                if response.canceled:
                    raise EtcdUnavailable(f"watch cancelled: {response.cancel_reason}")
                gathered += map(_event, response.events)
                if response.fragment or response.created:
                    continue
                if gathered:
                    yield WatchBatch(gathered, gathered[-1].kv.mod_revision)
                    gathered = []
                elif response.header.revision >= start_revision:
                    yield WatchBatch([], response.header.revision)
        except grpc.aio.AioRpcError as error:
            raise _translate(error) from error
        except asyncio.InvalidStateError as error:
            raise EtcdUnavailable("the watch's stream ended") from error
        finally:
            call.cancel()

    async def _next_response(self, call: Any) -> Any:
        """The next message; asks for progress when it is long in coming, so that a dead peer shows."""
        reading = asyncio.ensure_future(call.read())
        try:
            asked = False
            while True:
                done, _ = await asyncio.wait([reading], timeout=WATCH_IDLE_S)
                if done:
                    break
                if asked:
                    raise EtcdUnavailable("the watch is silent")
                await call.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
                asked = True
        finally:
            if not reading.done():
                reading.cancel()
        response = reading.result()
        if response is grpc.aio.EOF:
            raise EtcdUnavailable("the watch's stream ended")
        return response

    # ── calls ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self, operation: str, method: Any, request: Any) -> Any:
        """A call that changes nothing: tried again a few times."""
        for attempt in range(1, READ_ATTEMPTS + 1):
            try:
                return await self._call(operation, method, request)
            except EtcdUnavailable:
                if attempt == READ_ATTEMPTS:
                    raise
                await asyncio.sleep(self._rng.uniform(0, 0.1 * 2 ** attempt))

    async def _call(self, operation: str, method: Any, request: Any) -> Any:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            return await method(request, timeout=CALL_TIMEOUT_S, metadata=METADATA)
        except grpc.aio.AioRpcError as error:
            raise _translate(error) from error
        finally:
            self._observe(operation, loop.time() - start)


def judge_version(version: str, members: int) -> None:
    """Raises EtcdRefused where this version must not be used in a cluster of so many members."""
    try:
        number = tuple(int(part) for part in version.split("-")[0].split("+")[0].split("."))
    except ValueError:
        raise EtcdRefused(f"etcd says its version is {version!r}") from None
    if number < (3, 4, 22):
        raise EtcdRefused(f"etcd {version} is too old: 3.4.22 or later is needed")
    if (3, 5, 0) <= number <= (3, 5, 5) and members > 1:
        raise EtcdRefused(f"etcd {version} with {members} members can corrupt itself (etcd issue 13766): "
                          "use 3.5.6 or later, or 3.4.22 or later of 3.4, or one member")


def _translate(error: grpc.aio.AioRpcError) -> EtcdError:
    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.NOT_FOUND:
        return LeaseGone(details)              # of the calls made here only those of leases answer so
    if code == grpc.StatusCode.OUT_OF_RANGE:
        return Compacted(0)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return EtcdFull(details)
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return EtcdRefused(f"whoever listens there is no etcd: {details}")
    if code in UNREACHABLE:
        return EtcdUnavailable(details or code.name)
    return EtcdError(f"{code.name}: {details}")


def _kv(kv: Any) -> KeyValue:
    return KeyValue(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def _event(event: Any) -> WatchEvent:
    return WatchEvent(_kv(event.kv), event.type == pb.Event.DELETE)


def _compare(guard: Guard) -> Any:
    match guard:
        case ModIs(key, revision):
            return pb.Compare(key=key.encode(), result=pb.Compare.EQUAL, target=pb.Compare.MOD, mod_revision=revision)
        case CreatedAt(key, revision):
            return pb.Compare(key=key.encode(), result=pb.Compare.EQUAL, target=pb.Compare.CREATE,
                              create_revision=revision)


def _op(op: Op) -> Any:
    match op:
        case Put(key, value, lease):
            return pb.RequestOp(request_put=pb.PutRequest(key=key.encode(), value=value, lease=lease))
        case Delete(key):
            return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key.encode()))
