"""The node's zygote: found, or started.

Owns:    how it is exec'd: detached, with a log of its own; nothing of this process' threads comes along.
Never:   ends it.
Threads: the agent's loop.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from node_agent.vmprocess.client import CallFailed, Client, Gone
from node_agent.vmprocess.files import VmFolder
from virga.vmm.v1 import vmm_pb2 as pb

START_TIMEOUT_S = 20.0
SPAWN_TIMEOUT_S = 60.0


class ZygoteError(Exception):
    """No zygote answers."""


class Zygotes:
    def __init__(self, state: Path, command: tuple[str, ...] = ()) -> None:
        self._state = state
        self._command = command or (sys.executable, "-m", "node_agent", "zygote", "--state", str(state))
        self._client: Client | None = None
        self._lock = asyncio.Lock()
        self._pid = 0
        self._code: int | None = None

    async def client(self) -> Client:
        async with self._lock:
            if self._client is not None and not self._client.closed.is_set():
                return self._client
            try:
                self._client = await Client.connect(self._state / "zygote.sock")
            except Gone:
                self._client = await self._start()
            return self._client

    async def _start(self) -> Client:
        self._exited()                                        # no zombie of the one before
        null, log = os.open("/dev/null", os.O_RDWR), os.open(
            self._state / "zygote.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._pid = os.posix_spawn(
                self._command[0], self._command, os.environ, setsid=True,
                file_actions=[(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, log, 1),
                              (os.POSIX_SPAWN_DUP2, log, 2)])
        finally:
            os.close(null)
            os.close(log)
        end = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while asyncio.get_running_loop().time() < end:
            try:
                return await Client.connect(self._state / "zygote.sock")
            except Gone:
                if self._exited() not in (None, 0):
                    break
                await asyncio.sleep(0.02)
        raise ZygoteError(f"no zygote could be started: see {self._state / 'zygote.log'}")

    def _exited(self) -> int | None:
        """Exit code of the zygote that we started, once it has one."""
        if self._pid:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._pid, self._code = 0, os.waitstatus_to_exitcode(status)
        return None if self._pid else self._code

    async def spawn(self, folder: VmFolder, generation: int) -> pb.Spawned:
        """Raises CallFailed, Gone, TimeoutError, ZygoteError."""
        client = await self.client()
        reply = await client.call(SPAWN_TIMEOUT_S, spawn=pb.Spawn(vm_dir=str(folder.path), generation=generation))
        return reply.spawned

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()


__all__ = ["CallFailed", "Gone", "ZygoteError", "Zygotes"]
