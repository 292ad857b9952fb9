"""An agent makes so what it is told, once, and goes on where another agent stopped."""

import asyncio
import os
import signal

from node_agent.console.ring import RingReader
from node_agent.vmprocess import files
from virga.agent.v1 import agent_pb2 as agent
from virga.v1 import vm_pb2 as v1


async def test_a_vm_is_created_runs_is_paused_resumed_and_stopped(nodes, controller):
    await nodes.start("n1")
    assert controller.hellos[0].memory_mib == 4096 and controller.hellos[0].labels == {"rack": "a"}
    controller.want("n1", [nodes.vm("vm1")])
    vm = await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    assert (vm.run, vm.generation) == (1, 1)
    await controller.until(lambda: {p.name for p in controller.vms["n1", "vm1"].phases}
                           >= {"image", "process", "kernel"})
    controller.want("n1", [nodes.vm("vm1", power=v1.POWER_STATE_PAUSED)])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_PAUSED)
    controller.want("n1", [nodes.vm("vm1")])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    await controller.until(lambda: "vm1" in controller.stats and controller.stats["vm1"].retired_instructions)
    controller.want("n1", [nodes.vm("vm1", power=v1.POWER_STATE_STOPPED)])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_STOPPED, "STOPPED_BY_USER")
    assert not nodes.process("n1", "vm1").alive()


async def test_a_deaf_guest_is_stopped_by_force(nodes, controller):
    await nodes.start("n1")
    controller.want("n1", [nodes.vm("vm1", append="count nopower")])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    controller.want("n1", [nodes.vm("vm1", append="count nopower", power=v1.POWER_STATE_STOPPED)])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_STOPPING)
    controller.want("n1", [nodes.vm("vm1", append="count nopower", power=v1.POWER_STATE_STOPPED, force_stop=True)])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_STOPPED, "STOPPED_BY_USER")


async def test_an_ended_run_is_not_begun_again_but_the_next_is(nodes, controller):
    await nodes.start("n1")
    controller.want("n1", [nodes.vm("vm1", append="exit=3")])
    vm = await nodes.until_state("n1", "vm1", v1.VM_STATE_STOPPED, "DEBUG_EXIT")
    assert vm.exit_status == 7
    controller.want("n1", [nodes.vm("vm1", append="exit=3", spec_generation=2)])
    await controller.until(lambda: controller.vms["n1", "vm1"].spec_generation == 2)
    assert controller.vms["n1", "vm1"].state == v1.VM_STATE_STOPPED
    controller.want("n1", [nodes.vm("vm1", append="triplefault", run=2)])
    vm = await nodes.until_state("n1", "vm1", v1.VM_STATE_CRASHED, "TRIPLE_FAULT")
    assert vm.run == 2 and "rip=0xdead" in vm.message and vm.exit_status == 254


async def test_a_killed_process_harms_no_other_vm_and_is_reported_with_its_signal(nodes, controller):
    await nodes.start("n1")
    controller.want("n1", [nodes.vm("vm1"), nodes.vm("vm2")])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    await nodes.until_state("n1", "vm2", v1.VM_STATE_RUNNING)
    nodes.process("n1", "vm1").signal(signal.SIGSEGV)
    vm = await nodes.until_state("n1", "vm1", v1.VM_STATE_CRASHED, "KILLED")
    assert "signal 11" in vm.message
    assert controller.vms["n1", "vm2"].state == v1.VM_STATE_RUNNING and nodes.process("n1", "vm2").alive()


async def test_a_vm_outlives_its_agent_and_the_next_agent_finds_it(nodes, controller):
    await nodes.start("n1")
    controller.want("n1", [nodes.vm("vm1")])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    who = nodes.process("n1", "vm1")
    await nodes.crash("n1")
    ring = RingReader(nodes.state("n1") / "vms" / "vm1" / "console")
    before = ring.written
    await asyncio.sleep(0.1)
    assert ring.written > before, "it counts on"
    await nodes.start("n1")
    hello = controller.hellos[-1]
    assert [vm.uid for vm in hello.observed.vms] == ["vm1"] and hello.observed.full
    await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    assert nodes.process("n1", "vm1") == who and who.alive()
    numbers = [int(n) for n in ring.read(0, 1 << 20).data.split(b"\n")[:-1]]
    assert numbers == list(range(len(numbers)))
    ring.close()


async def test_a_crash_while_no_agent_looked_is_told_by_the_zygotes_word(nodes, controller):
    await nodes.start("n1")
    controller.want("n1", [nodes.vm("vm1")])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    await nodes.crash("n1")
    nodes.process("n1", "vm1").signal(signal.SIGKILL)
    await asyncio.sleep(0.2)
    await nodes.start("n1")
    assert "signal 9" in (await nodes.until_state("n1", "vm1", v1.VM_STATE_CRASHED, "KILLED")).message


async def test_vms_and_new_vms_survive_the_zygotes_death(nodes, controller):
    await nodes.start("n1")
    controller.want("n1", [nodes.vm("vm1")])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    nodes.zygote("n1").signal(signal.SIGKILL)
    controller.want("n1", [nodes.vm("vm1"), nodes.vm("vm2")])
    await nodes.until_state("n1", "vm2", v1.VM_STATE_RUNNING)
    assert nodes.process("n1", "vm1").alive()
    nodes.process("n1", "vm1").signal(signal.SIGKILL)
    await nodes.until_state("n1", "vm1", v1.VM_STATE_CRASHED, "KILLED")


async def test_remove_takes_everything_but_a_newer_copy(nodes, controller):
    await nodes.start("n1")
    controller.want("n1", [nodes.vm("vm1", generation=5)])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    old = agent.DesiredVm(uid="vm1", name="vm1", disposition=agent.DISPOSITION_REMOVE, generation=4)
    controller.want("n1", [old, nodes.vm("vm2")])
    await nodes.until_state("n1", "vm2", v1.VM_STATE_RUNNING)
    who = nodes.process("n1", "vm1")
    assert who.alive()
    old.generation = 5
    controller.want("n1", [old])
    await controller.until(lambda: controller.vms["n1", "vm1"].gone)
    assert not who.alive() and not (nodes.state("n1") / "vms" / "vm1").exists()
    assert nodes.process("n1", "vm2").alive(), "what is not mentioned stays"
    controller.want("n1", [nodes.vm("vm1", generation=5)])          # an order that was late
    controller.want("n1", [nodes.vm("vm3")])
    await nodes.until_state("n1", "vm3", v1.VM_STATE_RUNNING)
    assert not (nodes.state("n1") / "vms" / "vm1" / "process.pb").exists()


async def test_a_corrupt_record_is_that_vms_trouble_alone(nodes, controller):
    await nodes.start("n1")
    controller.want("n1", [nodes.vm("vm1"), nodes.vm("vm2")])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    await nodes.until_state("n1", "vm2", v1.VM_STATE_RUNNING)
    await nodes.stop("n1")
    record = files.VmFolder.under(nodes.state("n1"), "vm1").record_file
    record.write_bytes(os.urandom(300))
    await nodes.start("n1")
    vm = await nodes.until_state("n1", "vm1", v1.VM_STATE_UNKNOWN, "STATE_CORRUPT")
    assert str(record) in vm.message
    await nodes.until_state("n1", "vm2", v1.VM_STATE_RUNNING)
    process = nodes.process("n1", "vm1")
    assert process.alive(), "left alone"
    controller.want("n1", [agent.DesiredVm(uid="vm1", disposition=agent.DISPOSITION_REMOVE, generation=1 << 62)])
    await controller.until(lambda: controller.vms["n1", "vm1"].gone)
    assert not record.exists() and not process.alive()


async def test_a_controller_that_comes_back_finds_everything_as_it_was(nodes, controller):
    await nodes.start("n1")
    controller.want("n1", [nodes.vm("vm1")])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    who, port = nodes.process("n1", "vm1"), controller.port
    await controller.stop()
    controller.vms.clear()
    await asyncio.sleep(0.1)
    await controller.start(port)
    await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    assert nodes.process("n1", "vm1") == who and len(controller.hellos) == 2
