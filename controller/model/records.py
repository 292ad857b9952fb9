"""The records in etcd.

Owns:    what is kept of VMs, nodes, images, migrations and events.
Never:   I/O, time, randomness: those come in as values.
Threads: immutable.

A VM is three records, so that people, scheduler and nodes do not overwrite one another:
    VmRecord      what people want; written by the API (and by the reconcilers where policy says so: power, run)
    VmStatus      what is seen; written from what nodes report
    Assignment    who owns it: node and generation. Only ever changed by compare-and-swap; the generation only grows.
Times are seconds since 1970.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class Power(StrEnum):
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    PAUSED = "PAUSED"


class Restart(StrEnum):
    NEVER = "NEVER"
    ON_FAILURE = "ON_FAILURE"


class Clock(StrEnum):
    REAL = "REAL"
    VIRTUAL = "VIRTUAL"


class VmState(StrEnum):
    PENDING = "PENDING"
    SCHEDULED = "SCHEDULED"
    CREATING = "CREATING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    CRASHED = "CRASHED"
    DELETING = "DELETING"
    UNKNOWN = "UNKNOWN"


ENDED = frozenset({VmState.STOPPED, VmState.CRASHED})
ALIVE = frozenset({VmState.RUNNING, VmState.PAUSED})


@dataclass(frozen=True, slots=True)
class VmSpec:
    image: str                                    # uid
    memory_mib: int
    cpus: int
    node_selector: dict[str, str] = field(default_factory=dict)
    anti_affinity_group: str = ""
    restart_policy: Restart = Restart.NEVER
    append: str = ""
    disks_mib: tuple[int, ...] = ()
    clock: Clock = Clock.REAL


@dataclass(frozen=True, slots=True)
class VmRecord:
    uid: str
    name: str
    spec: VmSpec
    image_name: str
    create_time: float
    power: Power = Power.RUNNING
    force_stop: bool = False
    run: int = 0                                  # 0: never asked to run
    run_time: float = 0.0
    reset_serial: int = 0
    reset_request: str = ""                       # request_id of the last reset
    restarts: int = 0
    generation: int = 1
    delete_time: float = 0.0


@dataclass(frozen=True, slots=True)
class Phase:
    name: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    filter: str
    nodes: int
    text: str


@dataclass(frozen=True, slots=True)
class Placement:
    nodes: int
    refusals: tuple[Refusal, ...] = ()
    summary: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class VmStatus:
    state: VmState = VmState.PENDING
    state_time: float = 0.0
    reason: str = ""
    message: str = ""
    run: int = 0                                  # the run that state and phases speak of
    phases: tuple[Phase, ...] = ()
    placement: Placement | None = None
    exit_status: int = 0
    removed: bool = False                         # its node has said that nothing of it is left


@dataclass(frozen=True, slots=True)
class Assignment:
    node: str
    generation: int


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A VM that is no more: a copy that turns up on a node is removed."""

    name: str
    time: float


@dataclass(frozen=True, slots=True)
class NodeRecord:
    uid: str                                      # of the node's state folder
    name: str
    memory_mib: int
    cpus: int
    create_time: float
    labels: dict[str, str] = field(default_factory=dict)
    agent_version: str = ""
    address: str = ""
    cordoned: bool = False
    draining: bool = False
    drain_moved: int = 0
    lost: bool = False
    state_time: float = 0.0


class ImageKind(StrEnum):
    LINUX = "LINUX"
    MULTIBOOT = "MULTIBOOT"
    DISK = "DISK"


class FileRole(StrEnum):
    KERNEL = "KERNEL"
    INITRD = "INITRD"
    DISK = "DISK"


@dataclass(frozen=True, slots=True)
class ImageFile:
    role: FileRole
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ImageRecord:
    uid: str
    name: str
    kind: ImageKind
    files: tuple[ImageFile, ...]
    create_time: float
    append: str = ""
    ready_marker: str = ""
    description: str = ""
    min_memory_mib: int = 0


class MigrationPhase(StrEnum):
    PREPARING = "PREPARING"
    COPYING = "COPYING"
    SWITCHING = "SWITCHING"
    FINISHING = "FINISHING"
    ABORTING = "ABORTING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


class Decision(StrEnum):
    NONE = ""
    COMMIT = "COMMIT"
    ABORT = "ABORT"


@dataclass(frozen=True, slots=True)
class MigrationRecord:
    """`decision` is written in the same transaction as the Assignment it stands for: they cannot disagree."""

    uid: str
    vm_uid: str
    vm_name: str
    source: str
    target: str
    generation: int                               # the source's when the migration began
    token: str
    power: Power                                  # what the VM does meanwhile: RUNNING or PAUSED
    create_time: float
    phase: MigrationPhase = MigrationPhase.PREPARING
    phase_time: float = 0.0
    address: str = ""                             # where the target listens
    decision: Decision = Decision.NONE
    owner_generation: int = 0
    cancel: bool = False
    reason: str = ""
    message: str = ""
    rounds: int = 0
    bytes: int = 0
    gap_ms: float = 0.0
    decision_ms: float = 0.0
    end_time: float = 0.0
    drain: bool = False                           # begun by a drain of the source

    @property
    def over(self) -> bool:
        return self.phase in (MigrationPhase.SUCCEEDED, MigrationPhase.FAILED)


@dataclass(frozen=True, slots=True)
class EventRecord:
    uid: str
    time: float
    kind: str
    name: str
    object_uid: str
    reason: str
    message: str
    warning: bool = False
    node: str = ""


@dataclass(frozen=True, slots=True)
class Pointer:
    """A name, or a request_id, that stands for a uid."""

    uid: str
    digest: str = ""                              # of the request, where this is a request_id
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Leader:
    uid: str                                      # of the controller process
    folder: str                                   # of its state folder, locked by it while it lives
    address: str = ""


@dataclass(frozen=True, slots=True)
class Cluster:
    uid: str
    create_time: float
