"""What a machine is made from, what it says of itself, and how it ends.

Owns:    the plain records that cross the border of `node_agent.machine`.
Never:   touches memory, files or threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

MIB = 1 << 20
MIN_MEMORY_BYTES = 2 * MIB
MAX_MEMORY_BYTES = 256 << 30         # the flat guest-frame table of vcpu ends below the window of 64-bit BARs
MAX_CPUS = 64
VIRTUAL_EPOCH_S = 1_767_225_600      # 2026-01-01 00:00:00 UTC: the date of every machine under the virtual clock


class SpecError(ValueError):
    """The wish cannot be a machine: which field, and why. Shown to whoever asked."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


@dataclass(frozen=True)
class DiskSpec:
    """A raw file behind a virtio-blk device."""

    path: str
    read_only: bool = False


@dataclass(frozen=True)
class MachineSpec:
    """One PC. `kernel` is a bzImage, a vmlinux or a multiboot 1 file; the loader looks inside.

    rtc_epoch_s: the date in seconds since 1970 when guest time was 0. The caller reads the host's clock, not we;
    None: the fixed date of the virtual clock.
    """

    kernel: str | None
    memory_bytes: int = 256 * MIB
    cpus: int = 1
    clock: str = "real"              # or "virtual"
    seed: int = 0
    initrd: str | None = None
    append: str = ""
    modules: tuple[str, ...] = ()    # multiboot: "path and arguments"
    disks: tuple[DiskSpec, ...] = ()
    rtc_epoch_s: int | None = None

    def check(self) -> None:
        """Raise SpecError for what no machine can have. Files are checked by whoever opens them."""
        if self.clock not in ("real", "virtual"):
            raise SpecError("clock", f"is {self.clock!r}; it can be real or virtual")
        if not 1 <= self.cpus <= MAX_CPUS:
            raise SpecError("cpus", f"is {self.cpus}; it can be 1 to {MAX_CPUS}")
        if not MIN_MEMORY_BYTES <= self.memory_bytes <= MAX_MEMORY_BYTES:
            raise SpecError("memory", f"is {self.memory_bytes} bytes; it can be {MIN_MEMORY_BYTES >> 20} MiB "
                                      f"to {MAX_MEMORY_BYTES >> 30} GiB")
        if self.memory_bytes % 4096:
            raise SpecError("memory", "is no multiple of 4096 bytes")
        if len(self.disks) > 24:
            raise SpecError("disks", "are more than 24")


class ExitKind(Enum):
    """Why a machine ended."""

    POWER_OFF = "power-off"          # the guest asked for S5
    DEBUG_EXIT = "debug-exit"        # the guest wrote `value` to port 0xF4
    TRIPLE_FAULT = "triple-fault"    # `detail` is the processor's state
    STOPPED = "stopped"              # Machine.stop()
    FAILURE = "failure"              # ours; `detail` says what


@dataclass(frozen=True)
class MachineExit:
    kind: ExitKind
    value: int = 0
    detail: str = ""


@dataclass(frozen=True)
class MachineStats:
    retired_instructions: int
    exits: dict[str, int]            # by the manual's name of the reason
    engine_seconds: float            # processor time of the vCPU threads
    guest_ns: int
    resets: int = 0


@dataclass(frozen=True)
class MachineState:
    """Everything but the memory: records by device name, one plain dict a vCPU. See records.py for bytes."""

    VERSION = 1
    spec: dict                       # memory_bytes, cpus, clock, disks (count): what the target must share
    clock: dict
    cpus: tuple[dict, ...]
    devices: dict[str, object] = field(default_factory=dict)
