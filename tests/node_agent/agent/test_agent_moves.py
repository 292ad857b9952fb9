"""A move between two agents: who runs the VM, whatever is killed, and what is left behind."""

import asyncio
import signal

import pytest

from node_agent.console.ring import RingReader
from virga.agent.v1 import agent_pb2 as agent
from virga.v1 import vm_pb2 as v1

COMMIT, ABORT = agent.MIGRATION_DECISION_COMMIT, agent.MIGRATION_DECISION_ABORT
STEP = agent.MigrationStep


class Movers:
    """vm1 on n1, to be moved to n2; plays the controller's side of orders."""

    def __init__(self, nodes, controller):
        self.nodes = nodes
        self.controller = controller
        self.decision = agent.MIGRATION_DECISION_UNSPECIFIED
        self.owner_generation = 0
        self.allow = True                            # whether a wish for COMMIT is granted at all
        controller.decide = self._decide

    def _decide(self, node, request):
        if not self.allow:
            return None
        if not self.decision:
            self.settle(request.wish, 2, push=False)
        owner = "n2" if self.decision == COMMIT else "n1"
        return agent.DecideMigrationResponse(decision=self.decision, owner_generation=self.owner_generation,
                                             owner_node=owner)

    def settle(self, decision, generation, push=True):
        self.decision, self.owner_generation = decision, generation
        if push:
            self.push()

    def order(self, role, **more):
        return agent.MigrationOrder(uid="m1", vm_uid="vm1", role=role, token="tok", generation=1,
                                    decision=self.decision, owner_generation=self.owner_generation, **more)

    def push(self):
        """As the controller: the target first, the source once there is an address; then what the decision makes."""
        target = self.controller.migrations.get(("n2", "m1"))
        address = target.address if target is not None else ""
        vm = self.nodes.vm("vm1", append="count dirty=5")
        moves = [self.order(agent.MIGRATION_ROLE_TARGET, peer_node="n1", vm=vm)]
        if self.decision == COMMIT:
            vm.generation = self.owner_generation
            self.controller.want("n2", [vm], moves)
            mine = []
        else:
            vm.generation = max(1, self.owner_generation)
            self.controller.want("n2", [], moves)
            mine = [vm]
        source = [self.order(agent.MIGRATION_ROLE_SOURCE, peer_node="n2", peer_address=address)] \
            if address or self.decision else []
        self.controller.want("n1", mine, source)

    def step(self, node, step):
        told = self.controller.migrations.get((node, "m1"))
        return told is not None and told.step == step

    async def until_step(self, node, step):
        try:
            await self.controller.until(lambda: self.step(node, step))
        except TimeoutError:
            raise AssertionError(f"{node}: {self.controller.migrations.get((node, 'm1'))}") from None

    async def until_ready(self):
        self.push()
        await self.until_step("n2", STEP.MIGRATION_STEP_PREPARED)
        self.push()
        await self.until_step("n2", STEP.MIGRATION_STEP_READY)

    def release(self):
        self.controller.want("n1", [agent.DesiredVm(
            uid="vm1", name="vm1", disposition=agent.DISPOSITION_REMOVE, generation=self.owner_generation - 1)],
            [self.order(agent.MIGRATION_ROLE_SOURCE)])

    def exists(self, node):
        return (self.nodes.state(node) / "vms" / "vm1").exists()

    def numbers(self, node):
        ring = RingReader(self.nodes.state(node) / "vms" / "vm1" / "console")
        data = ring.read(0, 1 << 20).data
        ring.close()
        return [int(n) for n in data.split(b"\n")[:-1]]

    async def counts_on(self, node):
        before = len(self.numbers(node))
        async with asyncio.timeout(5):
            while len(self.numbers(node)) < before + 3:
                await asyncio.sleep(0.01)

    async def stands_still(self, node):
        before = self.numbers(node)
        await asyncio.sleep(0.1)
        assert self.numbers(node) == before


@pytest.fixture
async def movers(nodes, controller):
    await nodes.start("n1")
    await nodes.start("n2")
    controller.want("n1", [nodes.vm("vm1", append="count dirty=5")])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    return Movers(nodes, controller)


async def test_a_move_keeps_every_number_and_leaves_nothing(movers, nodes, controller):
    movers.push()
    await movers.until_step("n2", STEP.MIGRATION_STEP_PREPARED)
    assert controller.vms["n2", "vm1"].migrating_in
    movers.push()
    await movers.until_step("n2", STEP.MIGRATION_STEP_DONE)
    movers.push()
    vm = await nodes.until_state("n2", "vm1", v1.VM_STATE_RUNNING)
    assert (vm.generation, vm.run, vm.migrating_in) == (2, 1, False)
    assert controller.migrations["n2", "m1"].gap_ms > controller.migrations["n2", "m1"].decision_ms > 0
    movers.release()
    await movers.until_step("n1", STEP.MIGRATION_STEP_DONE)
    await controller.until(lambda: controller.vms["n1", "vm1"].gone)
    await movers.counts_on("n2")
    numbers = movers.numbers("n2")
    assert numbers == list(range(len(numbers)))
    assert not movers.exists("n1")


async def test_in_doubt_both_stay_paused_and_a_late_abort_brings_it_back(movers, nodes, controller):
    movers.allow = False
    await movers.until_ready()
    await movers.stands_still("n1")
    movers.settle(ABORT, 2)
    await movers.until_step("n2", STEP.MIGRATION_STEP_FAILED)
    await movers.until_step("n1", STEP.MIGRATION_STEP_DONE)
    await movers.counts_on("n1")
    await controller.until(lambda: controller.vms["n1", "vm1"].generation == 2)
    assert not movers.exists("n2")
    numbers = movers.numbers("n1")
    assert numbers == list(range(len(numbers)))


async def test_agents_killed_in_doubt_learn_the_decision_when_they_are_back(movers, nodes, controller):
    movers.allow = False
    await movers.until_ready()
    await nodes.crash("n1")
    await nodes.crash("n2")
    movers.allow = True
    movers.settle(COMMIT, 2, push=False)
    await nodes.start("n2")
    movers.push()
    await movers.until_step("n2", STEP.MIGRATION_STEP_DONE)
    await movers.counts_on("n2")
    await movers.stands_still("n1")
    await nodes.start("n1")
    await controller.until(lambda: movers.step("n1", STEP.MIGRATION_STEP_PAUSED))
    await movers.stands_still("n1")
    movers.release()
    await controller.until(lambda: controller.vms["n1", "vm1"].gone)
    numbers = movers.numbers("n2")
    assert numbers == list(range(len(numbers)))


async def test_a_source_whose_agent_slept_through_the_abort_goes_on(movers, nodes, controller):
    movers.allow = False
    await movers.until_ready()
    await nodes.crash("n1")
    controller.want("n1", [nodes.vm("vm1", append="count dirty=5")])        # undecided: of the same generation
    await nodes.start("n1")
    await movers.stands_still("n1")
    controller.want("n1", [nodes.vm("vm1", append="count dirty=5", generation=2)])      # the order is over and gone
    await movers.counts_on("n1")
    await controller.until(lambda: controller.vms["n1", "vm1"].generation == 2)
    numbers = movers.numbers("n1")
    assert numbers == list(range(len(numbers)))


async def test_a_target_that_dies_before_the_decision_gives_up(movers, nodes, controller):
    movers.allow = False
    await movers.until_ready()
    nodes.process("n2", "vm1").signal(signal.SIGKILL)
    await movers.until_step("n2", STEP.MIGRATION_STEP_FAILED)
    assert not movers.exists("n2")
    movers.settle(ABORT, 2)
    await movers.until_step("n1", STEP.MIGRATION_STEP_DONE)
    await movers.counts_on("n1")


async def test_a_commit_that_comes_after_the_targets_death_is_given_back(movers, nodes, controller):
    movers.allow = False
    await movers.until_ready()
    await nodes.crash("n2")
    nodes.process("n2", "vm1").signal(signal.SIGKILL)
    movers.settle(COMMIT, 2, push=False)
    await nodes.start("n2")
    movers.push()
    await movers.until_step("n2", STEP.MIGRATION_STEP_FAILED)
    await movers.stands_still("n1")
    assert not movers.exists("n2"), "and a wish to keep it begins nothing here"
    movers.settle(ABORT, 3)
    await movers.until_step("n1", STEP.MIGRATION_STEP_DONE)
    await controller.until(lambda: controller.vms["n1", "vm1"].generation == 3)
    await movers.counts_on("n1")
    numbers = movers.numbers("n1")
    assert numbers == list(range(len(numbers)))


async def test_a_source_that_dies_in_doubt_leaves_the_target_whole(movers, nodes, controller):
    movers.allow = False
    await movers.until_ready()
    nodes.process("n1", "vm1").signal(signal.SIGKILL)
    await movers.until_step("n1", STEP.MIGRATION_STEP_FAILED)
    movers.allow = True
    await movers.until_step("n2", STEP.MIGRATION_STEP_DONE)
    await movers.counts_on("n2")
    numbers = movers.numbers("n2")
    assert numbers == list(range(len(numbers)))


async def test_a_source_that_cannot_reach_its_target_goes_on(movers, nodes, controller):
    movers.push()
    await movers.until_step("n2", STEP.MIGRATION_STEP_PREPARED)
    nodes.process("n2", "vm1").signal(signal.SIGSTOP)               # it listens, and says nothing
    nodes.process("n2", "vm1").signal(signal.SIGKILL)
    movers.push()
    await movers.until_step("n1", STEP.MIGRATION_STEP_FAILED)
    await movers.counts_on("n1")
    movers.settle(ABORT, 2)
    await controller.until(lambda: controller.vms["n1", "vm1"].generation == 2)
    await movers.counts_on("n1")
