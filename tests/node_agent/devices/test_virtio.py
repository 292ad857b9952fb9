"""Virtio devices through their PCI function, driven as a guest's driver would."""

from __future__ import annotations

import os
import random
import struct

import pytest
from driver import BAR_GPA, MSI_ADDRESS, Driver

from node_agent.devices.virtio.block import Block
from node_agent.devices.virtio.console import Console
from node_agent.devices.virtio.rng import Rng
from node_agent.devices.virtio.transport import VirtioPci

EVENT_IDX = 1 << 29


class Rig:
    def __init__(self, backend, memory, windows, line) -> None:
        self.messages = []
        self.backend = backend
        self.device = VirtioPci(backend, memory, windows, line, lambda a, d: self.messages.append((a, d)))
        self.driver = Driver(self.device, memory, windows)


@pytest.fixture
def rng(memory, windows, line, timers):
    return Rig(Rng(timers, random.Random(1).randbytes), memory, windows, line)


@pytest.fixture
def disk_file(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(2).randbytes(64 * 512))
    return path


@pytest.fixture
def disk(memory, windows, line, timers, disk_file):
    rig = Rig(Block(str(disk_file), False, memory, timers), memory, windows, line)
    yield rig
    rig.backend.close()


@pytest.fixture
def console(memory, windows, line, timers):
    out = bytearray()
    rig = Rig(Console(timers, out.extend), memory, windows, line)
    rig.out = out
    return rig


def request(rig, kind, sector, *parts, kick=True):
    """Send one block request; (status, bytes written)."""
    header = rig.driver.place(struct.pack("<IIQ", kind, 0, sector))
    status = rig.driver.place(b"\xEE")
    rig.driver.send(0, (header, 16, False), *parts, (status, 1, True), kick=kick)
    ((_, written),) = rig.driver.used(0)
    return rig.driver.memory.read(status, 1)[0], written


def test_identity_and_windows(rng):
    device = rng.device
    assert device.read_config(0, 4) == 0x1044_1AF4
    assert set(rng.driver.at) == {1, 2, 3, 4, 5}
    device.write_config(0x10, 4, 0xFFFFFFFF)
    assert device.read_config(0x10, 4) == 0xFFFF8004


def test_rng_fills_what_the_driver_offers(rng, memory):
    rng.driver.start(1)
    rng.driver.send(0, (0x50000, 64, True))
    assert rng.driver.used(0) == [(0, 64)]
    assert memory.read(0x50000, 64) == random.Random(1).randbytes(64)
    assert rng.messages == [(MSI_ADDRESS, 0x40)]


def test_without_msix_the_line_and_isr_tell(rng, line):
    rng.driver.start(1, msix=False)
    rng.driver.send(0, (0x50000, 8, True))
    assert line.level and rng.messages == []
    assert rng.driver.read(3, 0, 1) == 1 and not line.level


def test_no_interrupt_flag_is_honoured(rng, memory):
    rng.driver.start(1)
    memory.write(0x20000, b"\1\0")
    rng.driver.send(0, (0x50000, 8, True))
    assert rng.driver.used(0) and rng.messages == []


def test_event_index_holds_interrupts_back(rng, memory):
    rng.driver.start(1, 1 << 32 | EVENT_IDX)
    memory.write(0x20000 + 4 + 2 * 8, struct.pack("<H", 1))      # tell me after the second
    rng.driver.send(0, (0x50000, 8, True))
    assert rng.messages == []
    rng.driver.send(0, (0x50000, 8, True))
    assert len(rng.messages) == 1


def test_indirect_descriptors(rng, memory):
    rng.driver.start(1)
    table = rng.driver.place(struct.pack("<QIHH", 0x50000, 4, 3, 1) + struct.pack("<QIHH", 0x50100, 4, 2, 0))
    memory.write(0x10000, struct.pack("<QIHH", table, 32, 4, 0))
    rng.driver.announce(0, 0)
    assert rng.driver.used(0) == [(0, 8)]
    assert memory.read(0x50000, 4) + memory.read(0x50100, 4) == random.Random(1).randbytes(8)


@pytest.mark.parametrize("descriptor", [
    struct.pack("<QIHH", 1 << 40, 16, 2, 0),                     # outside memory
    struct.pack("<QIHH", 0x50000, 16, 3, 0),                     # a loop
    struct.pack("<QIHH", 0x50000, 16, 3, 99),                    # no such descriptor
    struct.pack("<QIHH", 0x50000, 17, 4, 0),                     # a crooked indirect table
])
def test_a_broken_ring_fails_the_device_until_reset(rng, memory, descriptor):
    rng.driver.start(1)
    memory.write(0x10000, descriptor)
    rng.driver.announce(0, 0)
    assert rng.driver.read(1, 0x14, 1) & 64
    rng.driver.write(1, 0x14, 1, 0)
    memory.write(0x20000, bytes(0x20000))
    rng.driver.sent[0] = rng.driver.seen[0] = 0
    rng.driver.start(1)
    rng.driver.send(0, (0x50000, 8, True))
    assert rng.driver.used(0) == [(0, 8)]


def test_an_index_beyond_the_ring_fails_the_device(rng, memory):
    rng.driver.start(1)
    memory.write(0x20002, struct.pack("<H", rng.driver.size + 1))
    rng.driver.write(2, 0, 2, 0)
    assert rng.driver.read(1, 0x14, 1) & 0x40 and rng.driver.used(0) == []


def test_features_that_were_not_offered_are_refused(rng):
    driver = rng.driver
    driver.write(1, 0x14, 1, 3)
    driver.write(1, 0x08, 4, 1)
    driver.write(1, 0x0C, 4, 0xFFFFFFFF)
    driver.write(1, 0x14, 1, 0x0B)
    assert not driver.read(1, 0x14, 1) & 8


def test_configuration_access_window(rng):
    at = rng.device.read_config(0x34, 1)
    while not (rng.device.read_config(at, 1) == 9 and rng.device.read_config(at + 3, 1) == 5):
        at = rng.device.read_config(at + 1, 1)
    rng.device.write_config(at + 8, 4, 0x12)                     # num_queues
    rng.device.write_config(at + 12, 4, 2)
    assert rng.device.read_config(at + 16, 4) & 0xFFFF == 1


def test_a_bar_over_another_waits_until_it_moves(rng, windows):
    from node_agent.devices.base import FrameRange
    windows.map_frames(FrameRange(0xD0000000, 0x1000), None)
    rng.device.write_config(0x10, 4, 0xD0000000)
    assert len(windows.mapped) == 1
    rng.device.write_config(0x10, 4, 0xD1000000)
    assert FrameRange(0xD1000000, 0x8000) in windows.mapped


def test_a_masked_vector_pends(rng):
    rng.driver.start(1)
    rng.driver.window.write(BAR_GPA + 0x4000 + 12, 4, 1)
    rng.driver.send(0, (0x50000, 8, True))
    assert rng.messages == [] and rng.driver.window.read(BAR_GPA + 0x5000, 4) == 1
    rng.driver.window.write(BAR_GPA + 0x4000 + 12, 4, 0)
    assert len(rng.messages) == 1


def test_disk_says_its_size(disk):
    assert disk.driver.read(4, 0, 4) == 64 and disk.driver.read(4, 20, 4) == 512


def test_disk_reads_over_several_segments(disk, disk_file, memory):
    disk.driver.start(1)
    assert request(disk, 0, 3, (0x60000, 512, True), (0x70000, 1024, True)) == (0, 1537)
    data = disk_file.read_bytes()[3 * 512:6 * 512]
    assert memory.read(0x60000, 512) + memory.read(0x70000, 1024) == data


def test_disk_writes_and_flushes(disk, disk_file, memory):
    disk.driver.start(1)
    memory.write(0x60000, b"v" * 1024)
    assert request(disk, 1, 5, (0x60000, 512, False), (0x60200, 512, False)) == (0, 1)
    assert request(disk, 4, 0) == (0, 1)
    assert disk_file.read_bytes()[5 * 512:7 * 512] == b"v" * 1024


def test_a_busy_disk_takes_one_request_a_turn(disk, memory, timers):
    waiting = []
    timers.submit = lambda work, delay_ns: waiting.append(work)
    disk.driver.start(1)
    header, status = disk.driver.place(struct.pack("<IIQ", 4, 0, 0)), disk.driver.place(b"\xEE")
    for _ in range(2):
        disk.driver.send(0, (header, 16, False), (status, 1, True))
    for turn in range(2):
        work, done = waiting.pop()()
        assert waiting == [] and done(work()) is None
        assert len(disk.driver.used(0)) == 1
    assert len(waiting) == 1 and waiting.pop()() is None and waiting == []


@pytest.mark.parametrize("kind, sector, size, status", [
    (0, 64, 512, 1), (1, 64, 512, 1), (0, 63, 1024, 1), (0, 1 << 62, 512, 1), (0, 0, 100, 1), (99, 0, 512, 2)])
def test_disk_refuses_what_is_outside(disk, disk_file, kind, sector, size, status):
    before = disk_file.read_bytes()
    disk.driver.start(1)
    assert request(disk, kind, sector, (0x60000, size, kind != 1))[0] == status
    assert disk_file.read_bytes() == before


def test_disk_into_memory_that_is_not_there(disk):
    disk.driver.start(1)
    assert request(disk, 0, 0, (1 << 39, 512, True))[0] == 1


def test_disk_discards_and_zeroes(disk, disk_file):
    disk.driver.start(1)
    segment = disk.driver.place(struct.pack("<QII", 8, 8, 0))
    assert request(disk, 13, 0, (segment, 16, False)) == (0, 1)
    assert disk_file.read_bytes()[8 * 512:16 * 512] == bytes(8 * 512)
    assert request(disk, 11, 0, (segment, 16, False)) == (0, 1)
    outside = disk.driver.place(struct.pack("<QII", 60, 8, 0))
    assert request(disk, 13, 0, (outside, 16, False))[0] == 1


def test_disk_name(disk, memory):
    disk.driver.start(1)
    assert request(disk, 8, 0, (0x60000, 20, True)) == (0, 21)
    assert memory.read(0x60000, 8) == b"disk.img"


def test_a_read_only_disk(memory, windows, line, timers, disk_file):
    os.chmod(disk_file, 0o444)
    rig = Rig(Block(str(disk_file), True, memory, timers), memory, windows, line)
    rig.driver.start(1, 1 << 32 | 1 << 5)
    assert request(rig, 1, 0, (0x60000, 512, False))[0] == 1
    assert request(rig, 0, 0, (0x60000, 512, True))[0] == 0
    rig.backend.close()


def test_console_both_ways(console, memory):
    console.driver.start(2)
    memory.write(0x60000, b"hello")
    console.driver.send(1, (0x60000, 5, False))
    assert console.out == b"hello" and console.driver.used(1) == [(0, 0)]
    assert console.backend.receive(b"input") == 5
    console.driver.send(0, (0x70000, 64, True))
    assert console.driver.used(0) == [(0, 5)] and memory.read(0x70000, 5) == b"input"


def test_state_goes_round_and_work_goes_on(disk, memory, windows, line, timers, disk_file):
    disk.driver.start(1)
    request(disk, 0, 0, (0x60000, 512, True))
    disk.driver.send(0, (disk.driver.place(struct.pack("<IIQ", 0, 0, 9)), 16, False), (0x60000, 512, True),
                     (0x70000, 1, True), kick=False)             # announced, not begun
    state = disk.device.save()
    disk.device.reset()
    other = Rig(Block(str(disk_file), False, memory, timers), memory, windows, line)
    other.device.load(state)
    other.driver.seen = disk.driver.seen
    assert other.driver.used(0) == [(0, 513)]
    assert memory.read(0x60000, 512) == disk_file.read_bytes()[9 * 512:10 * 512]
    other.backend.close()


@pytest.mark.parametrize("seed", range(4))
def test_garbage_in_every_register_is_no_error(disk, seed):
    """The hour-long form of this is in tests/fuzz."""
    source = random.Random(seed)
    for _ in range(2000):
        size = source.choice((1, 2, 4, 8))
        offset = source.randrange(0x8000) & -size
        gpa = BAR_GPA + offset
        disk.driver.window.write(gpa, size, source.getrandbits(8 * size))
        assert 0 <= disk.driver.window.read(gpa, size) < 1 << 8 * size
