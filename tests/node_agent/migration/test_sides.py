"""Every edge of the protocol, walked by two real sides over a real socket, with the fake machine and a clock of ours."""

import asyncio
import socket
import struct
import threading

import numpy as np
import pytest

from node_agent.migration import protocol, sides, stream
from node_agent.migration.protocol import TRANSITIONS, NotAllowed, Source, Target
from node_agent.vmprocess import files, wire
from node_agent.vmprocess.fakes import COUNT_AT, FakeMachines
from node_agent.vmprocess.lifecycle import State
from node_agent.vmprocess.process import Clock, VmProcess
from virga.vmm.v1 import vmm_pb2 as pb

WALKED = set()


class Ticks:
    """A clock that moves a millisecond whenever it is read."""

    def __init__(self):
        self.ns = 0

    def monotonic_ns(self):
        self.ns += 1_000_000
        return self.ns

    def clock(self):
        return Clock(unix=lambda: 1e9, monotonic=lambda: self.ns / 1e9, monotonic_ns=self.monotonic_ns)


class Breaking(FakeMachines):
    """Fails where it is told to."""

    def __init__(self):
        self.fail_save = self.fail_load = False

    def save(self, machine):
        if self.fail_save:
            raise RuntimeError("cannot save")
        return super().save(machine)

    def load(self, machine, state):
        if self.fail_load:
            raise RuntimeError("cannot load")
        super().load(machine, state)


class Pair:
    def __init__(self, source, target, machines):
        self.source, self.target, self.machines = source, target, machines
        self.port = 0

    async def offer(self, token=b"t", **more):
        self.port = await sides.Incoming.begin(self.target, pb.MigrateIn(id="m", token=b"t", offer_timeout_s=2))
        return sides.Outgoing.begin(self.source, pb.MigrateOut(
            id="m", host="127.0.0.1", port=self.port, token=token, **more))

    async def until(self, source=None, target=None):
        async with asyncio.timeout(10):
            while (source and (self.source.migration is None or self.source.migration.state is not source)) or \
                    (target and self.target.migration.state is not target):
                await asyncio.sleep(0.002)

    async def until_ready(self):
        await self.offer()
        await self.until(Source.PAUSED, Target.READY)

    async def decide(self, generation, winner):
        """Both learn it, the loser first: the harder order for whoever must not run."""
        loser, holder = (self.source, self.target) if winner is self.target else (self.target, self.source)
        if loser.lifecycle.state is not State.ENDED:
            await loser.migration.decide(generation, False)
        await holder.migration.decide(generation, True)

    def numbers(self, vm):
        data = vm.console.tail(1 << 20)[1]
        return [int(n) for n in data.split(b"\n")[:-1]]

    async def counts_on(self, vm):
        before = vm.console.written
        async with asyncio.timeout(5):
            while vm.console.written < before + 20:
                await asyncio.sleep(0.002)
        numbers = self.numbers(vm)
        assert numbers == list(range(len(numbers)))


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    def walk(state, event):
        after = protocol.step(state, event)
        WALKED.add((state, event))
        return after
    monkeypatch.setattr(sides, "step", walk)


@pytest.fixture
async def pair(tmp_path):
    machines, made, clock = Breaking(), [], Ticks().clock()
    for name in ("source", "target"):
        folder = files.VmFolder(tmp_path / name / "vm1")
        folder.path.mkdir(parents=True)
        record = pb.VmRecord(format=1, generation=1, config=pb.VmConfig(
            uid="vm1", memory_bytes=4 << 20, cpus=1, append="count dirty=2", console_bytes=1 << 16))
        vm = VmProcess(folder, record, machines, 0.0, clock)
        await vm.create()
        made.append(vm)
    await made[0].start()
    yield Pair(*made, machines)
    for vm in made:
        if vm.migration is not None:
            vm.migration._hang_up()
            if getattr(vm.migration, "_listener", None) is not None:
                vm.migration._listener.close()
        await vm.close()
    await asyncio.sleep(0.05)


async def test_commit_and_release(pair):
    await pair.until_ready()
    assert pair.source.lifecycle.state is State.HELD and pair.target.lifecycle.state is State.INCOMING
    await pair.decide(2, pair.target)
    await pair.source.migration.decide(2, False)                     # told again
    await pair.target.migration.decide(2, True)
    await pair.counts_on(pair.target)
    await pair.source.migration._failed("the target hung up")        # means nothing any more
    await pair.target.migration._failed("the source hung up")
    assert pair.source.lifecycle.state is State.HELD
    progress = pair.target.migration.progress()
    assert progress.gap_ms > 0 and progress.decision_ms > 0 and progress.rounds >= 2
    pair.source.migration.release()
    assert pair.source.end.reason == pb.END_REASON_MIGRATED


async def test_given_back(pair):
    await pair.until_ready()
    await pair.source.migration.decide(2, False)
    await pair.source.migration.decide(3, True)
    assert pair.source.generation == 3
    await pair.counts_on(pair.source)


async def test_abort_when_both_are_ready(pair):
    await pair.until_ready()
    await pair.decide(2, pair.source)
    await pair.source.migration.decide(2, True)
    await pair.counts_on(pair.source)
    await pair.source.migration._failed("an echo")
    assert pair.target.end.reason == pb.END_REASON_ABANDONED and not pair.target.ran


async def test_in_doubt_both_stay(pair):
    await pair.until_ready()
    await pair.source.migration._failed("lost")
    await pair.target.migration._failed("lost")
    written = pair.source.console.written
    await asyncio.sleep(0.05)
    assert pair.source.console.written == written == pair.target.console.written
    await pair.decide(2, pair.target)
    await pair.counts_on(pair.target)


async def test_a_half_received_copy_refuses_to_run(pair):
    pair.port = await sides.Incoming.begin(pair.target, pb.MigrateIn(id="m", token=b"t", offer_timeout_s=2))
    with pytest.raises(NotAllowed):
        await pair.target.migration.decide(2, True)
    await pair.target.migration.decide(2, False)
    assert pair.target.end.reason == pb.END_REASON_ABANDONED


async def test_nobody_comes(pair):
    await sides.Incoming.begin(pair.target, pb.MigrateIn(id="m", token=b"t", offer_timeout_s=0.05))
    await pair.until(target=Target.GONE)
    assert pair.target.migration.error == "nobody came"


async def test_a_wrong_token_changes_nothing(pair):
    out = await pair.offer(token=b"guessed")
    await pair.until(source=Source.BACK)
    assert pair.target.migration.state is Target.LISTENING and out.error
    await pair.counts_on(pair.source)
    await pair.source.migration.decide(2, True)


async def test_an_abort_before_anybody_answered(pair):
    silent = socket.create_server(("127.0.0.1", 0))
    sides.Outgoing.begin(pair.source, pb.MigrateOut(id="m", host="127.0.0.1", port=silent.getsockname()[1]))
    await pair.source.migration.decide(2, True)
    silent.close()
    await pair.counts_on(pair.source)


def copying(monkeypatch):
    """A source that never finds that little enough is left."""
    monkeypatch.setattr(sides, "MAX_ROUNDS", 1_000_000)
    monkeypatch.setattr(sides, "STOP_BELOW_MS", -1.0)


@pytest.mark.parametrize("how", ["decision", "failure", "cancel"])
async def test_an_end_while_copying(pair, monkeypatch, how):
    copying(monkeypatch)
    await pair.offer()
    await pair.until(Source.COPYING, Target.RECEIVING)
    if how == "decision":
        await pair.source.migration.decide(2, True)
        await pair.target.migration.decide(2, False)
    elif how == "failure":
        pair.target.migration._hang_up()
    else:
        await pair.source.migration.cancel("not today")
    await pair.until(Source.BACK, Target.GONE)
    assert pair.source.lifecycle.state is State.RUNNING
    await pair.counts_on(pair.source)
    assert pair.source.machine.space._dirty is None, "no dirty log is left on"


async def test_a_failure_between_standstill_and_the_last_byte(pair):
    pair.machines.fail_save = True
    await pair.offer()
    await pair.until(Source.BACK, Target.GONE)
    assert "cannot save" in pair.source.migration.error
    await pair.counts_on(pair.source)


async def test_an_abort_between_standstill_and_the_last_byte(pair, monkeypatch):
    entered, go = threading.Event(), threading.Event()
    original = sides.Outgoing._last_word

    def slow(self):
        entered.set()
        go.wait(10)
        return original(self)
    monkeypatch.setattr(sides.Outgoing, "_last_word", slow)
    await pair.offer()
    await asyncio.to_thread(entered.wait, 10)
    assert pair.source.migration.state is Source.STOPPED
    await pair.source.migration.decide(2, True)
    go.set()
    await pair.until(Source.BACK, Target.GONE)
    await pair.counts_on(pair.source)


async def test_a_target_that_cannot_load(pair):
    pair.machines.fail_load = True
    await pair.offer()
    await pair.until(Source.PAUSED, Target.GONE)
    async with asyncio.timeout(5):
        while not pair.source.migration.error:
            await asyncio.sleep(0.002)
    assert "cannot load" in pair.source.migration.error
    await pair.source.migration.decide(2, True)
    await pair.counts_on(pair.source)


async def test_a_paused_guest_arrives_paused(pair):
    await pair.source.pause()
    await pair.until_ready()
    await pair.decide(2, pair.target)
    assert pair.target.lifecycle.state is State.PAUSED and not pair.target.ran
    await pair.target.resume()
    await pair.counts_on(pair.target)


async def test_a_guest_that_dirties_faster_than_the_wire_is_not_stopped_for_long(pair, monkeypatch):
    monkeypatch.setattr(sides, "MAX_ROUNDS", 3)
    monkeypatch.setattr(sides.Outgoing, "_harvest", lambda side: np.ones(1024, bool))
    await pair.offer(max_gap_ms=1e-3)
    await pair.until(Source.BACK, Target.GONE)
    assert "does not converge" in pair.source.migration.error
    await pair.counts_on(pair.source)


async def test_a_machine_of_another_size_is_refused(pair):
    pair.target.config.cpus = 2
    await pair.offer()
    await pair.until(Source.BACK, Target.GONE)
    assert "cpus is 1 there and 2 here" in pair.source.migration.error


@pytest.mark.parametrize("frame", [
    struct.pack("<IIQ", 9, 0, 0),
    struct.pack("<IIQ", stream.PAGES, 1, 8 + 4096) + struct.pack("<II", 1 << 30, 1),
    struct.pack("<IIQ", stream.PAGES, 1, 8) + struct.pack("<II", 0, 1),
    struct.pack("<IIQ", stream.PAGES, 0, 0),
    struct.pack("<IIQ", stream.ZEROS, 1, 8) + struct.pack("<II", 1023, 2),
    struct.pack("<IIQ", stream.ZEROS, 4_000_000_000, 8),
    struct.pack("<IIQ", stream.ZEROS, 1, 8) + struct.pack("<II", 0, stream.MAX_RUN_FRAMES + 1),
    struct.pack("<IIQ", stream.STANDSTILL, 0, 1 << 40),
    struct.pack("<IIQ", stream.STANDSTILL, 0, 4) + b"\xff\xff\xff\xff",
])
async def test_garbage_on_the_stream_ends_the_copy_and_nothing_else(pair, frame):
    port = await sides.Incoming.begin(pair.target, pb.MigrateIn(id="m", token=b"t", offer_timeout_s=2))

    def talk():
        with socket.create_connection(("127.0.0.1", port)) as sock:
            wire.send(sock, pb.Offer(protocol=1, id="m", token=b"t", config=pair.source.config))
            wire.receive(sock, pb.OfferReply)
            sock.sendall(frame)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
    await asyncio.to_thread(talk)
    await pair.until(target=Target.GONE)
    assert pair.target.migration.error


def test_off_loopback_only_with_tls():
    with pytest.raises(stream.StreamError):
        stream.require_tls("192.0.2.1", pb.TlsFiles())
    assert stream.require_tls("192.0.2.1", pb.TlsFiles(cert="c", key="k", ca="a"))
    assert not stream.require_tls("127.0.0.1", pb.TlsFiles())
    assert not stream.require_tls("::1", pb.TlsFiles())


async def test_a_release_only_after_a_commit(pair):
    await pair.until_ready()
    with pytest.raises(NotAllowed):
        pair.source.migration.check_release()


def test_the_number_is_in_memory():
    assert COUNT_AT % 4096 == 0


def test_every_edge_was_walked():
    assert set(TRANSITIONS) - WALKED == set()
