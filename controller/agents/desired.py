"""What a node is told: always the whole of it, computed from the store and from what the node has reported.

Owns:    who keeps, who removes, who has which part in a migration.
Never:   I/O; orders a removal of anything the store doesn't know (an empty store must not empty the nodes).
Threads: pure functions.
"""

from dataclasses import dataclass

from controller.agents.hub import Session
from controller.model.records import Decision, ImageRecord, MigrationPhase, MigrationRecord, Power, VmRecord
from controller.model.vms import power_for_node
from controller.store.world import VmView, World

ANY_GENERATION = 2 ** 62
ENDED_STEPS = frozenset({"DONE", "FAILED"})


@dataclass(frozen=True, slots=True)
class WantedVm:
    """record and image are None where the VM is to be removed."""

    uid: str
    name: str
    generation: int
    record: VmRecord | None = None
    image: ImageRecord | None = None
    power: Power = Power.STOPPED


@dataclass(frozen=True, slots=True)
class WantedMigration:
    record: MigrationRecord
    source: bool
    vm: WantedVm | None                   # target: the VM as it will be
    tls: bool                             # the memory stream leaves this host


@dataclass(frozen=True, slots=True)
class Wanted:
    vms: tuple[WantedVm, ...]
    migrations: tuple[WantedMigration, ...]
    cordoned: bool


def desired_of(world: World, session: Session) -> Wanted:
    node = world.node(session.node)
    kept = {view.uid: wanted for view in world.vms_on(session.node) if (wanted := _owned(world, view))}
    strays = [wanted for uid in sorted(session.vms) if uid not in kept and (wanted := _stray(world, session, uid))]
    orders = [order for record in world.migrations_of(session.node) if (order := _order(world, session, record))]
    return Wanted((*kept.values(), *strays), tuple(orders), bool(node and node.cordoned))


def _owned(world: World, view: VmView) -> WantedVm | None:
    assert view.assignment is not None
    migration = view.migration
    undecided = migration is not None and not migration.decision
    if view.record.delete_time and not undecided:
        return WantedVm(view.uid, view.record.name, view.assignment.generation)
    image = world.image(view.record.spec.image)
    if image is None:
        return None                       # cannot be while VMs are made from it; then better say nothing
    return WantedVm(view.uid, view.record.name, view.assignment.generation, view.record, image,
                    power_for_node(view.record, migration))


def _stray(world: World, session: Session, uid: str) -> WantedVm | None:
    """Something on the node that it does not own."""
    report, view = session.vms[uid], world.vm(uid)
    if view is None:
        gone = world.tombstone(uid)
        return WantedVm(uid, gone.name, ANY_GENERATION) if gone else None
    if view.assignment is None or view.node == session.node:
        return None
    migration = view.migration
    if migration and session.node in (migration.source, migration.target) and not (
            _source_may_go(migration, session) or _holds_older_copy(migration, session)):
        return None
    if report.generation >= view.assignment.generation:
        return None                       # would be a copy newer than the truth: never touch that
    return WantedVm(uid, view.record.name, view.assignment.generation - 1)


def _source_may_go(migration: MigrationRecord, session: Session) -> bool:
    """The source keeps its paused copy until the target was seen running; that ends the migration."""
    return migration.phase is MigrationPhase.SUCCEEDED and session.node == migration.source


def _holds_older_copy(migration: MigrationRecord, session: Session) -> bool:
    """The target was the source of a migration before, and hasn't removed that copy yet: it has to, first."""
    report = session.vms.get(migration.vm_uid)
    return (session.node == migration.target and not migration.decision and report is not None and not report.gone
            and report.generation < migration.generation)


def _order(world: World, session: Session, record: MigrationRecord) -> WantedMigration | None:
    source = record.source == session.node
    mine = session.migrations.get(record.uid)
    if record.over and (mine is None or mine.step in ENDED_STEPS):
        return None
    if source and not record.address and not record.decision:
        return None                       # the target isn't ready to receive
    if not source and _holds_older_copy(record, session):
        return None
    view = world.vm(record.vm_uid)
    image = world.image(view.record.spec.image) if view else None
    vm = None
    if not source and view and image:
        vm = WantedVm(view.uid, view.record.name, record.owner_generation or record.generation, view.record, image,
                      record.power)
    receiver = world.node(record.target)
    return WantedMigration(record, source, vm, receiver is not None and not is_loopback(receiver.address))


def is_loopback(host: str) -> bool:
    """Where agents that gave no address are reached, too."""
    return host in ("", "localhost", "::1") or host.startswith("127.")


def unknown_vms(world: World, session: Session) -> list[str]:
    """On the node, and not in the store: left alone, and told to people."""
    return [uid for uid in session.vms if world.vm(uid) is None and world.tombstone(uid) is None]


def decision_of(record: MigrationRecord) -> tuple[Decision, int, str]:
    """(decision, generation, owner) as agents learn it."""
    owner = record.target if record.decision is Decision.COMMIT else record.source
    return record.decision, record.owner_generation, owner if record.decision else ""
