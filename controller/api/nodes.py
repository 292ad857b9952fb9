"""NodeService. Contracts: proto/virga/v1/node.proto.

Owns:    how a node is shown: its record, what is promised on it, when it was last heard.
Never:   moves VMs (reconcile/drain.py does).
Threads: one event loop.
"""

from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

from controller import errors
from controller.agents.hub import Hub
from controller.api import listing, wire
from controller.api.access import Caller
from controller.events import Events
from controller.model.records import ALIVE, NodeRecord
from controller.scheduler.placer import Placer, placement_of
from controller.store import keys
from controller.store.cache import Entry
from controller.store.store import Commit, Store
from controller.store.world import World
from virga.v1 import node_pb2 as pb


class NodeService:
    def __init__(self, store: Store, world: World, hub: Hub, placer: Placer, events: Events,
                 clock: Callable[[], float]) -> None:
        self._store, self._world, self._hub, self._placer = store, world, hub, placer
        self._events, self._clock = events, clock

    async def get_node(self, request: Any, caller: Caller) -> Any:
        return pb.GetNodeResponse(node=self._show(self._world.find_node(request.node)))

    async def list_nodes(self, request: Any, caller: Caller) -> Any:
        table = self._world.cache.table(keys.NODE)
        page, token = listing.page_of(((name, table[name]) for name in sorted(table)), request.page_size,
                                      request.page_token)
        return pb.ListNodesResponse(nodes=map(self._show, page), next_page_token=token, revision=self._world.revision)

    async def watch_nodes(self, request: Any, caller: Caller) -> AsyncGenerator[Any, None]:
        only = self._world.find_node(request.node).record.name if request.node else ""
        table = self._world.cache.table(keys.NODE)

        def render(name: str, _: str) -> tuple[bool, Any] | None:
            if only and name != only:
                return None
            return (False, self._show(table[name])) if name in table else (True, pb.Node(name=name))

        async for response in listing.watch(
                self._world.feeds["node"], lambda: self._world.revision, request.start_revision,
                lambda: [self._show(table[name]) for name in sorted(table) if not only or name == only], render,
                lambda kind, node, revision: pb.WatchNodesResponse(kind=kind, node=node, revision=revision)):
            yield response

    async def cordon_node(self, request: Any, caller: Caller) -> Any:
        return pb.CordonNodeResponse(node=await self._change(
            request.node, "Cordoned", lambda node: replace(node, cordoned=True)))

    async def uncordon_node(self, request: Any, caller: Caller) -> Any:
        return pb.UncordonNodeResponse(node=await self._change(
            request.node, "Uncordoned", lambda node: replace(node, cordoned=False, draining=False)))

    async def drain_node(self, request: Any, caller: Caller) -> Any:
        def drain(node: NodeRecord) -> NodeRecord:
            if node.lost:
                raise errors.WrongState("NODE_LOST", "node", node.name, f"{node.name} is lost: nothing can leave it")
            return node if node.draining else replace(node, cordoned=True, draining=True, drain_moved=0)
        return pb.DrainNodeResponse(node=await self._change(request.node, "Draining", drain))

    async def delete_node(self, request: Any, caller: Caller) -> Any:
        def decide() -> tuple[Commit, None]:
            entry, commit, now = self._world.find_node(request.node), Commit(), self._clock()
            node: NodeRecord = entry.record
            if not node.lost or node.name in self._hub.sessions:
                raise errors.WrongState("NODE_ALIVE", "node", node.name, f"{node.name} is not lost: end its agent first")
            if count := self._placer.usage(node.name).vms:
                raise errors.WrongState("NODE_HAS_VMS", "node", node.name, f"{node.name} holds {count} VMs")
            commit.delete(keys.NODE, node.name, entry)
            self._events.node(commit, node, "NodeDeleted", "", now)
            return commit, None

        await self._store.change(decide)
        return pb.DeleteNodeResponse()

    async def _change(self, ref: str, reason: str, decide_record: Callable[[NodeRecord], NodeRecord]) -> Any:
        def decide() -> tuple[Commit, str]:
            entry, commit = self._world.find_node(ref), Commit()
            record = decide_record(entry.record)
            if record != entry.record:
                commit.update(keys.NODE, record.name, entry, record)
                self._events.node(commit, record, reason, "", self._clock())
            return commit, record.name

        name = await self._store.change(decide)
        return self._show(self._world.find_node(name))

    def _show(self, entry: Entry) -> Any:
        node: NodeRecord = entry.record
        usage, (memory_free, cpus_free) = self._placer.usage(node.name), self._placer.free(node)
        ago = self._hub.seconds_since_seen(node.name)
        status = pb.NodeStatus(
            state=pb.NODE_STATE_LOST if node.lost else pb.NODE_STATE_READY, memory_mib=node.memory_mib,
            cpus=node.cpus, memory_allocated_mib=usage.memory_mib, cpus_allocated=usage.cpus, vms=usage.vms,
            labels=node.labels, agent_version=node.agent_version, address=node.address,
            last_seen_time=wire.time_to_proto(self._clock() - ago) if ago is not None else None,
            state_time=wire.time_to_proto(node.state_time), memory_free_mib=memory_free, cpus_free=cpus_free,
            drain=self._drain(node) if node.draining else None)
        return pb.Node(uid=node.uid, name=node.name, revision=entry.revision, status=status,
                       spec=pb.NodeSpec(cordoned=node.cordoned, draining=node.draining),
                       create_time=wire.time_to_proto(node.create_time))

    def _drain(self, node: NodeRecord) -> Any:
        staying = [view for view in self._world.vms_on(node.name) if view.status.state in ALIVE]
        table, stuck = self._placer.table(), []
        for view in staying:
            if view.migration is None:
                verdict = self._placer.decide(table, view.record.spec, exclude=node.name)
                if verdict.chosen is None:
                    stuck.append(f"{view.record.name}: {placement_of(table, verdict).summary}")
        return pb.DrainStatus(remaining=len(staying), moved=node.drain_moved, stuck=stuck)
