"""A VM's part in a migration, as the agent plays it: from the controller's order and what the process says.

The VM process obeys protocol.py; this file decides only whom to ask and what to write down first:

    target   record (incoming) on disk → process listens → PREPARED → … READY → ask for COMMIT → generation on disk → run
    source   PREPARED seen → process sends → … PAUSED → learns the decision → generation on disk → goes on, or keeps
             its copy until a REMOVE

A copy that failed to arrive is discarded, and the floor raised above any generation that could still commit it,
before that is told: then nothing can call it back.

Owns:    one VM's ObservedMigration.
Never:   runs a received copy without a decision that names this node; runs one that was given up.
Threads: the agent's loop.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from node_agent.agent.images import ImageError
from node_agent.agent.observe import is_incoming
from node_agent.agent.run import prepare_config
from node_agent.migration.protocol import Source, Target
from node_agent.vmprocess.client import CallFailed, Gone
from virga.agent.v1 import agent_pb2 as agent
from virga.vmm.v1 import vmm_pb2 as pb

if TYPE_CHECKING:
    from node_agent.agent.vm import LocalVm

log = logging.getLogger("move")

ASK_AGAIN_S = 0.25               # nobody could tell the decision

_STEPS = {
    Source.PREPARING.value: agent.MIGRATION_STEP_COPYING,
    Source.COPYING.value: agent.MIGRATION_STEP_COPYING,
    Source.STOPPED.value: agent.MIGRATION_STEP_PAUSED,
    Source.PAUSED.value: agent.MIGRATION_STEP_PAUSED,
    Source.HANDED_OVER.value: agent.MIGRATION_STEP_PAUSED,
    Target.LISTENING.value: agent.MIGRATION_STEP_PREPARED,
    Target.RECEIVING.value: agent.MIGRATION_STEP_COPYING,
    Target.READY.value: agent.MIGRATION_STEP_READY,
}
DECISIONS = agent.MigrationDecision


class Move:
    def __init__(self, vm: LocalVm) -> None:
        self.vm = vm
        self.order: agent.MigrationOrder | None = None
        self.holds_the_vm = False        # until this is over, wishes about power wait
        self._result = vm.node.migration_results                # of all VMs: a result outlives its copy

    # ---- what the controller hears ---------------------------------------------------------------------------

    def observed(self) -> agent.ObservedMigration | None:
        order = self.order
        if order is None:
            return None
        out = agent.ObservedMigration(uid=order.uid, vm_uid=order.vm_uid, role=order.role)
        side = self._side()
        if side is not None:
            out.step = _STEPS.get(side.state, agent.MIGRATION_STEP_UNSPECIFIED)
            out.rounds, out.bytes = side.rounds, side.bytes
            out.gap_ms, out.decision_ms = side.gap_ms, side.decision_ms
            if side.listen_port:
                out.address = f"{self._host(order)}:{side.listen_port}"
        if order.uid in self._result:
            out.step, out.reason, out.message = self._result[order.uid]
        return out

    def _host(self, order: agent.MigrationOrder) -> str:
        return self.vm.node.config.address if order.tls else "127.0.0.1"

    def _side(self) -> pb.Migration | None:
        """What the process says of this migration."""
        vm = self.vm
        if self.order is None or vm.seen is None or vm.seen.migration.id != self.order.uid:
            return None
        return vm.seen.migration

    def _settle(self, step: int, reason: str = "", message: str = "") -> None:
        if self.order is not None and self.order.uid not in self._result:
            self._result[self.order.uid] = (step, reason, message)
            log.info("migration %s: %s %s %s", self.order.uid, agent.MigrationStep.Name(step), reason, message,
                     extra=self.vm.extra)
        self.vm.changed()

    def settle_removed(self) -> None:
        """The folder is gone: a source has handed over, a target will never run."""
        if self.order is None:
            return
        if self.order.role == agent.MIGRATION_ROLE_SOURCE:
            self._settle(agent.MIGRATION_STEP_DONE)
        else:
            self._settle(agent.MIGRATION_STEP_FAILED, "TARGET_FAILED", "the copy was removed")

    # ---- the step --------------------------------------------------------------------------------------------

    async def step(self) -> float | None:
        order = self.order
        self.holds_the_vm = False
        if order is None:
            return await self._without_order()
        if order.role == agent.MIGRATION_ROLE_TARGET:
            return await self._target(order)
        return await self._source(order)

    async def _without_order(self) -> float | None:
        """No migration, or one that was over before this agent came back: then ownership alone says it."""
        vm, want = self.vm, self.vm.desired
        if is_incoming(vm.record):
            self.holds_the_vm = True                    # in doubt, whole or not: a REMOVE or an order will say
        elif vm.client is not None and vm.seen is not None and vm.seen.state == pb.VM_STATE_HELD:
            self.holds_the_vm = True
            if want is not None and want.generation > max(vm.seen.generation, vm.node.files.floor(vm.uid) - 1):
                vm.record.generation = want.generation
                await vm.save(durable=False)
                await vm.client.call(decide=pb.Decide(id=vm.seen.migration.id, generation=want.generation, mine=True))
                return 0.0
        return None

    # ---- target ----------------------------------------------------------------------------------------------

    async def _target(self, order: agent.MigrationOrder) -> float | None:
        vm = self.vm
        mine = order.decision == DECISIONS.MIGRATION_DECISION_COMMIT
        if vm.record.migration.id == order.uid and vm.record.migration.incoming_owned:
            return await self._owned(order)
        self.holds_the_vm = True
        if order.uid in self._result:
            return None
        if order.decision == DECISIONS.MIGRATION_DECISION_ABORT:
            return await self._give_up(order, "ABORTED", "the controller decided that the VM stays")
        here = vm.record.migration.id == order.uid and is_incoming(vm.record)
        if not here:
            if mine:
                return await self._give_up(order, "TARGET_FAILED", "the copy is not here any more")
            return await self._prepare(order)
        if not vm.alive:
            why = vm.end.detail if vm.end is not None and vm.end.detail else "its process ended"
            return await self._give_up(order, "TARGET_FAILED", why)
        side = self._side()
        if side is None:
            return await self._listen(order)
        if mine:
            return await self._commit(order.owner_generation, order)
        if side.state == Target.READY.value:
            return await self._ask(order)
        return None

    async def _prepare(self, order: agent.MigrationOrder) -> float | None:
        """A folder, the image, a process that listens. Any failure is final: the controller may order another."""
        vm, record = self.vm, self.vm.record
        if vm.alive or record.run or order.generation + 1 < vm.node.files.floor(vm.uid):
            self._settle(agent.MIGRATION_STEP_FAILED, "TARGET_FAILED", "another copy of the VM is here")
            return None
        record.Clear()
        record.format, record.generation = 1, order.generation
        record.migration.id = order.uid
        record.run_asked_unix_time = vm.node.clock()
        await vm.ensure_folder()
        await vm.save()
        try:
            await prepare_config(vm, order.vm)
            if len(record.config.disks):
                raise ImageError("HAS_DISKS", "the VM has disks of its own on its node, which do not move yet")
            del record.phases[:]
            record.run_asked_unix_time = 0
            await vm.save()
            await vm.spawn()
        except (ImageError, CallFailed, OSError) as error:
            return await self._give_up(order, getattr(error, "reason", "TARGET_FAILED"), str(error))
        return await self._listen(order)

    async def _listen(self, order: agent.MigrationOrder) -> float | None:
        vm = self.vm
        if vm.client is None:
            return ASK_AGAIN_S
        try:
            await vm.client.call(migrate_in=pb.MigrateIn(
                id=order.uid, bind_host=self._host(order), token=order.token.encode(), tls=vm.node.tls_files(order.tls)))
        except (CallFailed, Gone) as error:
            return await self._give_up(order, "TARGET_FAILED", str(error))
        await vm.client.call(describe=pb.Describe())
        return None

    async def _ask(self, order: agent.MigrationOrder) -> float | None:
        """We have all: ask for the one decision. Nobody knows: stay as we are, ask again."""
        answer = await self.vm.node.decide(order, DECISIONS.MIGRATION_DECISION_COMMIT, "")
        if answer is None:
            return ASK_AGAIN_S
        if answer.decision == DECISIONS.MIGRATION_DECISION_COMMIT:
            return await self._commit(answer.owner_generation, order)
        if answer.decision == DECISIONS.MIGRATION_DECISION_ABORT:
            return await self._give_up(order, "ABORTED", "the controller decided that the VM stays")
        return ASK_AGAIN_S

    async def _commit(self, generation: int, order: agent.MigrationOrder) -> float | None:
        """Ours. Written down, then run; not fsynced, for a host that crashes takes the copy with it."""
        vm, record = self.vm, self.vm.record
        if vm.client is None or self._side() is None or self._side().state not in (Target.READY.value,
                                                                                   Target.RUNNING.value):
            return await self._give_up(order, "TARGET_FAILED", "committed, but the copy is not whole")
        record.generation, record.run = generation, order.vm.run
        record.reset_serial, record.spec_generation = order.vm.reset_serial, order.vm.spec_generation
        record.migration.incoming_owned = True
        await vm.save(durable=False)
        try:
            await vm.client.call(decide=pb.Decide(id=order.uid, generation=generation, mine=True))
        except (Gone, CallFailed) as error:
            log.error("committed, and could not run: %s", error, extra=vm.extra)
            return 0.0                                        # _owned looks at how far it came
        self._settle(agent.MIGRATION_STEP_DONE)
        return 0.0

    async def _owned(self, order: agent.MigrationOrder) -> float | None:
        """Committed and written down; perhaps by an agent before us that came no further."""
        vm, side = self.vm, self._side()
        if order.uid in self._result:
            return None
        if vm.alive and side is None:
            return ASK_AGAIN_S                                # connecting
        if vm.alive and side.state == Target.READY.value:
            return await self._commit(vm.record.generation, order)
        if not vm.alive and not vm.folder.ran.exists():
            # Dead, and certainly never ran: the source's paused copy is the VM.
            return await self._give_up(order, "TARGET_FAILED", "its process ended before it ran")
        self._settle(agent.MIGRATION_STEP_DONE)
        return None

    async def _give_up(self, order: agent.MigrationOrder, reason: str, message: str) -> float | None:
        """Never again: on disk first (the floor), then the copy goes, then it is told."""
        vm = self.vm
        generation = max(order.generation + 1, order.owner_generation, vm.record.generation)
        vm.node.files.raise_floor(vm.uid, generation + 1)
        await vm.discard(lambda: self._settle(agent.MIGRATION_STEP_FAILED, reason, message))
        return None

    # ---- source ----------------------------------------------------------------------------------------------

    async def _source(self, order: agent.MigrationOrder) -> float | None:
        vm, side = self.vm, self._side()
        if order.decision == DECISIONS.MIGRATION_DECISION_ABORT:
            return await self._back(order)
        if order.decision == DECISIONS.MIGRATION_DECISION_COMMIT:
            return await self._hand_over(order)
        self.holds_the_vm = True         # undecided: a new run here could meet the old one at the target
        if not vm.alive:
            self._settle(agent.MIGRATION_STEP_FAILED, "VM_ENDED", "the VM ended on its source")
            return None
        if order.uid in self._result or vm.client is None:
            return None
        if side is None:
            return await self._send(order)
        if side.state == Source.BACK.value:
            self._settle(agent.MIGRATION_STEP_FAILED, "SOURCE_FAILED", side.error)
        return None

    async def _send(self, order: agent.MigrationOrder) -> float | None:
        vm = self.vm
        host, _, port = order.peer_address.rpartition(":")
        try:
            if len(vm.record.config.disks):
                raise ImageError("HAS_DISKS", "the VM has disks of its own on its node, which do not move yet")
            await vm.client.call(migrate_out=pb.MigrateOut(
                id=order.uid, host=host.strip("[]"), port=int(port), token=order.token.encode(),
                tls=vm.node.tls_files(order.tls)))
        except (CallFailed, ImageError, ValueError) as error:
            self._settle(agent.MIGRATION_STEP_FAILED, getattr(error, "reason", "SOURCE_FAILED"), str(error))
        return None

    async def _back(self, order: agent.MigrationOrder) -> float | None:
        """The VM is ours, with a new generation: written down, then run."""
        vm, side = self.vm, self._side()
        if vm.record.generation < order.owner_generation:
            vm.record.generation = order.owner_generation
            await vm.save(durable=False)
        if vm.alive and (vm.client is None or vm.seen is None):
            return ASK_AGAIN_S
        if vm.alive and side is not None:
            await vm.client.call(decide=pb.Decide(id=order.uid, generation=order.owner_generation, mine=True))
        self._settle(agent.MIGRATION_STEP_DONE)
        return None

    async def _hand_over(self, order: agent.MigrationOrder) -> float | None:
        """The VM is theirs; the paused copy stays until a REMOVE says that it was seen running."""
        vm, side = self.vm, self._side()
        self.holds_the_vm = True
        if vm.client is not None and side is not None and side.state == Source.PAUSED.value:
            await vm.client.call(decide=pb.Decide(id=order.uid, generation=order.owner_generation, mine=False))
        elif not vm.alive and vm.end is not None:
            self._settle(agent.MIGRATION_STEP_DONE)           # nothing left that could run
        return None


