"""What changed since a revision, for watches of the API.

Owns:    a bounded history of (revision, id, name) per kind of resource.
Never:   keeps resources: a watch sends them as they are now.
Threads: one event loop.
"""

import asyncio
from collections import deque
from collections.abc import Iterator

HISTORY = 20_000


class Feed:
    """Of one kind of resource. `oldest`: the first revision after which nothing is missing here."""

    def __init__(self) -> None:
        self.oldest = 0
        self._history: deque[tuple[int, str, str]] = deque()
        self._changed = asyncio.Event()

    def start(self, revision: int) -> None:
        """The history begins here: what happened before isn't known."""
        self.oldest = revision

    def add(self, revision: int, id: str, name: str) -> None:
        self._history.append((revision, id, name))
        if len(self._history) > HISTORY:
            self.oldest = self._history.popleft()[0]
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def since(self, revision: int) -> list[tuple[str, str]]:
        """(id, name) of all that changed after this revision, each once, in the order of their last change."""
        latest: dict[str, str] = {}
        for _, id, name in self._newest_first(revision):
            latest.setdefault(id, name)
        return list(reversed(latest.items()))

    def _newest_first(self, revision: int) -> Iterator[tuple[int, str, str]]:
        for item in reversed(self._history):
            if item[0] <= revision:
                return
            yield item

    async def wait(self, timeout_s: float) -> bool:
        """Until the next change; False: none in that time."""
        changed = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            return False
        return True
