"""What a node remembers beside its VMs.

    STATE/agent.lock      held (flock) by the one agent of this folder
          node.json       {"node_uid", "cluster_uid", "floors": {vm uid: generation}}
          images/<sha256>
          trash/          folders on their way out

A floor is the lowest ownership generation with which a VM may be begun here. It rises when a copy goes away, so that
an order that was under way meanwhile cannot call it back.

Owns:    node.json and the lock.
Never:   forgets a floor while it may still matter; overwrites a file that it cannot read.
Threads: the agent's loop.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from pathlib import Path

from node_agent.vmprocess.files import write_atomically

MAX_FLOORS = 10_000
TRASH_TRIES = 5


class NodeFilesError(Exception):
    """The agent cannot work with this folder."""


class NodeFiles:
    def __init__(self, state: Path) -> None:
        self.state = state
        self._path = state / "node.json"
        try:
            for folder in (state, state / "vms", state / "images", state / "trash"):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(state / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise NodeFilesError(f"{error.filename}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise NodeFilesError(f"{state}: another agent works here") from None
        self._load()
        shutil.rmtree(state / "trash", ignore_errors=True)

    def throw_away(self, folder: Path) -> None:
        """Gone under its name at once; a zygote that still wishes to write there meets nothing, or helps to fill what
        goes in a moment."""
        trash = self.state / "trash"
        trash.mkdir(exist_ok=True, mode=0o700)
        away = trash / uuid.uuid4().hex
        try:
            folder.rename(away)
        except FileNotFoundError:
            return
        for _ in range(TRASH_TRIES):
            shutil.rmtree(away, ignore_errors=True)
            if not away.exists():
                return

    def _load(self) -> None:
        try:
            data = json.loads(self._path.read_bytes())
            self.node_uid = str(data["node_uid"])
            self.cluster_uid = str(data["cluster_uid"])
            self.floors = {str(k): int(v) for k, v in data["floors"].items()}
        except FileNotFoundError:
            self.node_uid, self.cluster_uid, self.floors = uuid.uuid4().hex, "", {}
            self.save()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NodeFilesError(f"{self._path}: not what an agent wrote ({error}); nothing was changed. "
                                 "Restore it, or move it away to register as a new node") from error

    def save(self, durable: bool = True) -> None:
        while len(self.floors) > MAX_FLOORS:
            del self.floors[next(iter(self.floors))]          # the oldest
        data = {"node_uid": self.node_uid, "cluster_uid": self.cluster_uid, "floors": self.floors}
        write_atomically(self._path, json.dumps(data, indent=1).encode(), durable=durable)

    def floor(self, uid: str) -> int:
        return self.floors.get(uid, 0)

    def raise_floor(self, uid: str, generation: int) -> None:
        if generation > self.floor(uid):
            self.floors.pop(uid, None)
            self.floors[uid] = generation
            self.save()

    def close(self) -> None:
        os.close(self._lock)
