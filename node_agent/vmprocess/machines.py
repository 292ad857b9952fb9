"""Where a VM process gets its machine from.

Owns:    the border to node_agent.machine: a spec from a config, a state to bytes and back.
Never:   runs one.
Threads: none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from virga.vmm.v1 import vmm_pb2 as pb

ConsoleWrite = Callable[[str, bytes], None]


class BadConfig(Exception):
    """The VM cannot be as wished."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(why)
        self.field = field


class Machines(Protocol):
    """Makes machines with the face drawn in node_agent/machine/README.md."""

    def create(self, config: pb.VmConfig, console: ConsoleWrite, rtc_epoch_s: int | None) -> Any:
        """Memory and devices, no kernel yet. Raises BadConfig or OSError (no memory)."""

    def boot(self, machine: Any) -> None:
        """Load the kernel. Raises BadConfig."""

    def save(self, machine: Any) -> bytes: ...

    def load(self, machine: Any, state: bytes) -> None:
        """Raises ValueError for a state that does not fit."""


class RealMachines:
    """The PC of node_agent.machine."""

    def __init__(self) -> None:
        from node_agent.boot import BootError
        from node_agent.machine import records, spec
        from node_agent.machine.machine import Machine

        self._machine, self._spec, self._records, self._boot_error = Machine, spec, records, BootError

    def create(self, config: pb.VmConfig, console: ConsoleWrite, rtc_epoch_s: int | None) -> Any:
        disks = tuple(self._spec.DiskSpec(d.path, d.read_only) for d in config.disks)
        spec = self._spec.MachineSpec(
            kernel=config.kernel, memory_bytes=config.memory_bytes, cpus=config.cpus, clock=config.clock or "real",
            seed=config.seed, initrd=config.initrd or None, append=config.append, disks=disks,
            rtc_epoch_s=rtc_epoch_s)
        try:
            return self._machine(spec, console=console)
        except self._spec.SpecError as error:
            raise BadConfig(error.path, str(error)) from error

    def boot(self, machine: Any) -> None:
        try:
            machine.boot()
        except self._spec.SpecError as error:
            raise BadConfig(error.path, str(error)) from error
        except self._boot_error as error:
            raise BadConfig("kernel", str(error)) from error

    def save(self, machine: Any) -> bytes:
        return self._records.encode_state(machine.save())

    def load(self, machine: Any, state: bytes) -> None:
        machine.load(self._records.decode_state(state))
