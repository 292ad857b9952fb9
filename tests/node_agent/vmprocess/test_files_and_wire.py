"""Records are whole or refused, frames are whole or refused, sockets work at any depth."""

import asyncio
import os
import socket
import struct

import pytest

from node_agent.vmprocess import files, sockets, wire
from node_agent.vmprocess.identity import ProcessId, boot_id, start_time
from node_agent.vmprocess.lifecycle import TRANSITIONS, Event, Lifecycle, NotNow, State
from virga.vmm.v1 import vmm_pb2 as pb


def test_a_record_comes_back(tmp_path):
    record = pb.VmRecord(format=1, generation=7, config=pb.VmConfig(uid="vm1", append="a b"))
    files.write_record(tmp_path / "vm.pb", record)
    assert files.read_record(tmp_path / "vm.pb", pb.VmRecord) == record
    assert files.read_record(tmp_path / "none.pb", pb.VmRecord) is None
    assert os.stat(tmp_path / "vm.pb").st_mode & 0o777 == 0o600


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "vm.pb"
    files.write_record(path, pb.VmRecord(format=1, generation=7))
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1:])
        with pytest.raises(files.CorruptRecord):
            files.read_record(path, pb.VmRecord)
        path.write_bytes(good[:at])
        with pytest.raises(files.CorruptRecord):
            files.read_record(path, pb.VmRecord)


def test_a_write_that_fails_leaves_the_old_record(tmp_path, monkeypatch):
    path = tmp_path / "vm.pb"
    files.write_record(path, pb.VmRecord(format=1, generation=7))

    def full(fd):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError):
        files.write_record(path, pb.VmRecord(format=1, generation=8))
    assert files.read_record(path, pb.VmRecord).generation == 7
    assert [p.name for p in tmp_path.iterdir()] == ["vm.pb"]


@pytest.mark.parametrize("uid", ["", "..", "a/b", ".hidden", "x" * 65, "a\0b"])
def test_a_uid_never_leads_out_of_its_folder(tmp_path, uid):
    with pytest.raises(ValueError):
        files.VmFolder.under(tmp_path, uid)


async def test_sockets_far_below(tmp_path):
    deep = tmp_path
    for _ in range(12):
        deep = deep / ("d" * 40)
    deep.mkdir(parents=True)
    listener = sockets.listen(deep / "sock")
    reader, writer = await sockets.open_stream(deep / "sock")
    listener.accept()[0].close()
    with pytest.raises(wire.Closed):
        await wire.read(reader, pb.Hello)
    writer.close()
    listener.close()
    listener = sockets.listen(deep / "sock")             # over what a dead process left
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        sockets.connect(deep / "sock")


async def read_from(data):
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await wire.read(reader, pb.Hello)


async def test_frames():
    frame = wire.encode(pb.Hello(uid="vm1"))
    assert (await read_from(frame)).uid == "vm1"
    for bad in (frame[:-1], frame[:2], struct.pack(">I", wire.MAX_FRAME + 1), struct.pack(">I", 2) + b"\xff\xff"):
        with pytest.raises(wire.WireError):
            await read_from(bad)
    with pytest.raises(wire.Closed):
        await read_from(b"")


def test_blocking_frames():
    a, b = socket.socketpair()
    wire.send(a, pb.Hello(uid="vm1"))
    assert wire.receive(b, pb.Hello).uid == "vm1"
    a.sendall(b"\0\0\0\5ab")
    a.close()
    with pytest.raises(wire.WireError):
        wire.receive(b, pb.Hello)
    b.close()


def test_a_process_is_known_by_pid_and_start_time():
    me = ProcessId.mine()
    assert me.alive() and ProcessId.of(os.getpid()) == me and len(boot_id()) == 36
    other = ProcessId(me.pid, me.start_time + 1)
    assert not other.alive() and not other.signal(9)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert start_time(pid) is None, "a zombie is not alive"
    os.waitpid(pid, 0)
    assert start_time(pid) is None


def test_the_lifecycle_refuses_what_its_table_does_not_have():
    for state in State:
        for event in Event:
            machine = Lifecycle()
            machine.state = state
            if (state, event) in TRANSITIONS:
                assert machine.take(event) is TRANSITIONS[state, event]
            else:
                with pytest.raises(NotNow):
                    machine.take(event)
                assert machine.state is state


def test_nothing_but_a_decision_or_an_end_leads_out_of_a_migration():
    for held in (State.HELD, State.INCOMING):
        events = {event for state, event in TRANSITIONS if state is held}
        assert not events & {Event.RESUME, Event.PAUSE, Event.START}
