"""Pages and watches, the same for every kind.

Owns:    page tokens, and the protocol RESET – list – SYNCED – changes.
Never:   knows any particular resource.
Threads: one event loop.
"""

import base64
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, TypeVar

from controller.errors import BadField
from controller.store.feed import Feed
from virga.v1 import vm_pb2

T = TypeVar("T")
DEFAULT_PAGE, MAX_PAGE = 500, 1000
SIGN_OF_LIFE_S = 15.0


def page_of(items: Iterable[tuple[str, T]], size: int, token: str) -> tuple[list[T], str]:
    """(page, token of the next). Items are (key, item) in the order of their keys; a token is the last key sent, so
    that what is created or deleted meanwhile neither hides nor repeats anything."""
    if size < 0:
        raise BadField("page_size", "is negative")
    after = _decode(token)
    size = min(size or DEFAULT_PAGE, MAX_PAGE)
    page: list[T] = []
    last = ""
    for key, item in items:
        if key <= after:
            continue
        if len(page) == size:
            return page, base64.urlsafe_b64encode(last.encode()).decode()
        page.append(item)
        last = key
    return page, ""


def _decode(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except ValueError:
        raise BadField("page_token", "is none of ours") from None


async def watch(feed: Feed, revision: Callable[[], int], start: int, listing: Callable[[], Iterable[Any]],
                render: Callable[[str, str], tuple[bool, Any] | None], message: Callable[..., Any]) -> AsyncGenerator[Any, None]:
    """The resources as they change.

    listing() gives all that the watch is about; render(id, name) gives (deleted, resource) as it is now, or None where
    that isn't what the watch is about; message(kind, resource, revision) the wire's form.
    """
    position = start
    if start <= 0 or start < feed.oldest or start > revision():
        position = revision()
        items = list(listing())
        yield message(vm_pb2.WATCH_KIND_RESET, None, position)
        for item in items:
            yield message(vm_pb2.WATCH_KIND_PUT, item, position)
    yield message(vm_pb2.WATCH_KIND_SYNCED, None, position)
    while True:
        changed, now = feed.since(position), revision()
        if position < feed.oldest:                   # so slow a reader that history has passed it by
            position = now
            yield message(vm_pb2.WATCH_KIND_RESET, None, now)
            for item in list(listing()):
                yield message(vm_pb2.WATCH_KIND_PUT, item, now)
            yield message(vm_pb2.WATCH_KIND_SYNCED, None, now)
            continue
        for id, name in changed:
            rendered = render(id, name)
            if rendered is not None:
                deleted, resource = rendered
                kind = vm_pb2.WATCH_KIND_DELETED if deleted else vm_pb2.WATCH_KIND_PUT
                yield message(kind, resource, now)
        position = now
        if not feed.since(position) and not await feed.wait(SIGN_OF_LIFE_S):
            yield message(vm_pb2.WATCH_KIND_SYNCED, None, position)
