"""MSI-X table and pending bits of one PCI function. Source: PCI 3.0 §6.8.2.

    entry, 16 bytes:  address low | address high | data | vector control (bit 0: masked)

Owns:    table, pending bits, the capability's enable and mask.
Never:   waits: a masked message pends and is sent when it may be.
Threads: under the machine's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

ENTRY_SIZE = 16
MASKED = 1
CONTROL_ENABLE, CONTROL_MASK_ALL = 0x8000, 0x4000


@dataclass(frozen=True)
class MsixState:
    VERSION = 1
    table: bytes
    pending: int
    control: int


class Msix:
    def __init__(self, vectors: int, deliver: Callable[[int, int], None]) -> None:
        self.vectors = vectors
        self._deliver = deliver
        self.reset()

    def reset(self) -> None:
        self._table = bytearray((b"\0" * 12 + b"\1\0\0\0") * self.vectors)
        self._pending = 0
        self._control = 0

    @property
    def enabled(self) -> bool:
        return bool(self._control & CONTROL_ENABLE)

    def set_control(self, control: int) -> None:
        self._control = control
        self._send_pending()

    def raise_vector(self, vector: int) -> None:
        """Send, or note as pending. Vectors that the function doesn't have (0xFFFF: none wanted) are dropped."""
        if not self.enabled or vector >= self.vectors:
            return
        if self._is_masked(vector):
            self._pending |= 1 << vector
            return
        entry = self._table[vector * ENTRY_SIZE:][:12]
        self._deliver(int.from_bytes(entry[:8], "little"), int.from_bytes(entry[8:], "little"))

    def _is_masked(self, vector: int) -> bool:
        return bool(self._control & CONTROL_MASK_ALL or self._table[vector * ENTRY_SIZE + 12] & MASKED)

    def _send_pending(self) -> None:
        for vector in range(self.vectors):
            if self._pending & (1 << vector) and self.enabled and not self._is_masked(vector):
                self._pending &= ~(1 << vector)
                self.raise_vector(vector)

    def read_table(self, offset: int, size: int) -> int:
        return int.from_bytes(self._table[offset:offset + size], "little")

    def write_table(self, offset: int, size: int, value: int) -> None:
        if offset + size <= len(self._table):
            self._table[offset:offset + size] = value.to_bytes(size, "little")
            if self._pending:
                self._send_pending()

    def read_pending(self, offset: int, size: int) -> int:
        return self._pending >> 8 * offset & (1 << 8 * size) - 1

    def save(self) -> MsixState:
        return MsixState(bytes(self._table), self._pending, self._control)

    def load(self, state: MsixState) -> None:
        self._table[:] = state.table[:len(self._table)].ljust(len(self._table), b"\0")
        self._pending = state.pending & (1 << self.vectors) - 1
        self._control = state.control
