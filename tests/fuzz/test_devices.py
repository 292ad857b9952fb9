"""Every register of every device, with garbage: no exception, values in range, bounded memory, and the same state after a
round through bytes. VIRGA_FUZZ_SECONDS makes it longer (`make fuzz`)."""

from __future__ import annotations

import os
import random
import threading
import time
import zlib

import pytest

from node_agent.devices.base import FrameRange
from node_agent.machine import records, table
from node_agent.machine.bus import Bus
from node_agent.machine.lines import Lines
from node_agent.machine.spec import DiskSpec, MachineSpec
from node_agent.machine.timers import TimerQueue

SECONDS = float(os.environ.get("VIRGA_FUZZ_SECONDS", "6")) / 3
RAM_BYTES = 1 << 20


class Space:
    """Ports, frames and memory without a processor."""

    def __init__(self) -> None:
        self.ram_bytes = RAM_BYTES
        self.ram = bytearray(RAM_BYTES)
        self.ports, self.frames = {}, {}
        self.messages = 0

    def add_ports(self, first, count, device) -> None:
        for port in range(first, first + count):
            assert port not in self.ports
            self.ports[port] = device

    def add_frames(self, gpa, size, device) -> None:
        if gpa < RAM_BYTES or any(gpa < end and first < gpa + size for first, (end, _) in self.frames.items()):
            raise ValueError("overlap")
        self.frames[gpa] = (gpa + size, device)

    def remove_frames(self, gpa, size) -> None:
        del self.frames[gpa]

    def read(self, gpa, size) -> bytes:
        if gpa + size > RAM_BYTES:
            raise ValueError("not RAM")
        return bytes(self.ram[gpa:gpa + size])

    def write(self, gpa, data) -> None:
        if gpa + len(data) > RAM_BYTES:
            raise ValueError("not RAM")
        self.ram[gpa:gpa + len(data)] = data

    def deliver_msi(self, address, data) -> None:
        assert 0 <= address < 1 << 64 and 0 <= data < 1 << 32
        self.messages += 1


class Machine:
    def __init__(self, disk) -> None:
        self.now = 0
        self.space = Space()
        lock = threading.RLock()
        self.timers = TimerQueue(lambda: self.now, lock, True, lambda: None)
        self.events = []
        parts = table.Parts(
            spec=MachineSpec(kernel=None, disks=(DiskSpec(str(disk)),)), epoch_s=1_700_000_000, space=self.space,
            bus=Bus(self.space, lock), timers=self.timers, lines=Lines(), intr=lambda level: None,
            byte_sink=lambda channel, byte: None, sink=lambda channel, data: None, entropy=lambda n: bytes(n),
            power_off=lambda: self.events.append("off"), reset_machine=lambda: self.events.append("reset"),
            exit_machine=self.events.append)
        self.devices, self.backends = table.build(parts)
        table.place_bars(self.devices)

    def close(self) -> None:
        self.backends["disk0"].close()


@pytest.fixture
def machine(tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 16))
    made = Machine(disk)
    yield made
    made.close()


def poke(machine: Machine, source: random.Random) -> None:
    size = source.choice((1, 1, 2, 4))
    value = source.choice((source.getrandbits(8 * size), 0, (1 << 8 * size) - 1))
    kind = source.randrange(10)
    if kind < 5:
        port = source.choice(list(machine.space.ports))
        window = machine.space.ports[port]
        port = port & -size if port & -size in machine.space.ports else port
        if machine.space.ports[port] is window:
            access(window, port, size, value, source)
    elif kind < 8 and machine.space.frames:
        first = source.choice(list(machine.space.frames))
        end, window = machine.space.frames[first]
        address = first + (source.randrange(min(end - first, 0x8000)) & -size)
        access(window, address, size, value, source)
    elif kind == 8:
        at = source.randrange(RAM_BYTES - 64)
        machine.space.ram[at:at + 16] = source.randbytes(16)
    else:
        machine.now += source.choice((1, 1000, 1_000_000, 1_000_000_000))
        machine.timers.run_due()


def access(window, address, size, value, source) -> None:
    if source.random() < 0.5:
        window.write(address, size, value)
    else:
        assert 0 <= window.read(address, size) < 1 << 8 * size


@pytest.mark.parametrize("round_", range(3))
def test_garbage_everywhere(machine, round_):
    seed = zlib.crc32(f"{time.time_ns()} {round_}".encode())
    print(f"seed {seed}")
    source = random.Random(seed)
    end = time.monotonic() + SECONDS
    steps = 0
    while time.monotonic() < end:
        for _ in range(500):
            poke(machine, source)
        steps += 500
        state = {name: device.save() for name, device in machine.devices.items()}
        for name, record in state.items():
            again = records.decode(type(records.encode(record)).FromString(records.encode(record).SerializeToString()))
            assert again == record, name
            machine.devices[name].load(again)
        machine.events.clear()
    assert steps and all(isinstance(where, int) for where in machine.space.frames)
    assert FrameRange(0xFEC00000, 0x1000).gpa in machine.space.frames
