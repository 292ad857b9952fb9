"""Beginning a run: image, disks, process, kernel.

Owns:    the order of the steps, and what a VM's config is made of.
Never:   decides whether to begin.
Threads: the agent's loop; copying in worker threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from virga.agent.v1 import agent_pb2 as agent
from virga.v1 import image_pb2 as image_v1
from virga.v1 import vm_pb2 as v1
from virga.vmm.v1 import vmm_pb2 as pb

if TYPE_CHECKING:
    from node_agent.agent.vm import LocalVm


async def begin_run(vm: LocalVm, want: agent.DesiredVm) -> None:
    """The run is on disk before anything of it exists. Raises ImageError, CallFailed, OSError, wire errors."""
    record, again = vm.record, vm.record.run == want.run
    vm.doing = v1.VM_STATE_CREATING
    await vm.ensure_folder()
    if not again:
        record.run, record.reset_serial = want.run, want.reset_serial
        record.stop_asked, record.failure_reason, record.failure_message = False, "", ""
        record.run_asked_unix_time = vm.node.clock()
        del record.phases[:]
        record.ClearField("migration")
        for old in (vm.folder.end_file, vm.folder.process_file, vm.folder.ran):
            old.unlink(missing_ok=True)
        vm.end = vm.seen = None
        await vm.save()
    vm.changed()
    await prepare_config(vm, want)
    await vm.save()
    vm.doing = v1.VM_STATE_STARTING
    vm.changed()
    await vm.spawn()
    assert vm.client is not None
    await vm.client.call(60.0, start=pb.Start())


async def prepare_config(vm: LocalVm, want: agent.DesiredVm) -> None:
    """Fetch the image, make the disks, write down what the process is to be. Phase: image."""
    cached = True
    paths: dict[int, Path] = {}
    for file in want.image.files:
        paths[file.role], was_there = await vm.node.images.get(file.sha256, file.size_bytes)
        cached = cached and was_there
    config = vm.record.config
    spec = want.spec
    config.format, config.uid, config.name = 1, want.uid, want.name
    config.memory_bytes, config.cpus = spec.memory_mib << 20, spec.cpus or 1
    config.kernel = str(paths.get(image_v1.FILE_ROLE_KERNEL, ""))
    config.initrd = str(paths.get(image_v1.FILE_ROLE_INITRD, ""))
    config.append = " ".join(filter(None, (want.image.append, spec.append)))
    config.clock = "virtual" if spec.clock == v1.CLOCK_MODE_VIRTUAL else "real"
    config.ready_marker = want.image.ready_marker
    del config.disks[:]
    for number, source in enumerate(_disks(paths, spec)):
        path = vm.folder.path / f"disk-{number}"
        if not path.exists():
            await asyncio.to_thread(_make_disk, path, source)
        config.disks.append(pb.VmConfig.Disk(path=str(path)))
    if not any(phase.name == "image" for phase in vm.record.phases):
        vm.record.phases.append(pb.Phase(
            name="image", seconds=max(0.0, vm.node.clock() - vm.record.run_asked_unix_time),
            detail="cached" if cached else "fetched"))


def _disks(paths: dict[int, Path], spec: v1.VmSpec) -> list[Path | int]:
    """A path to copy, or a size in bytes of a disk that is empty at first."""
    own: list[Path | int] = [paths[image_v1.FILE_ROLE_DISK]] if image_v1.FILE_ROLE_DISK in paths else []
    return own + [disk.size_mib << 20 for disk in spec.disks]


def _make_disk(path: Path, source: Path | int) -> None:
    part = path.with_suffix(".part")
    try:
        if isinstance(source, int):
            with open(part, "wb") as file:
                file.truncate(source)
        else:
            shutil.copyfile(source, part)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
