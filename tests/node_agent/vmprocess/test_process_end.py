"""How a VM's process takes the end of its machine."""

import asyncio

import pytest

from node_agent.machine.spec import ExitKind, MachineExit
from node_agent.vmprocess import files
from node_agent.vmprocess.fakes import FakeMachines
from node_agent.vmprocess.process import VmProcess
from virga.vmm.v1 import vmm_pb2 as pb


@pytest.mark.parametrize(("written", "recorded"), [
    (0, 0), (0x7FFFFFFF, 0x7FFFFFFF), (0x80000000, -(1 << 31)), (0xFFFFFFFF, -1)])
async def test_any_debug_exit_value_ends_the_process(tmp_path, written, recorded):
    folder = files.VmFolder(tmp_path / "vm1")
    folder.path.mkdir(parents=True)
    vm = VmProcess(folder, pb.VmRecord(format=1, generation=1, config=pb.VmConfig(
        uid="vm1", memory_bytes=4 << 20, cpus=1, console_bytes=1 << 16)), FakeMachines(), 0.0)
    await vm.create()
    await vm.start()
    vm.machine.on_exit(MachineExit(ExitKind.DEBUG_EXIT, written))
    await asyncio.wait_for(vm.ended.wait(), 10)
    assert vm.end.value == recorded and vm.end.reason == pb.END_REASON_DEBUG_EXIT
    await vm.close()
