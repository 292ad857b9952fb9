"""The link to the controller: one stream for wishes and reports, calls for bytes and decisions.

The link is dialled again, with full jitter, for as long as the agent lives; VMs don't notice. Everything is
level-triggered: a new stream begins with all that is so here, and with all that is wanted.

Owns:    the channel, the stream's life, heartbeats.
Never:   gives up; dials a controller of another cluster twice as fast as people can read the error.
Threads: the agent's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc

from node_agent.agent.config import Config
from node_agent.agent.images import ImageError
from node_agent.agent.metrics import Metrics
from node_agent.agent.node import Node
from node_agent.agent.node_files import NodeFiles
from node_agent.agent.relay import Relays
from node_agent.version import VERSION
from node_agent.vmprocess.identity import boot_id
from virga.agent.v1 import agent_pb2 as pb
from virga.agent.v1 import agent_pb2_grpc as rpc

log = logging.getLogger("link")

RETRY_BASE_S, RETRY_MAX_S = 0.2, 5.0
SLOW_RETRY_S = 30.0                  # after a refusal that only people can mend
SILENCE_S = 10.0                     # no word for so long: the controller is not there
DEFAULT_HEARTBEAT_S = 1.5
STATS_EVERY = 3                      # beats
MEMORY_EVERY = 4                     # of those: reading a process' pages takes the kernel a while
DECIDE_TIMEOUT_S = 5.0
COALESCE_S = 0.002
_REFUSED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INVALID_ARGUMENT,
                      grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.PERMISSION_DENIED,
                      grpc.StatusCode.FAILED_PRECONDITION})
_NO_IMAGE = frozenset({grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.INVALID_ARGUMENT})
_OPTIONS = (("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1), ("grpc.max_receive_message_length", 16 << 20),
            ("grpc.enable_retries", 0), ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000), ("grpc.use_local_subchannel_pool", 1))


class WrongCluster(Exception):
    """The controller belongs to another cloud than this folder's VMs."""


class Link:
    def __init__(self, config: Config, files: NodeFiles, metrics: Metrics, uniform: Callable[[float, float], float],
                 clock: Callable[[], float]) -> None:
        self.node: Node                                       # set by main: the two know one another
        self.connected = False
        self._config = config
        self._files = files
        self._metrics = metrics
        self._uniform = uniform
        self._clock = clock
        self._outbox: asyncio.Queue[pb.AgentMessage] = asyncio.Queue()
        self._dirty = asyncio.Event()
        self._heard = 0.0
        self._beats = 0
        self._beat_s = DEFAULT_HEARTBEAT_S
        self._channel = self._dial()
        self._stub = rpc.AgentServiceStub(self._channel)
        self._relays: Relays | None = None
        self._answers: set[asyncio.Task[None]] = set()

    def _dial(self) -> grpc.aio.Channel:
        c = self._config
        if c.tls_ca is None:
            return grpc.aio.insecure_channel(c.controller, options=_OPTIONS)
        key = c.tls_key.read_bytes() if c.tls_key else None
        cert = c.tls_cert.read_bytes() if c.tls_cert else None
        credentials = grpc.ssl_channel_credentials(c.tls_ca.read_bytes(), key, cert)
        _check_tls(c.tls_ca, c.tls_cert, c.tls_key)
        return grpc.aio.secure_channel(c.controller, credentials, options=_OPTIONS)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """Read anew each time: a token may be replaced while we run."""
        token = self._config.token_file.read_text().strip()
        return ("authorization", f"Bearer {token}"), ("virga-node", self._config.name)

    # ---- the stream ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        self.node.on_change = self._dirty.set
        self.node.on_event = lambda event: self._outbox.put_nowait(pb.AgentMessage(event=event))
        attempt = 0
        while True:
            began = time.monotonic()
            limit = RETRY_MAX_S
            try:
                await self._session()
            except grpc.aio.AioRpcError as error:
                refused = error.code() in _REFUSED
                log.log(logging.ERROR if refused else logging.WARNING, "controller %s: %s: %s",
                        self._config.controller, error.code().name, error.details())
                limit = SLOW_RETRY_S if refused else RETRY_MAX_S
            except WrongCluster as error:
                log.error("%s", error)
                limit = SLOW_RETRY_S
            except (OSError, TimeoutError) as error:
                log.warning("controller %s: %s", self._config.controller, error or type(error).__name__)
            except Exception:                                 # ours; VMs must not lose their agent over it
                log.exception("the stream broke")
            attempt = 0 if time.monotonic() - began > RETRY_MAX_S else attempt + 1
            bound = SLOW_RETRY_S if limit == SLOW_RETRY_S else min(limit, RETRY_BASE_S * 2 ** min(attempt, 10))
            await asyncio.sleep(self._uniform(0, bound))      # full jitter: 5,000 agents don't come back at once

    async def _session(self) -> None:
        self._outbox = asyncio.Queue()
        call = self._stub.Connect(self._messages(), metadata=self._metadata())
        tasks: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(SILENCE_S):
                first = await call.read()
            if first is grpc.aio.EOF:
                raise OSError(f"the stream ended: {await call.details()}")
            self._welcome(first.welcome)
            tasks = [asyncio.create_task(self._report()), asyncio.create_task(self._beat(call))]
            while (message := await call.read()) is not grpc.aio.EOF:
                self._heard = time.monotonic()
                self._obey(message)
            code = await call.code()
            if code is not grpc.StatusCode.OK:
                raise OSError(f"{code.name}: {await call.details()}")
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():
                raise
            raise OSError("the stream was cut") from None     # grpc says a broken stream so, too
        finally:
            if self.connected:
                log.info("the controller is away")
            self.connected = False
            call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _welcome(self, welcome: pb.Welcome) -> None:
        mine = self._files.cluster_uid
        if mine and welcome.cluster_uid and mine != welcome.cluster_uid:
            raise WrongCluster(f"the controller's cluster is {welcome.cluster_uid}, this folder's VMs belong to "
                               f"{mine}: give this node another --state, or the controller its old etcd data")
        if welcome.cluster_uid and not mine:
            self._files.cluster_uid = welcome.cluster_uid
            self._files.save()
        self._beat_s = welcome.heartbeat_seconds or DEFAULT_HEARTBEAT_S
        self._heard = time.monotonic()
        self.connected = True
        log.info("connected to %s", self._config.controller)

    async def _messages(self) -> AsyncIterator[pb.AgentMessage]:
        """An exception in here would reach nobody: so nothing but the queue is touched."""
        outbox = self._outbox
        yield pb.AgentMessage(hello=self._hello())
        while True:
            yield await outbox.get()

    def _hello(self) -> pb.Hello:
        c = self._config
        return pb.Hello(node=c.name, node_uid=self._files.node_uid, agent_version=VERSION, protocol=1,
                        memory_mib=c.memory_bytes >> 20, cpus=c.cpus, labels=c.labels, address=c.address,
                        boot_id=boot_id(), cluster_uid=self._files.cluster_uid, observed=self.node.observed(full=True))

    async def _report(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            changed = self.node.observed(full=False)
            if changed is not None:
                self._outbox.put_nowait(pb.AgentMessage(observed=changed))
            await asyncio.sleep(COALESCE_S)

    async def _beat(self, call: grpc.aio.StreamStreamCall) -> None:
        while True:
            await asyncio.sleep(self._beat_s / 2)
            if time.monotonic() - self._heard > SILENCE_S:
                log.warning("no word from the controller for %.0f s", SILENCE_S)
                call.cancel()
                return
            self._beats += 1
            beat = pb.Heartbeat(sequence=self._beats, memory_available_bytes=_memory_available(),
                                disk_free_bytes=_disk_free(self._config.state))
            if self._beats % STATS_EVERY == 1:
                beat.stats.extend(await self._collect_stats(self._beats // STATS_EVERY % MEMORY_EVERY == 0))
            self._outbox.put_nowait(pb.AgentMessage(heartbeat=beat))

    async def _collect_stats(self, with_memory: bool) -> list[pb.VmStats]:
        out = []
        for uid, vm in list(self.node.vms.items()):
            memory = None
            fresh = uid not in self.node.stats or not self.node.stats[uid].memory_bytes
            if (with_memory or fresh) and vm.process is not None:
                memory = await asyncio.to_thread(_pss_bytes, vm.process.pid)
            stats = await self.node.refresh_stats(uid, memory)
            if stats is not None:
                out.append(stats)
        return out

    def _obey(self, message: pb.ControllerMessage) -> None:
        match message.WhichOneof("message"):
            case "desired":
                self.node.want(message.desired)
            case "open_stream":
                if self._relays is None:
                    self._relays = Relays(self.node, self._stub, self._metadata)
                self._relays.open(message.open_stream)
            case "stats_request":
                task = asyncio.create_task(self._answer_stats(message.stats_request.vm_uid))
                self._answers.add(task)                       # the loop itself holds tasks weakly
                task.add_done_callback(self._answers.discard)
            case _:
                pass                                          # heartbeat_ack, and what newer controllers say

    async def _answer_stats(self, uid: str) -> None:
        stats = await self.node.refresh_stats(uid)
        if stats is not None:
            self._outbox.put_nowait(pb.AgentMessage(stats=stats))

    # ---- calls (Node's Controller) -----------------------------------------------------------------------------

    async def fetch_image(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        with self._metrics.rpc("FetchImage"):
            call = self._stub.FetchImage(pb.FetchImageRequest(sha256=sha256, offset=offset), metadata=self._metadata())
            try:
                async for chunk in call:
                    yield chunk.data
            except grpc.aio.AioRpcError as error:
                if error.code() in _NO_IMAGE:
                    raise ImageError("IMAGE_FAILED", f"the controller: {error.details()}") from error
                raise
            finally:
                call.cancel()

    async def decide(self, order: pb.MigrationOrder, wish: int, reason: str) -> pb.DecideMigrationResponse | None:
        request = pb.DecideMigrationRequest(migration_uid=order.uid, vm_uid=order.vm_uid, role=order.role, wish=wish,
                                            reason=reason)
        try:
            with self._metrics.rpc("DecideMigration"):
                return await self._stub.DecideMigration(request, metadata=self._metadata(), timeout=DECIDE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.warning("decision about %s: %s: %s", order.uid, error.code().name, error.details())
            return None

    async def close(self) -> None:
        if self._relays is not None:
            await self._relays.close()
        with contextlib.suppress(Exception):
            await self._channel.close()


def _check_tls(ca: Path, cert: Path | None, key: Path | None) -> None:
    """grpc takes anything, and then dials for ever. Raises OSError, which names the file."""
    context, file = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ca
    try:
        context.load_verify_locations(ca)
        if cert:
            file = cert
            context.load_cert_chain(cert, key, password="")      # never asks a terminal for one
    except ssl.SSLError as error:
        what = "no certificate of an authority in PEM" if file is ca else f"no certificate in PEM with its key {key}"
        raise OSError(errno.EINVAL, f"{what} ({error.reason or error})", str(file)) from error


def _memory_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def _disk_free(path: Path) -> int:
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def _pss_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0
