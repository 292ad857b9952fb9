"""A small virtio driver for tests: finds its windows by the capabilities, sets up queues, puts requests on rings."""

from __future__ import annotations

import struct

from node_agent.devices.virtio.transport import VirtioPci

BAR_GPA = 0xC0000000
MSI_ADDRESS = 0xFEE00000


class Driver:
    def __init__(self, device: VirtioPci, memory, windows, size: int = 8) -> None:
        self.device, self.memory, self.windows, self.size = device, memory, windows, size
        device.place_bar(0, BAR_GPA)
        self.window = next(iter(windows.mapped.values()))
        self.at = self.capabilities()
        self.free = 0x40000
        self.sent = [0] * 8
        self.seen = [0] * 8

    def capabilities(self) -> dict[int, int]:
        found, at = {}, self.device.read_config(0x34, 1)
        while at:
            if self.device.read_config(at, 1) == 9:
                found[self.device.read_config(at + 3, 1)] = self.device.read_config(at + 8, 4)
            at = self.device.read_config(at + 1, 1)
        return found

    def read(self, window: int, offset: int, size: int) -> int:
        return self.window.read(BAR_GPA + self.at[window] + offset, size)

    def write(self, window: int, offset: int, size: int, value: int) -> None:
        self.window.write(BAR_GPA + self.at[window] + offset, size, value)

    def start(self, queues: int, features: int = 1 << 32, msix: bool = True) -> None:
        self.write(1, 0x14, 1, 0)
        self.write(1, 0x14, 1, 3)
        for half in (0, 1):
            self.write(1, 0x08, 4, half)
            self.write(1, 0x0C, 4, features >> 32 * half & 0xFFFFFFFF)
        self.write(1, 0x14, 1, 0x0B)
        assert self.read(1, 0x14, 1) == 0x0B
        if msix:
            self.enable_msix(queues)
        for queue in range(queues):
            self.write(1, 0x16, 2, queue)
            self.write(1, 0x18, 2, self.size)
            self.write(1, 0x1A, 2, queue if msix else 0xFFFF)
            for offset, gpa in ((0x20, 0x10000), (0x28, 0x20000), (0x30, 0x30000)):
                self.write(1, offset, 4, gpa + 0x1000 * queue)
                self.write(1, offset + 4, 4, 0)
            self.write(1, 0x1C, 2, 1)
        self.write(1, 0x14, 1, 0x0F)

    def enable_msix(self, vectors: int) -> None:
        at = self.device.read_config(0x34, 1)
        while self.device.read_config(at, 1) != 0x11:
            at = self.device.read_config(at + 1, 1)
        for vector in range(vectors):
            entry = struct.pack("<QII", MSI_ADDRESS, 0x40 + vector, 0)
            for offset in range(0, 16, 4):
                self.window.write(BAR_GPA + 0x4000 + 16 * vector + offset, 4,
                                  int.from_bytes(entry[offset:offset + 4], "little"))
        self.device.write_config(at + 2, 2, 0x8000)

    def place(self, data: bytes) -> int:
        gpa, self.free = self.free, self.free + len(data) + 15 & ~15
        self.memory.write(gpa, data)
        return gpa

    def send(self, queue: int, *parts: tuple[int, int, bool], kick: bool = True) -> None:
        """parts: (gpa, size, the device writes it)"""
        table = 0x10000 + 0x1000 * queue
        for index, (gpa, size, writable) in enumerate(parts):
            flags = (2 if writable else 0) | (1 if index + 1 < len(parts) else 0)
            self.memory.write(table + 16 * index, struct.pack("<QIHH", gpa, size, flags, index + 1))
        self.announce(queue, 0, kick)

    def announce(self, queue: int, head: int, kick: bool = True) -> None:
        ring = 0x20000 + 0x1000 * queue
        self.memory.write(ring + 4 + 2 * (self.sent[queue] % self.size), struct.pack("<H", head))
        self.sent[queue] += 1
        self.memory.write(ring + 2, struct.pack("<H", self.sent[queue] & 0xFFFF))
        if kick:
            self.write(2, 4 * queue, 2, queue)

    def used(self, queue: int) -> list[tuple[int, int]]:
        """What came back since the last call: (head, bytes written)."""
        ring = 0x30000 + 0x1000 * queue
        (end,) = struct.unpack("<H", self.memory.read(ring + 2, 2))
        got = []
        while self.seen[queue] & 0xFFFF != end:
            got.append(struct.unpack("<II", self.memory.read(ring + 4 + 8 * (self.seen[queue] % self.size), 8)))
            self.seen[queue] += 1
        return got
