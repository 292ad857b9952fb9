"""Who calls, and what they may.

Owns:    tokens, and the access rule of every method.
Never:   logs a token.
Threads: one event loop.
"""

import hmac
import json
import logging
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from controller import errors

log = logging.getLogger(__name__)


class Role(StrEnum):
    USER = "USER"
    NODE = "NODE"


@dataclass(frozen=True, slots=True)
class Caller:
    role: Role
    name: str


# A method that is not here cannot be served: the controller does not start.
ACCESS: dict[str, Role] = {
    **{f"/virga.v1.VmService/{name}": Role.USER for name in (
        "CreateVm", "GetVm", "ListVms", "DeleteVm", "StartVm", "StopVm", "ResetVm", "PauseVm", "ResumeVm", "WatchVms",
        "ExplainPlacement", "Console", "StreamLog", "GetVmExits")},
    **{f"/virga.v1.NodeService/{name}": Role.USER for name in (
        "GetNode", "ListNodes", "WatchNodes", "CordonNode", "UncordonNode", "DrainNode", "DeleteNode")},
    **{f"/virga.v1.ImageService/{name}": Role.USER for name in (
        "UploadImage", "FindMissingFiles", "GetImage", "ListImages", "DeleteImage")},
    **{f"/virga.v1.MigrationService/{name}": Role.USER for name in (
        "CreateMigration", "GetMigration", "ListMigrations", "WatchMigrations", "CancelMigration")},
    **{f"/virga.v1.EventService/{name}": Role.USER for name in ("ListEvents", "WatchEvents")},
    **{f"/virga.agent.v1.AgentService/{name}": Role.NODE for name in (
        "Connect", "FetchImage", "AttachConsole", "SendLog", "DecideMigration")},
}


class BadTokens(Exception):
    """A token file cannot be used."""


class Tokens:
    """Read from two files, again when they change: `virga up` adds nodes to a running cloud."""

    def __init__(self, user_file: Path, agents_file: Path) -> None:
        self._user_file, self._agents_file = user_file, agents_file
        self._user, self._agents, self._stamp = "", dict[str, str](), (0, 0)

    def load(self) -> None:
        """Raises BadTokens."""
        try:
            user = self._user_file.read_text().strip()
            agents = json.loads(self._agents_file.read_text())
            stamp = (self._user_file.stat().st_mtime_ns, self._agents_file.stat().st_mtime_ns)
        except (OSError, ValueError) as error:
            raise BadTokens(f"cannot read tokens: {error}") from error
        if not user:
            raise BadTokens(f"{self._user_file} is empty")
        if not isinstance(agents, dict) or not all(isinstance(token, str) and token for token in agents.values()):
            raise BadTokens(f"{self._agents_file} must map each node's name to its token")
        self._user, self._agents, self._stamp = user, agents, stamp

    def caller(self, metadata: dict[str, str], role: Role) -> Caller:
        """Raises Unknown."""
        scheme, _, token = metadata.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise errors.Unknown("TOKEN_MISSING", "metadata `authorization: Bearer TOKEN` is missing")
        caller = self._match(token, metadata, role)
        if caller is None and self._reload():
            caller = self._match(token, metadata, role)
        if caller is None:
            raise errors.Unknown("TOKEN_UNKNOWN", "the token is not one of this cloud's")
        return caller

    def _match(self, token: str, metadata: dict[str, str], role: Role) -> Caller | None:
        if role is Role.USER:
            return Caller(Role.USER, "user") if _same(token, self._user) else None
        node = metadata.get("virga-node", "")
        return Caller(Role.NODE, node) if node in self._agents and _same(token, self._agents[node]) else None

    def _reload(self) -> bool:
        try:
            stamp = (self._user_file.stat().st_mtime_ns, self._agents_file.stat().st_mtime_ns)
            if stamp == self._stamp:
                return False
            self.load()
        except (OSError, BadTokens) as error:
            log.error("the tokens on disk are not usable, the earlier ones hold: %s", error)
            return False
        return True


def _same(a: str, b: str) -> bool:
    return hmac.compare_digest(a.encode(), b.encode())
