"""Commit, cache, leadership: over a fake etcd that loses answers, forgets history, and goes away."""

import asyncio
import random

import pytest

from controller import errors
from controller.etcd.fake import FakeEtcd
from controller.etcd.types import CreatedAt, Delete, Put
from controller.ids import Ids
from controller.model.codec import BadRecord, decode, encode
from controller.model.records import (
    Assignment, ImageFile, ImageKind, ImageRecord, Leader, NodeRecord, Placement, Pointer, Refusal, VmState, VmStatus,
)
from controller.store import keys, leader
from controller.store.cache import Cache
from controller.store.feed import Feed
from controller.store.leader import Leadership
from controller.store.store import Commit, Conflict, Store


class Time:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
async def made():
    time = Time()
    etcd = FakeEtcd(time)
    cache = Cache(etcd)
    store = Store(etcd, cache, Ids(time, random.Random(1)).next)
    store.time, store.etcd = time, etcd
    following = asyncio.create_task(cache.follow())
    await cache.synced.wait()
    revision = (await etcd.txn([], [Put(keys.LEADER, encode(Leader("me", "here")))])).revision
    store.fence = CreatedAt(keys.LEADER, revision)
    await cache.wait_for(revision)
    yield store
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_what_was_committed_is_read(made):
    await made.commit(Commit().create(keys.VM_ASSIGN, "a", Assignment("node-1", 1)))
    assert made.entry(keys.VM_ASSIGN, "a").record == Assignment("node-1", 1)


async def test_of_two_who_change_the_same_one_has_to_decide_again(made):
    await made.commit(Commit().create(keys.VM_ASSIGN, "a", Assignment("node-1", 1)))
    seen = made.entry(keys.VM_ASSIGN, "a")
    await made.commit(Commit().update(keys.VM_ASSIGN, "a", seen, Assignment("node-2", 2)))
    with pytest.raises(Conflict):
        await made.commit(Commit().update(keys.VM_ASSIGN, "a", seen, Assignment("node-3", 2)))
    with pytest.raises(Conflict):
        await made.commit(Commit().create(keys.VM_ASSIGN, "a", Assignment("node-3", 1)))
    with pytest.raises(Conflict):
        await made.commit(Commit().create(keys.VM_NAME, "x", Pointer("a")).require(keys.VM_ASSIGN, "a", seen))
    assert made.entry(keys.VM_ASSIGN, "a").record == Assignment("node-2", 2)


async def test_counting_together_loses_nothing(made):
    await made.commit(Commit().create(keys.VM_ASSIGN, "a", Assignment("n", 0)))

    def one_more():
        entry = made.entry(keys.VM_ASSIGN, "a")
        return Commit().update(keys.VM_ASSIGN, "a", entry, Assignment("n", entry.record.generation + 1)), None

    await asyncio.gather(*(made.change(one_more) for _ in range(8)))
    assert made.entry(keys.VM_ASSIGN, "a").record.generation == 8


async def test_a_lost_answer_is_recognised_as_ones_own_write(made):
    made.etcd.lose_answers = 1
    await made.commit(Commit().create(keys.VM_ASSIGN, "a", Assignment("n", 1)))
    entry = made.entry(keys.VM_ASSIGN, "a")
    made.etcd.lose_answers = 1
    await made.commit(Commit().delete(keys.VM_ASSIGN, "a", entry))
    assert made.entry(keys.VM_ASSIGN, "a") is None


async def test_who_no_longer_leads_writes_nothing(made):
    await made.etcd.txn([], [Delete(keys.LEADER)])
    await made.etcd.txn([], [Put(keys.LEADER, encode(Leader("other", "there")))])
    with pytest.raises(errors.Unavailable) as refused:
        await made.commit(Commit().create(keys.VM_ASSIGN, "a", Assignment("n", 1)))
    assert refused.value.reason == "NOT_LEADER"
    assert await made.etcd.get(keys.VM_ASSIGN + "a") is None


async def test_the_cache_lists_again_where_history_is_gone():
    etcd = FakeEtcd(Time())
    cache, told = Cache(etcd), []
    cache.listen(told.extend)
    await etcd.txn([], [Put(keys.VM_ASSIGN + "gone", encode(Assignment("n", 1))),
                        Put(keys.VM_ASSIGN + "stays", encode(Assignment("n", 1)))])
    following = asyncio.create_task(cache.follow())
    await cache.synced.wait()
    told.clear()
    etcd.set_down(True)
    await asyncio.sleep(0)
    etcd.down = False
    etcd._apply([Delete(keys.VM_ASSIGN + "gone"), Put(keys.VM_ASSIGN + "new", encode(Assignment("n", 2)))])
    await etcd.compact(etcd.revision + 1)
    assert await cache.wait_for(etcd.revision)
    assert sorted((change.id, change.old is None, change.new is None) for change in told) == [
        ("gone", False, True), ("new", True, False)]
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_a_record_that_cannot_be_read_harms_no_other(made, caplog):
    result = await made.etcd.txn([], [Put(keys.NODE + "bad", b"\xff{"), Put(keys.NODE + "worse", b"[1]"),
                                      Put(keys.VM_ASSIGN + "good", encode(Assignment("n", 1)))])
    await made.cache.wait_for(result.revision)
    assert made.entry(keys.NODE, "bad") is None
    assert made.entry(keys.VM_ASSIGN, "good").record.node == "n"
    assert caplog.text.count("cannot be read") == 2


async def test_one_leads_and_the_next_one_follows(monkeypatch):
    monkeypatch.setattr(leader, "LOOK_S", 0.001)
    monkeypatch.setattr(leader, "BEAT_S", 0.001)
    time = Time()
    etcd = FakeEtcd(time)
    first = Leadership(etcd, Leader("first", "folder-1"), random.Random(1))
    second = Leadership(etcd, Leader("second", "folder-2"), random.Random(2))
    async with first.won() as (fence, lost):
        other = asyncio.create_task(_term(second))
        await asyncio.sleep(0.05)
        assert not other.done() and not lost.done()
    next_fence = await asyncio.wait_for(other, 5)
    assert next_fence.revision > fence.revision


async def test_a_leader_whose_folder_is_ours_is_dead(monkeypatch):
    monkeypatch.setattr(leader, "LOOK_S", 0.001)
    etcd = FakeEtcd(Time())
    lease = await etcd.lease_grant(1000)
    await etcd.txn([], [Put(keys.LEADER, encode(Leader("killed", "folder")), lease)])
    assert await asyncio.wait_for(_term(Leadership(etcd, Leader("new", "folder"), random.Random(1))), 5)


async def test_a_lost_lease_ends_the_term(monkeypatch):
    monkeypatch.setattr(leader, "BEAT_S", 0.001)
    time = Time()
    etcd = FakeEtcd(time)
    async with Leadership(etcd, Leader("me", "folder"), random.Random(1)).won() as (_, lost):
        etcd.set_down(True)
        await asyncio.sleep(0.02)
        assert not lost.done()                          # silence is no loss
        etcd.set_down(False)
        time.now += 100
        await asyncio.wait_for(lost, 5)


async def _term(leadership):
    async with leadership.won() as (fence, _):
        return fence


def test_a_feed_tells_each_change_once_in_order():
    feed = Feed()
    feed.start(10)
    for revision, id in ((11, "a"), (12, "b"), (13, "a")):
        feed.add(revision, id, id.upper())
    assert feed.since(10) == [("b", "B"), ("a", "A")]
    assert feed.since(12) == [("a", "A")]
    assert feed.since(13) == []


@pytest.mark.parametrize("record", [
    NodeRecord(uid="u", name="n", memory_mib=1, cpus=2, create_time=3.5, labels={"a": "b"}, lost=True),
    ImageRecord(uid="u", name="n", kind=ImageKind.LINUX, files=(ImageFile("KERNEL", 5, "ab"),), create_time=1.0),
    VmStatus(state=VmState.PENDING, placement=Placement(3, (Refusal("memory", 2, "too little"),), "s")),
    Pointer("x", time=5.0)])
def test_records_come_back_as_they_were(record):
    assert decode(type(record), encode(record, "nonce")) == record


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b'{"uid": 5}', b'{"state": "FLYING"}', b"\xff"])
def test_what_is_no_record_says_so(data):
    with pytest.raises(BadRecord):
        decode(VmStatus if b"state" in data else NodeRecord, data)


def test_a_record_of_a_later_version_is_read():
    assert decode(Assignment, b'{"node": "n", "generation": 3, "colour": "blue"}') == Assignment("n", 3)


def test_ids_sort_by_time_and_never_repeat():
    time = Time()
    ids = Ids(time, random.Random(1))
    made = [ids.next() for _ in range(1000)]
    time.now += 0.01
    made.append(ids.next())
    assert made == sorted(set(made)) and all(len(each) == 26 for each in made)
