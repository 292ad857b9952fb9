"""The etcd client against an etcd that is killed: nothing that was acknowledged is lost, no event is missed or sent
twice, no guarded write takes effect twice."""

import asyncio
import random

import pytest

from controller.etcd.client import EtcdClient
from controller.etcd.types import Compacted, EtcdUnavailable, ModIs, Put
from tests.servers.etcd import EtcdServer

KILLS = 3
WRITERS = 4


@pytest.fixture
async def etcd(tmp_path):
    server = EtcdServer(tmp_path)
    server.start()
    server.client = EtcdClient([server.endpoint], rng=random.Random(1))
    yield server
    await server.client.close()
    server.kill()


async def count_up(client, key, stop, acknowledged):
    """Write 1, 2, 3 … to one key, each on top of the one before; after an unknown outcome look what became of it."""
    value, revision = 0, 0
    while not stop.is_set():
        try:
            result = await client.txn([ModIs(key, revision)], [Put(key, b"%d" % (value + 1))])
            if result.succeeded:
                value, revision = value + 1, result.revision
            else:
                found = result.found[key]
                assert int(found.value) == value + 1, "another write than ours took effect"
                value, revision = int(found.value), found.mod_revision
            acknowledged[key] = value
        except EtcdUnavailable:
            await asyncio.sleep(0.05)


async def collect(client, prefix, start, events, done):
    watch = client.watch(prefix, start)
    async for batch in watch:
        events += [(event.kv.mod_revision, event.kv.key, int(event.kv.value)) for event in batch.events]
        if done(events):
            await watch.aclose()
            return


async def test_killed_under_load(etcd):
    client, stop, acknowledged, events = etcd.client, asyncio.Event(), {}, []
    start = (await client.scan("/load/")).revision + 1
    goal = {}
    watching = asyncio.create_task(collect(client, "/load/", start, events, lambda events: goal and all(
        any(e[1:] == item for e in events[-200:]) for item in goal.items())))
    writers = [asyncio.create_task(count_up(client, f"/load/{i}", stop, acknowledged)) for i in range(WRITERS)]
    for _ in range(KILLS):
        await asyncio.sleep(0.7)
        before = sum(acknowledged.values())
        etcd.kill()
        await asyncio.sleep(0.2)
        await asyncio.to_thread(etcd.start)
        async with asyncio.timeout(20):
            while sum(acknowledged.values()) <= before:
                await asyncio.sleep(0.05)
    stop.set()
    await asyncio.gather(*writers)
    goal.update(acknowledged)
    await client.txn([], [Put("/load/0", b"%d" % acknowledged["/load/0"])])            # wakes the watch a last time
    await asyncio.wait_for(watching, 20)
    for key, last in acknowledged.items():
        assert int((await client.get(key)).value) in (last, last + 1)      # one more: done, and its answer killed
        seen = [value for _, each, value in events if each == key]
        assert seen[:last] == list(range(1, last + 1))
    revisions = [revision for revision, _, _ in events]
    assert revisions == sorted(set(revisions))


async def test_a_watch_wakes_up_in_another_history(etcd):
    """Compacted away while the watch was cut off: it says so, and never skips silently."""
    client = etcd.client
    start = (await client.txn([], [Put("/w/a", b"1")])).revision
    watch = client.watch("/w/", start)
    assert (await anext(watch)).events[0].kv.value == b"1"
    etcd.kill()
    reading = asyncio.create_task(anext(watch))
    await asyncio.sleep(0.3)
    etcd.start()
    other = EtcdClient([etcd.endpoint], rng=random.Random(2))
    async with asyncio.timeout(20):
        while True:
            try:
                last = (await other.txn([], [Put("/w/a", b"2")])).revision
                break
            except EtcdUnavailable:
                await asyncio.sleep(0.1)
    try:
        async with asyncio.timeout(20):
            event = await reading
            assert (event.events[-1].kv.value, event.events[-1].kv.mod_revision) == (b"2", last)
    except Compacted:
        pytest.fail("nothing was compacted")
    await watch.aclose()
    await other.compact(last)
    with pytest.raises(Compacted):
        await anext(other.watch("/w/", start))
    await other.close()


async def test_a_lease_outlives_a_restart(etcd):
    client = etcd.client
    lease = await client.lease_grant(5)
    await client.txn([], [Put("/mine", b"", lease)])
    etcd.kill()
    etcd.start()
    async with asyncio.timeout(20):
        while True:
            try:
                assert await client.lease_keep_alive(lease) > 0
                break
            except EtcdUnavailable:
                await asyncio.sleep(0.1)
    assert await client.get("/mine") is not None
