"""Virtio over PCI, modern: the function, its one BAR and its capabilities. Source: virtio 1.2 §4.1.

    BAR 0, 32 KiB:   0x0000 common   0x1000 ISR   0x2000 device   0x3000 notify (4 bytes a queue)
                     0x4000 MSI-X table   0x5000 MSI-X pending bits

Owns:    feature negotiation, status, the queues' registers, interrupts.
Never:   moves data: a Backend does.
Threads: under the machine's lock.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from node_agent.devices.base import Line, Memory, Tasks
from node_agent.devices.pci.function import Identity, PciFunction, PciState, Windows
from node_agent.devices.pci.msix import Msix
from node_agent.devices.virtio.queue import Queue, QueueError, QueueState

VENDOR, DEVICE_BASE = 0x1AF4, 0x1040
BAR, BAR_SIZE, WINDOW = 0, 0x8000, 0x1000
COMMON_AT, ISR_AT, DEVICE_AT, NOTIFY_AT, MSIX_TABLE_AT, MSIX_PENDING_AT = range(0, 0x6000, WINDOW)
CAP_VENDOR, CAP_COMMON, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_PCI = 9, 1, 2, 3, 4, 5
F_INDIRECT_DESC, F_EVENT_IDX, F_VERSION_1 = 1 << 28, 1 << 29, 1 << 32
STATUS_DRIVER_OK, STATUS_FEATURES_OK, STATUS_NEEDS_RESET = 4, 8, 64
ISR_QUEUE, ISR_CONFIG = 1, 2
NO_VECTOR = 0xFFFF
COMMON_SIZE = 0x38


@dataclass(frozen=True)
class VirtioState:
    VERSION = 1
    pci: PciState
    feature_select: int
    driver_feature_select: int
    driver_features: int
    config_vector: int
    status: int
    queue_select: int
    isr: int
    generation: int
    queues: tuple[QueueState, ...]
    backend: Any


class Backend:
    """What a virtio device is behind its transport. `transport` is set before anything is called."""

    device_id = 0
    class_code = 0x00FF00
    features = 0
    queue_sizes: tuple[int, ...] = ()
    transport: VirtioPci

    def config(self) -> bytes:
        return b""

    def write_config(self, offset: int, data: bytes) -> None: ...

    def notify(self, queue: int) -> None: ...

    def reset(self) -> None: ...

    def save(self) -> Any:
        return None

    def load(self, state: Any) -> None: ...


class VirtioPci(PciFunction):
    def __init__(self, backend: Backend, memory: Memory, windows: Windows, intx: Line,
                 deliver_msi: Callable[[int, int], None]) -> None:
        self._access_at = 0xFFFF                     # until the capability is there
        super().__init__(Identity(VENDOR, DEVICE_BASE + backend.device_id, backend.class_code, revision=1,
                                  subsystem_vendor=VENDOR, subsystem=0x1100), windows, intx)
        self._backend = backend
        self._waiting: set[Callable[[], Any]] = set()
        self.queues = [Queue(memory, size) for size in backend.queue_sizes]
        self._offered = backend.features | F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1
        self._clear()
        self.add_bar(BAR, BAR_SIZE)
        self.add_msix(Msix(len(self.queues) + 1, deliver_msi), BAR, MSIX_TABLE_AT, MSIX_PENDING_AT)
        self._add_windows()
        backend.transport = self

    def _add_windows(self) -> None:
        def capability(kind: int, at: int, size: int, extra: bytes = b"") -> bytes:
            return struct.pack("<BBBBxxII", 16 + len(extra), kind, BAR, 0, at, size) + extra

        config_size = max(len(self._backend.config()), 4)
        self.add_capability(CAP_VENDOR, capability(CAP_COMMON, COMMON_AT, COMMON_SIZE))
        self.add_capability(CAP_VENDOR, capability(CAP_ISR, ISR_AT, 4))
        self.add_capability(CAP_VENDOR, capability(CAP_DEVICE, DEVICE_AT, config_size))
        self.add_capability(CAP_VENDOR, capability(CAP_NOTIFY, NOTIFY_AT, 4 * len(self.queues), struct.pack("<I", 4)))
        self._access_at = self.add_capability(CAP_VENDOR, capability(CAP_PCI, 0, 0, bytes(4)),
                                              b"\0\0\xFF\0\0\0" + b"\xFF" * 12)

    def _clear(self) -> None:
        self._feature_select = self._driver_feature_select = self._driver_features = 0
        self._config_vector = NO_VECTOR
        self._status = self._queue_select = self._isr = self._generation = 0
        for queue in self.queues:
            queue.reset()

    # for the backend

    def has_feature(self, bit: int) -> bool:
        return bool(self._driver_features & bit)

    @property
    def running(self) -> bool:
        return bool(self._status & STATUS_DRIVER_OK) and not self._status & STATUS_NEEDS_RESET

    def interrupt(self, index: int) -> None:
        """Requests were given back on queue `index`: tell the driver, if it wants to be told."""
        queue = self.queues[index]
        if queue.wants_interrupt():
            self._raise(queue.vector, ISR_QUEUE)

    def config_changed(self) -> None:
        self._generation = self._generation + 1 & 0xFF
        self._raise(self._config_vector, ISR_CONFIG)

    def fail(self) -> None:
        """The driver broke a rule: nothing more is done until it resets the device (§2.1.2)."""
        if not self._status & STATUS_NEEDS_RESET:
            self._status |= STATUS_NEEDS_RESET
            if self._status & STATUS_DRIVER_OK:
                self._raise(self._config_vector, ISR_CONFIG)

    def _raise(self, vector: int, cause: int) -> None:
        if self.msix.enabled:
            self.msix.raise_vector(vector)
        else:
            self._isr |= cause
            self.set_intx(True)

    # configuration space: the window of §4.1.4.9 reaches into the BAR

    def _access(self) -> tuple[int, int] | None:
        offset = self.read_config(self._access_at + 8, 4)
        length = self.read_config(self._access_at + 12, 4)
        inside = length in (1, 2, 4) and offset % length == 0 and offset + length <= BAR_SIZE
        return (offset, length) if inside and self.config[self._access_at + 4] == BAR else None

    def read_config(self, offset: int, size: int) -> int:
        if offset == self._access_at + 16 and (where := self._access()):
            value = self.read_bar(BAR, *where)
            self.config[offset:offset + 4] = value.to_bytes(4, "little")
        return super().read_config(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        super().write_config(offset, size, value)
        if offset == self._access_at + 16 and (where := self._access()):
            self.write_bar(BAR, *where, value & (1 << 8 * where[1]) - 1)

    # the BAR

    def read_bar(self, number: int, offset: int, size: int) -> int:
        window, at = offset & ~(WINDOW - 1), offset & (WINDOW - 1)
        if window == COMMON_AT:
            return self._read_common(at, size)
        if window == ISR_AT:
            value, self._isr = self._isr, 0
            self.set_intx(False)
            return value
        if window == DEVICE_AT:
            return int.from_bytes(self._backend.config()[at:at + size], "little")
        if window == MSIX_TABLE_AT:
            return self.msix.read_table(at, size)
        if window == MSIX_PENDING_AT:
            return self.msix.read_pending(at, size)
        return 0

    def write_bar(self, number: int, offset: int, size: int, value: int) -> None:
        window, at = offset & ~(WINDOW - 1), offset & (WINDOW - 1)
        if window == NOTIFY_AT:
            self._notify(at // 4)
        elif window == COMMON_AT:
            self._write_common(at, size, value)
        elif window == MSIX_TABLE_AT:
            self.msix.write_table(at, size, value)
        elif window == DEVICE_AT:
            self._backend.write_config(at, value.to_bytes(size, "little"))

    def _notify(self, index: int) -> None:
        if index < len(self.queues) and self.running and self.queues[index].ready:
            self.guarded(lambda: self._backend.notify(index))

    def guarded(self, work: Callable[[], Any]) -> Any:
        """Run the backend's work on the rings; a broken ring fails the device, not us."""
        try:
            return work()
        except QueueError:
            self.fail()
            return None

    def later(self, tasks: Tasks, work: Callable[[], Any], delay_ns: int) -> None:
        """Run the backend's work beside the guest; however often the guest asks meanwhile, it waits once."""
        if work not in self._waiting:
            self._waiting.add(work)
            tasks.submit(lambda: self._run_waiting(work), delay_ns)

    def _run_waiting(self, work: Callable[[], Any]) -> None:
        self._waiting.discard(work)
        self.guarded(work)

    # common configuration (§4.1.4.3), as one 56-byte image: reads cut it, writes change a field

    def _common_image(self) -> bytes:
        queue = self.queues[self._queue_select] if self._queue_select < len(self.queues) else None
        return struct.pack(
            "<IIIIHHBBHHHHHQQQ",
            self._feature_select, self._offered >> 32 * self._feature_select & 0xFFFFFFFF
            if self._feature_select < 2 else 0,
            self._driver_feature_select, self._driver_features >> 32 * self._driver_feature_select & 0xFFFFFFFF
            if self._driver_feature_select < 2 else 0,
            self._config_vector, len(self.queues), self._status, self._generation, self._queue_select,
            *((queue.size, queue.vector, queue.ready, self._queue_select, queue.descriptors, queue.available,
               queue.used) if queue else (0, NO_VECTOR, 0, 0, 0, 0, 0)))

    def _read_common(self, at: int, size: int) -> int:
        return int.from_bytes(self._common_image()[at:at + size], "little")

    def _write_common(self, at: int, size: int, value: int) -> None:
        if at == 0x00:
            self._feature_select = value & 0xFFFFFFFF
        elif at == 0x08:
            self._driver_feature_select = value & 0xFFFFFFFF
        elif at == 0x0C and self._driver_feature_select < 2 and not self._status & STATUS_FEATURES_OK:
            shift = 32 * self._driver_feature_select
            kept = self._driver_features & ~(0xFFFFFFFF << shift)
            self._driver_features = kept | (value & 0xFFFFFFFF) << shift
        elif at == 0x10:
            self._config_vector = self._vector(value)
        elif at == 0x14:
            self._write_status(value & 0xFF)
        elif at == 0x16:
            self._queue_select = value & 0xFFFF
        elif at >= 0x18 and self._queue_select < len(self.queues):
            self._write_queue(self.queues[self._queue_select], at, size, value)

    def _vector(self, value: int) -> int:
        return value & 0xFFFF if value & 0xFFFF < self.msix.vectors else NO_VECTOR

    def _write_status(self, value: int) -> None:
        if value == 0:
            self._reset_device()
            return
        if value & STATUS_FEATURES_OK and not self._status & STATUS_FEATURES_OK:
            if self._driver_features & ~self._offered or not self._driver_features & F_VERSION_1:
                value &= ~STATUS_FEATURES_OK
        self._status = value | self._status & STATUS_NEEDS_RESET
        for queue in self.queues:
            queue.event_idx = int(self.has_feature(F_EVENT_IDX))

    def _write_queue(self, queue: Queue, at: int, size: int, value: int) -> None:
        if at == 0x1A:
            queue.vector = self._vector(value)
        elif at == 0x1C:
            if value & 1:
                queue.ready = 1
        elif queue.ready:
            return                                   # where a live queue is cannot be changed
        elif at == 0x18:
            if 0 < value <= queue.max_size and not value & (value - 1):
                queue.size = value
        elif 0x20 <= at < COMMON_SIZE:
            name = ("descriptors", "available", "used")[at - 0x20 >> 3]
            shift = 8 * (at & 7)
            mask = (1 << 8 * size) - 1
            setattr(queue, name, (getattr(queue, name) & ~(mask << shift) | (value & mask) << shift) & (1 << 64) - 1)

    def _reset_device(self) -> None:
        self._clear()
        self._backend.reset()
        self.set_intx(False)

    def reset(self) -> None:
        self._reset_device()
        super().reset()

    def save(self) -> VirtioState:
        return VirtioState(super().save(), self._feature_select, self._driver_feature_select, self._driver_features,
                           self._config_vector, self._status, self._queue_select, self._isr, self._generation,
                           tuple(queue.save() for queue in self.queues), self._backend.save())

    def load(self, state: VirtioState) -> None:
        super().load(state.pci)
        self._feature_select, self._driver_feature_select = state.feature_select, state.driver_feature_select
        self._driver_features, self._config_vector = state.driver_features, state.config_vector
        self._status, self._queue_select = state.status, state.queue_select
        self._isr, self._generation = state.isr, state.generation
        for queue, saved in zip(self.queues, state.queues, strict=True):
            queue.load(saved)
        self._backend.load(state.backend)
        for index in range(len(self.queues)):        # what was announced but not yet begun is looked for again
            self._notify(index)
