"""VmService but for its byte streams (consoles.py). Contracts: proto/virga/v1/vm.proto.

Owns:    nothing: every handler reads the world, decides by controller.model, and commits.
Never:   waits for a node, but for the counters of exits.
Threads: one event loop.
"""

from collections.abc import AsyncGenerator, Callable
from typing import Any

from controller import errors
from controller.agents.hub import Hub
from controller.api import listing, wire
from controller.api.access import Caller
from controller.api.consoles import Consoles
from controller.api.once import Once
from controller.events import Events
from controller.ids import Ids
from controller.model import names, vms
from controller.model.records import ImageRecord, Pointer, Tombstone, VmRecord, VmSpec, VmState
from controller.scheduler.placer import Placer, placement_of
from controller.scheduler.plan import refusals_of
from controller.store import keys
from controller.store.store import Commit, Store
from controller.store.world import VmView, World
from virga.agent.v1 import agent_pb2
from virga.v1 import vm_pb2 as pb

Decide = Callable[[VmView, float], VmRecord]


class VmService(Consoles):
    def __init__(self, store: Store, world: World, hub: Hub, placer: Placer, events: Events, ids: Ids,
                 clock: Callable[[], float]) -> None:
        super().__init__(world, hub)
        self._store, self._placer, self._events = store, placer, events
        self._ids, self._clock = ids, clock

    # ── create, read ──────────────────────────────────────────────────────────────────────────────────────────────

    async def create_vm(self, request: Any, caller: Caller) -> Any:
        names.check("name", request.name)
        once = Once(self._store, "CreateVm", request, request.request_id)
        uid, now = self._ids.next(), self._clock()

        def decide() -> tuple[Commit, str]:
            commit = Commit()
            if earlier := once.done():
                return commit, earlier
            image = self._world.find_image(request.spec.image)
            spec, power = wire.spec_from_proto(request.spec, image.record.uid)
            _check_memory(spec, image.record)
            if self._store.entry(keys.VM_NAME, request.name):
                raise errors.Taken("vm", request.name)
            record, status = vms.new_vm(spec, request.name, image.record.name, power, uid, now)
            commit.create(keys.VM_SPEC, uid, record).create(keys.VM_STATUS, uid, status)
            commit.create(keys.VM_NAME, record.name, Pointer(uid)).require(keys.IMAGE, image.record.uid, image)
            once.remember(commit, uid, now)
            self._events.vm(commit, record, "Created", f"{spec.memory_mib} MiB, {spec.cpus} CPUs, image "
                            f"{image.record.name}", now)
            return commit, uid

        return pb.CreateVmResponse(vm=self._render(await self._store.change(decide)))

    async def get_vm(self, request: Any, caller: Caller) -> Any:
        return pb.GetVmResponse(vm=wire.vm_to_proto(self._world.find_vm(request.vm)))

    async def list_vms(self, request: Any, caller: Caller) -> Any:
        states = {wire.enum_from_proto("states", pb.VmState, "VM_STATE_", VmState, state) for state in request.states}
        found = ((view.uid, view) for view in self._world.vms()
                 if (not states or view.status.state in states)
                 and (not request.node or view.node == request.node)
                 and view.record.name.startswith(request.name_prefix))
        page, token = listing.page_of(found, request.page_size, request.page_token)
        return pb.ListVmsResponse(vms=map(wire.vm_to_proto, page), next_page_token=token,
                                  revision=self._world.revision)

    async def watch_vms(self, request: Any, caller: Caller) -> AsyncGenerator[Any, None]:
        only = self._world.find_vm(request.vm).uid if request.vm else ""
        shown: set[str] = set()

        def fits(view: VmView) -> bool:
            return (not only or view.uid == only) and (not request.node or view.node == request.node)

        def everything() -> list[Any]:
            views = [view for view in self._world.vms() if fits(view)]
            shown.update(view.uid for view in views)
            return list(map(wire.vm_to_proto, views))

        def render(uid: str, name: str) -> tuple[bool, Any] | None:
            view = self._world.vm(uid)
            if view and fits(view):
                shown.add(uid)
                return False, wire.vm_to_proto(view)
            if (only and uid != only) or (request.node and uid not in shown):
                return None
            shown.discard(uid)
            return True, pb.Vm(uid=uid, name=name)

        async for response in listing.watch(
                self._world.feeds["vm"], lambda: self._world.revision, request.start_revision, everything, render,
                lambda kind, vm, revision: pb.WatchVmsResponse(kind=kind, vm=vm, revision=revision)):
            yield response

    # ── verbs ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start_vm(self, request: Any, caller: Caller) -> Any:
        return pb.StartVmResponse(vm=await self._verb(
            request.vm, "StartRequested", lambda view, now: vms.start(view.record, view.status, now)))

    async def stop_vm(self, request: Any, caller: Caller) -> Any:
        return pb.StopVmResponse(vm=await self._verb(
            request.vm, "StopRequested", lambda view, now: vms.stop(view.record, request.force)))

    async def pause_vm(self, request: Any, caller: Caller) -> Any:
        return pb.PauseVmResponse(vm=await self._verb(
            request.vm, "PauseRequested", lambda view, now: vms.pause(view.record, view.status)))

    async def resume_vm(self, request: Any, caller: Caller) -> Any:
        return pb.ResumeVmResponse(vm=await self._verb(
            request.vm, "ResumeRequested", lambda view, now: vms.resume(view.record, view.status)))

    async def reset_vm(self, request: Any, caller: Caller) -> Any:
        names.check_request_id(request.request_id)
        request_id = request.request_id or self._ids.next()
        return pb.ResetVmResponse(vm=await self._verb(
            request.vm, "ResetRequested",
            lambda view, now: vms.reset(view.record, view.status, view.pointer_entry is not None, request_id)))

    async def delete_vm(self, request: Any, caller: Caller) -> Any:
        if not request.forget:
            return pb.DeleteVmResponse(vm=await self._verb(
                request.vm, "DeleteRequested", lambda view, now: vms.delete(view.record, now)))
        now = self._clock()

        def decide() -> tuple[Commit, Any]:
            view, commit = self._world.find_vm(request.vm), Commit()
            remove_vm(commit, self._store, view, now)
            self._events.vm(commit, view.record, "Forgotten", "deleted without its node's word", now, warning=True)
            return commit, wire.vm_to_proto(view)

        return pb.DeleteVmResponse(vm=await self._store.change(decide))

    async def _verb(self, ref: str, reason: str, decide_record: Decide) -> Any:
        """Change a VM's record as a verb says; its status follows at once where that can be told."""
        def decide() -> tuple[Commit, str]:
            view, commit, now = self._world.find_vm(ref), Commit(), self._clock()
            record = decide_record(view, now)
            if record != view.record:
                commit.update(keys.VM_SPEC, view.uid, view.spec_entry, record)
                status = vms.asked(record, view.status, view.assignment, now)
                commit.update(keys.VM_STATUS, view.uid, view.status_entry, status)
                self._events.vm(commit, record, reason, "", now, node=view.node)
            return commit, view.uid

        return self._render(await self._store.change(decide))

    def _render(self, uid: str) -> Any:
        view = self._world.vm(uid)
        if view is None:
            raise errors.NotFound("vm", uid)
        return wire.vm_to_proto(view)

    # ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def explain_placement(self, request: Any, caller: Caller) -> Any:
        image = self._world.find_image(request.spec.image)
        spec, _ = wire.spec_from_proto(request.spec, image.record.uid)
        _check_memory(spec, image.record)
        table = self._placer.table()
        verdict = self._placer.decide(table, spec)
        fits = verdict.fits
        order = sorted(range(len(table)), key=lambda i: (i != verdict.chosen, not fits[i], -verdict.total[i],
                                                         table.names[i]))
        nodes = [pb.NodeVerdict(
            node=table.names[i], fits=bool(fits[i]), score=float(verdict.total[i]) if fits[i] else 0.0,
            scores={name: float(scores[i]) for name, scores in verdict.scores.items()},
            refusals=refusals_of(table, verdict, i)) for i in order]
        return pb.ExplainPlacementResponse(
            nodes=nodes, report=wire.placement_to_proto(placement_of(table, verdict)),
            chosen_node=table.names[verdict.chosen] if verdict.chosen is not None else "")

    async def get_vm_exits(self, request: Any, caller: Caller) -> Any:
        view = self._world.find_vm(request.vm)
        stats = None
        if view.node:
            order = agent_pb2.ControllerMessage(stats_request=agent_pb2.StatsRequest(vm_uid=view.uid))
            stats = await self._hub.fresh_stats(view.node, view.uid, order)
        if stats is None:
            raise errors.WrongState("VM_NOT_PLACED", "vm", view.record.name,
                                    f"nothing has been counted of {view.record.name} yet")
        exits = sorted(stats.exits.items(), key=lambda item: (-item[1], item[0]))
        return pb.GetVmExitsResponse(
            exits=[pb.ExitCount(reason=reason, count=count) for reason, count in exits],
            retired_instructions=stats.retired_instructions, time=wire.time_to_proto(stats.time),
            memory_bytes=stats.memory_bytes, cpu_seconds=stats.cpu_seconds)


def _check_memory(spec: VmSpec, image: ImageRecord) -> None:
    if spec.memory_mib < image.min_memory_mib:
        raise errors.BadField("spec.memory_mib", f"is {spec.memory_mib}, but {image.name} needs {image.min_memory_mib}")


def remove_vm(commit: Commit, store: Store, view: VmView, now: float) -> None:
    """Everything of a VM, but for the tombstone that its copies are removed by."""
    commit.delete(keys.VM_SPEC, view.uid, view.spec_entry).delete(keys.VM_STATUS, view.uid, view.status_entry)
    commit.delete(keys.VM_ASSIGN, view.uid, view.assign_entry).delete(keys.VM_MIGRATION, view.uid, view.pointer_entry)
    commit.delete(keys.VM_NAME, view.record.name, store.entry(keys.VM_NAME, view.record.name))
    if view.migration_entry:
        commit.delete(keys.MIGRATION, view.migration_entry.record.uid, view.migration_entry)
    commit.update(keys.VM_GONE, view.uid, store.entry(keys.VM_GONE, view.uid), Tombstone(view.record.name, now))


