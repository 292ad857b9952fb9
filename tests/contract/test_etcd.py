"""The fake and the real etcd behave alike, wherever the controller can tell."""

import asyncio
import random
import time

import pytest

from controller.etcd.client import EtcdClient, judge_version
from controller.etcd.fake import FakeEtcd
from controller.etcd.types import (
    Compacted, CreatedAt, Delete, EtcdRefused, EtcdUnavailable, LeaseGone, ModIs, Put,
)
from tests.servers.etcd import EtcdServer, free_port


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = EtcdServer(tmp_path_factory.mktemp("etcd"), fsync=False)
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["fake", "real"])
async def etcd(request, server):
    client = (FakeEtcd(time.monotonic) if request.param == "fake"
              else EtcdClient([server.endpoint], rng=random.Random(1)))
    everything = await client.scan("/t/")
    for kv in everything.items:
        await client.txn([], [Delete(kv.key)])
    yield client
    await client.close()


async def collect(etcd, prefix, start, count):
    """The next `count` events as (key, value or None)."""
    events = []
    async with asyncio.timeout(10):
        watch = etcd.watch(prefix, start)
        async for batch in watch:
            events += [(e.kv.key, None if e.deleted else e.kv.value) for e in batch.events]
            if len(events) >= count:
                await watch.aclose()
                return events


async def test_a_key_is_created_once(etcd):
    assert (await etcd.txn([ModIs("/t/a", 0)], [Put("/t/a", b"1")])).succeeded
    second = await etcd.txn([ModIs("/t/a", 0)], [Put("/t/a", b"2")])
    assert not second.succeeded
    assert second.found["/t/a"].value == b"1"
    assert (await etcd.get("/t/a")).value == b"1"


async def test_all_operations_or_none(etcd):
    await etcd.txn([], [Put("/t/a", b"1")])
    refused = await etcd.txn([ModIs("/t/b", 5)], [Put("/t/a", b"2"), Delete("/t/a")][:1])
    assert not refused.succeeded and refused.found == {}
    done = await etcd.txn([], [Delete("/t/a"), Put("/t/b", b"3")])
    listing = await etcd.scan("/t/")
    assert [(kv.key, kv.value, kv.mod_revision) for kv in listing.items] == [("/t/b", b"3", done.revision)]


async def test_creation_guard_survives_writes(etcd):
    created = (await etcd.txn([], [Put("/t/leader", b"a")])).revision
    await etcd.txn([], [Put("/t/leader", b"b")])
    assert (await etcd.txn([CreatedAt("/t/leader", created)], [Put("/t/x", b"")])).succeeded
    await etcd.txn([], [Delete("/t/leader")])
    await etcd.txn([], [Put("/t/leader", b"c")])
    assert not (await etcd.txn([CreatedAt("/t/leader", created)], [Put("/t/x", b"")])).succeeded


async def test_watch_sends_each_change_once_in_order(etcd):
    start = (await etcd.scan("/t/")).revision + 1
    for i in range(50):
        await etcd.txn([], [Put("/t/k", b"%d" % i), Put("/other/k", b"")])
    await etcd.txn([], [Delete("/t/k")])
    events = await collect(etcd, "/t/", start, 51)
    assert events == [("/t/k", b"%d" % i) for i in range(50)] + [("/t/k", None)]


async def test_watch_delivers_what_comes_later(etcd):
    start = (await etcd.scan("/t/")).revision + 1
    waiting = asyncio.ensure_future(collect(etcd, "/t/", start, 1))
    await asyncio.sleep(0.05)
    await etcd.txn([], [Put("/t/late", b"x")])
    assert await waiting == [("/t/late", b"x")]


async def test_watch_of_forgotten_history_says_so(etcd):
    start = (await etcd.txn([], [Put("/t/k", b"1")])).revision
    last = (await etcd.txn([], [Put("/t/k", b"2")])).revision
    await etcd.compact(last)
    with pytest.raises(Compacted):
        await collect(etcd, "/t/", start, 1)
    assert await collect(etcd, "/t/", last, 1) == [("/t/k", b"2")]


async def test_keys_die_with_their_lease(etcd):
    lease = await etcd.lease_grant(5)
    await etcd.txn([], [Put("/t/mine", b"", lease)])
    assert await etcd.lease_keep_alive(lease) > 0
    await etcd.lease_revoke(lease)
    assert await etcd.get("/t/mine") is None
    with pytest.raises(LeaseGone):
        await etcd.lease_keep_alive(lease)
    with pytest.raises(LeaseGone):
        await etcd.txn([], [Put("/t/mine", b"", lease)])


async def test_large_listings_are_whole(etcd):
    for start in range(0, 4100, 100):
        await etcd.txn([], [Put(f"/t/{i:05}", b"v" * 100) for i in range(start, start + 100)])
    listing = await etcd.scan("/t/")
    assert [kv.key for kv in listing.items] == [f"/t/{i:05}" for i in range(4100)]


async def test_nobody_there_is_unavailable():
    client = EtcdClient([f"127.0.0.1:{free_port()}"], rng=random.Random(1))
    with pytest.raises(EtcdUnavailable):
        await client.txn([], [Put("/t/a", b"")])
    await client.close()


async def test_this_etcd_is_accepted(server):
    client = EtcdClient([server.endpoint], rng=random.Random(1))
    assert await client.check()
    await client.close()


@pytest.mark.parametrize("version, members, fine", [
    ("3.5.1", 1, True), ("3.5.1", 3, False), ("3.5.5", 2, False), ("3.5.6", 3, True), ("3.4.23", 3, True),
    ("3.4.21", 1, False), ("3.6.0-rc.1", 3, True), ("2.3.8", 1, False), ("garbage", 1, False)])
def test_versions_known_to_corrupt_are_refused(version, members, fine):
    if fine:
        judge_version(version, members)
    else:
        with pytest.raises(EtcdRefused):
            judge_version(version, members)
