"""EventService. Contracts: proto/virga/v1/event.proto.

Owns:    the exact order in which events are sent: by revision.
Never:   writes events.
Threads: one event loop.
"""

from collections.abc import AsyncGenerator
from typing import Any

from controller.api import listing, wire
from controller.api.access import Caller
from controller.errors import BadField
from controller.model.records import EventRecord
from controller.store.world import World
from virga.v1 import event_pb2 as pb
from virga.v1 import vm_pb2

KINDS = ("vm", "node", "image", "migration")


class EventService:
    def __init__(self, world: World) -> None:
        self._world = world

    async def list_events(self, request: Any, caller: Caller) -> Any:
        _check(request.object)
        found = ((f"{revision:020}/{event.uid}", (event, revision)) for event, revision in self._world.events()
                 if _fits(event, request.object))
        page, token = listing.page_of(found, request.page_size, request.page_token)
        return pb.ListEventsResponse(events=[wire.event_to_proto(*item) for item in page], next_page_token=token,
                                     revision=self._world.revision)

    async def watch_events(self, request: Any, caller: Caller) -> AsyncGenerator[Any, None]:
        _check(request.object)
        feed, position = self._world.feeds["event"], request.start_revision
        if position < 0:
            position = self._world.revision
        elif position == 0 or self._is_forgotten(position):
            yield pb.WatchEventsResponse(kind=vm_pb2.WATCH_KIND_RESET, revision=0)
            position = 0
        while True:
            now = self._world.revision
            for event, revision in self._world.events():
                if revision > position and _fits(event, request.object):
                    yield pb.WatchEventsResponse(kind=vm_pb2.WATCH_KIND_PUT, revision=revision,
                                                 event=wire.event_to_proto(event, revision))
            yield pb.WatchEventsResponse(kind=vm_pb2.WATCH_KIND_SYNCED, revision=now)
            position = now
            while not feed.since(position):
                if not await feed.wait(listing.SIGN_OF_LIFE_S):
                    break

    def _is_forgotten(self, revision: int) -> bool:
        """Events after this revision may have been removed already; or it is from a store that was restored since."""
        events = self._world.events()
        return revision > self._world.revision or (bool(events) and revision < events[0][1] - 1)


def _check(ref: Any) -> None:
    if ref.kind and ref.kind not in KINDS:
        raise BadField("object.kind", f"must be one of {', '.join(KINDS)}")


def _fits(event: EventRecord, ref: Any) -> bool:
    return ((not ref.kind or event.kind == ref.kind) and (not ref.name or event.name == ref.name)
            and (not ref.uid or event.object_uid == ref.uid))
