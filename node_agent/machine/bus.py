"""The bus: gives port and frame ranges to devices, refuses overlaps, and takes the lock around each access.

Owns:    the adapters between vcpu's callbacks and devices. vcpu holds the ranges themselves.
Never:   interprets a value, but for splitting wide accesses to byte-wide devices, as the ISA bus does.
Threads: any; a device is entered by one thread at a time.
"""

from __future__ import annotations

from threading import RLock
from typing import Any

from node_agent.devices.base import FrameRange, PortRange


class Window:
    """What vcpu calls. `first` and `count` bound the bytes of a split access."""

    __slots__ = ("_device", "_end", "_first", "_lock", "_wide")

    def __init__(self, device: Any, first: int, count: int, lock: RLock) -> None:
        self._device = device
        self._first = first
        self._end = first + count
        self._lock = lock
        self._wide = getattr(device, "wide", False)

    def read(self, address: int, size: int) -> int:
        with self._lock:
            if size == 1 or self._wide:
                return self._device.read(address, size) & (1 << 8 * size) - 1
            value = 0
            for index in range(size):
                byte = self._device.read(address + index, 1) if address + index < self._end else 0xFF
                value |= (byte & 0xFF) << 8 * index
            return value

    def write(self, address: int, size: int, value: int) -> None:
        with self._lock:
            if size == 1 or self._wide:
                self._device.write(address, size, value)
                return
            for index in range(min(size, self._end - address)):
                self._device.write(address + index, 1, value >> 8 * index & 0xFF)


class Bus:
    """Ranges of one address space. An overlap is a ValueError of vcpu's. Devices with frames are wide."""

    def __init__(self, space: Any, lock: RLock) -> None:
        self._space = space
        self._lock = lock
        self._moving: dict[int, Window] = {}         # by the device's id: a BAR that moves keeps its window

    def attach(self, device: Any) -> None:
        for where in getattr(device, "ports", ()):
            self.map_ports(where, device)
        for where in getattr(device, "frames", ()):
            self.map_frames(where, device)

    def map_ports(self, where: PortRange, device: Any) -> None:
        window = device if hasattr(device, "io_handler") else Window(device, where.first, where.count, self._lock)
        self._space.add_ports(where.first, where.count, window)

    def map_frames(self, where: FrameRange, device: Any) -> None:
        if hasattr(device, "io_handler"):
            window = device
        else:
            window = self._moving.setdefault(id(device), Window(device, where.gpa, where.size, self._lock))
        self._space.add_frames(where.gpa, where.size, window)

    def unmap_frames(self, where: FrameRange) -> None:
        self._space.remove_frames(where.gpa, where.size)
