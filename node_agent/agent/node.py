"""All VMs of a node, and what the link to the controller needs of them.

Owns:    the set of VMs, the latest desired state, what is to be told.
Never:   forgets a VM because nobody mentioned it.
Threads: the agent's loop.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

from node_agent.agent import observe
from node_agent.agent.config import Config
from node_agent.agent.images import Images
from node_agent.agent.node_files import NodeFiles
from node_agent.agent.vm import LocalVm
from node_agent.agent.zygotes import Zygotes
from node_agent.vmprocess.client import CallFailed, Gone
from virga.agent.v1 import agent_pb2 as agent
from virga.vmm.v1 import vmm_pb2 as pb

log = logging.getLogger("node")

MAX_RESULTS = 1000
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class Controller(Protocol):
    """What VMs ask of the controller."""

    def fetch_image(self, sha256: str, offset: int) -> AsyncIterator[bytes]: ...

    async def decide(self, order: agent.MigrationOrder, wish: int, reason: str) -> agent.DecideMigrationResponse | None:
        """None: nobody can tell now."""


class Node:
    def __init__(self, config: Config, node_files: NodeFiles, controller: Controller,
                 clock: Callable[[], float]) -> None:
        self.config = config
        self.files = node_files
        self.clock = clock
        self.zygotes = Zygotes(config.state, config.zygote)
        self.images = Images(config.state / "images", controller.fetch_image, self._images_in_use)
        self.decide: Callable[..., Awaitable[agent.DecideMigrationResponse | None]] = controller.decide
        self.vms: dict[str, LocalVm] = {}
        self.migration_results: dict[str, tuple[int, str, str]] = {}
        self.on_change: Callable[[], None] = lambda: None
        self.on_event: Callable[[agent.AgentEvent], None] = lambda _: None
        self.stats: dict[str, agent.VmStats] = {}
        self._orders: dict[str, agent.MigrationOrder] = {}       # by VM
        self._dirty: set[str] = set()
        self._gone: dict[str, int] = {}
        self._told: dict[str, bytes] = {}                        # what the present stream last heard of each VM

    # ---- from disk -------------------------------------------------------------------------------------------

    def discover(self) -> None:
        for folder in sorted((self.config.state / "vms").iterdir()):
            if not folder.is_dir():
                continue
            try:
                vm = LocalVm(self, folder.name)
            except ValueError:
                log.error("%s is no VM's folder; left alone", folder)
                continue
            vm.discover()
            self.vms[vm.uid] = vm
        for vm in self.vms.values():
            vm.begin()
            vm.wake()
        log.info("%d VMs found on disk, %d of them alive", len(self.vms), sum(v.alive for v in self.vms.values()))

    async def settle(self, timeout_s: float) -> None:
        """Until every living VM has answered once, so that the first report says what is so; a deaf one is not waited
        for longer."""
        end = asyncio.get_running_loop().time() + timeout_s
        while any(vm.process is not None and vm.client is None for vm in self.vms.values()):
            if asyncio.get_running_loop().time() > end:
                return
            await asyncio.sleep(0.01)

    def _images_in_use(self) -> set[str]:
        used: set[str] = set()
        for vm in self.vms.values():
            used.update(Path(p).name for p in (vm.record.config.kernel, vm.record.config.initrd) if p)
            if vm.desired is not None:
                used.update(file.sha256 for file in vm.desired.image.files)
        return used

    # ---- wishes ----------------------------------------------------------------------------------------------

    def want(self, desired: agent.DesiredState) -> None:
        """The whole of what the controller wants. What it does not mention stays as it is."""
        wishes = {vm.uid: vm for vm in desired.vms}
        self._orders = {order.vm_uid: order for order in desired.migrations}
        for uid in wishes.keys() | self._orders.keys() | self.vms.keys():
            wish, order = wishes.get(uid), self._orders.get(uid)
            vm = self.vms.get(uid)
            if vm is None:
                vm = self._new(uid, wish, order)
            if vm is not None:
                vm.want(wish, order)
        while len(self.migration_results) > MAX_RESULTS:
            del self.migration_results[next(iter(self.migration_results))]
        self.on_change()

    def _new(self, uid: str, wish: agent.DesiredVm | None, order: agent.MigrationOrder | None) -> LocalVm | None:
        """A VM that is not here. One that is to go is gone; a move that is over needs no copy."""
        if wish is not None and wish.disposition == agent.DISPOSITION_REMOVE:
            self._gone[uid] = wish.generation
            return None
        if wish is None and order is not None and order.role != agent.MIGRATION_ROLE_TARGET:
            self.migration_results.setdefault(
                order.uid, (agent.MIGRATION_STEP_FAILED, "VM_NOT_HERE", "the VM is not on this node"))
        if wish is None and (order is None or order.uid in self.migration_results):
            return None
        try:
            vm = LocalVm(self, uid)
        except ValueError as error:
            log.error("the controller names a VM so: %s", error)
            return None
        self.vms[uid] = vm
        vm.begin()
        return vm

    # ---- what is to be told ----------------------------------------------------------------------------------

    def changed(self, uid: str) -> None:
        self._dirty.add(uid)
        self.on_change()

    def forget(self, uid: str) -> None:
        """The VM's folder is gone."""
        vm = self.vms.pop(uid, None)
        self.stats.pop(uid, None)
        if vm is not None:
            self._gone[uid] = vm.record.generation
        self._dirty.discard(uid)
        self._told.pop(uid, None)
        self.on_change()

    def observed(self, full: bool) -> agent.ObservedState | None:
        """Everything, or what changed since the last call (None where nothing did)."""
        if full:
            self._told.clear()
        uids = set(self.vms) if full else self._dirty & self.vms.keys()
        vms = [vm for uid in sorted(uids) if self._is_news(vm := self.vms[uid].observed())]
        vms += [agent.ObservedVm(uid=uid, generation=generation, gone=True)
                for uid, generation in self._gone.items() if uid not in self.vms]
        self._dirty.clear()
        self._gone.clear()
        migrations = self._observed_migrations()
        if not full and not vms and not migrations:
            return None
        return agent.ObservedState(full=full, vms=vms, migrations=migrations)

    def _is_news(self, vm: agent.ObservedVm) -> bool:
        """On this stream; counters tick without anything to tell."""
        words = vm.SerializeToString(deterministic=True)
        if self._told.get(vm.uid) == words:
            return False
        self._told[vm.uid] = words
        return True

    def _observed_migrations(self) -> list[agent.ObservedMigration]:
        out = []
        for uid, order in self._orders.items():
            vm = self.vms.get(uid)
            seen = vm.move.observed() if vm is not None and vm.move.order is not None else None
            if seen is None and order.uid in self.migration_results:
                step, reason, message = self.migration_results[order.uid]
                seen = agent.ObservedMigration(uid=order.uid, vm_uid=uid, role=order.role, step=step, reason=reason,
                                               message=message)
            if seen is not None:
                out.append(seen)
        return out

    def vm_ended(self, vm: LocalVm) -> None:
        """Its last counts are in its end; and people want to hear of a crash."""
        end = vm.end
        if end is None:
            return
        last = pb.Description(retired_instructions=end.retired_instructions, exits=dict(end.exits))
        if end.retired_instructions:
            self.stats[vm.uid] = observe.stats(vm.uid, vm.record.run, last, 0, self.clock())
        log.info("ended: %s %s", pb.EndReason.Name(end.reason), end.detail, extra=vm.extra)

    async def refresh_stats(self, uid: str, memory_bytes: int | None = None) -> agent.VmStats | None:
        """Ask the VM's process for its counts; the last known ones where it does not answer."""
        vm = self.vms.get(uid)
        if vm is None:
            return None
        if vm.client is not None:
            try:
                seen = (await vm.client.call(2.0, describe=pb.Describe())).description
            except (Gone, CallFailed, TimeoutError):
                return self.stats.get(uid)
            if memory_bytes is None:
                memory_bytes = self.stats[uid].memory_bytes if uid in self.stats else 0
            self.stats[uid] = observe.stats(uid, vm.record.run, seen, memory_bytes, self.clock())
        return self.stats.get(uid)

    # ---- for the VMs -----------------------------------------------------------------------------------------

    def tls_files(self, needed: bool) -> pb.TlsFiles:
        c = self.config
        if not needed or c.tls_cert is None:
            return pb.TlsFiles()
        return pb.TlsFiles(ca=str(c.tls_ca or ""), cert=str(c.tls_cert), key=str(c.tls_key or ""))

    @staticmethod
    def kind_of(error: OSError) -> int:
        return pb.Error.KIND_NO_SPACE if error.errno in _NO_SPACE else pb.Error.KIND_FAILED

    async def close(self) -> None:
        """The agent goes, the VMs stay."""
        await asyncio.gather(*(vm.close() for vm in self.vms.values()))
        await self.zygotes.close()
