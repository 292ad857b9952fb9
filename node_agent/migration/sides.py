"""The two sides of a migration inside their VM processes.

The state and every change of it belong to the control loop; a thread of its own does the sending or receiving and
asks the loop for each step. A thread's failure is an event like any other: protocol.py says what it means.

Owns:    one migration of one VM process: its socket, its thread, its progress.
Never:   resumes the guest but by a transition that protocol.py allows.
Threads: methods on the loop; `_work` on the side's own thread.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import hmac
import socket
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import numpy as np

from node_agent.migration import pages, stream
from node_agent.migration.protocol import Event, NotAllowed, Source, Target, step
from node_agent.version import VERSION
from node_agent.vmprocess import wire
from node_agent.vmprocess.identity import boot_id
from node_agent.vmprocess.lifecycle import Event as LifecycleEvent, State
from virga.vmm.v1 import vmm_pb2 as pb

if TYPE_CHECKING:
    from node_agent.vmprocess.process import VmProcess

MAX_ROUNDS = 30
STOP_BELOW_MS = 3.0
MAX_GAP_MS = 1000.0
OFFER_TIMEOUT_S = 30.0
PEER_TIMEOUT_S = 20.0                # without a byte from the other side
CONSOLE_TAIL = 256 << 10
MIN_BYTES_PER_S = 10e6               # assumed before the first measurement
HELLO_BYTES = 1 << 16


class Side(abc.ABC):
    """What both sides share: the loop's bridge, progress, the one socket."""

    outgoing: bool

    def __init__(self, vm: VmProcess, migration_id: str, state: Source | Target) -> None:
        self.id = migration_id
        self.vm = vm
        self.state = state
        self.error = ""
        self._progress = pb.Migration(id=migration_id, outgoing=self.outgoing)
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._deciding = asyncio.Lock()
        self._began_ns = vm.clock.monotonic_ns()

    def progress(self) -> pb.Migration:
        out = pb.Migration()
        out.CopyFrom(self._progress)
        out.state, out.error = self.state.value, self.error
        return out

    def take(self, event: Event) -> None:
        self.state = step(self.state, event)
        self.vm.announce_migration(self.progress())

    def _start_thread(self, name: str, *args: Any) -> None:
        threading.Thread(target=self._guarded, args=args, name=name, daemon=True).start()

    def _guarded(self, *args: Any) -> None:
        try:
            self._work(*args)
        except Exception as error:
            try:
                self._ask(self._failed(str(error) or type(error).__name__))
            except RuntimeError:
                if not self._loop.is_closed():                # else the process ends, and nobody wants to know
                    raise

    @abc.abstractmethod
    def _work(self, *args: Any) -> None:
        """What the side's thread does."""

    @abc.abstractmethod
    async def _failed(self, why: str) -> None:
        """On the loop: the thread could not go on."""

    def _ask(self, step_of_the_loop: Coroutine[Any, Any, Any]) -> Any:
        """From the thread: have the loop do it, wait for what it says."""
        try:
            return asyncio.run_coroutine_threadsafe(step_of_the_loop, self._loop).result()
        except RuntimeError:                                  # the loop has ended: so has this process
            step_of_the_loop.close()
            raise

    def _hang_up(self) -> None:
        """Wake the thread out of whatever it reads or writes."""
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def _ms_since(self, ns: int) -> float:
        return (self.vm.clock.monotonic_ns() - ns) / 1e6


class Outgoing(Side):
    """The source."""

    outgoing = True

    def __init__(self, vm: VmProcess, order: pb.MigrateOut) -> None:
        super().__init__(vm, order.id, Source.PREPARING)
        self._order = order
        self._was_paused = False
        self._tracking = False
        self._stopped_ns = 0

    @classmethod
    def begin(cls, vm: VmProcess, order: pb.MigrateOut) -> Outgoing:
        """Raises NotNow, StreamError (bad address). The same order again changes nothing."""
        if vm.migration is not None and vm.migration.id == order.id:
            return vm.migration
        vm.lifecycle.check(LifecycleEvent.HOLD)
        stream.require_tls(order.host, order.tls)
        side = cls(vm, order)
        vm.migration = side
        vm.announce_migration(side.progress())
        side._start_thread("migrate-out")
        return side

    # ---- the loop's steps --------------------------------------------------------------------------------------

    async def decide(self, generation: int, mine: bool) -> None:
        async with self._deciding:
            event = Event.MINE if mine else Event.THEIRS
            after = step(self.state, event)
            if after is Source.BACK and self.vm.lifecycle.state is State.HELD:
                await self.vm.unhold(self._was_paused)
            if mine:
                self.vm.generation = max(self.vm.generation, generation)
            self.take(event)
            if after is Source.BACK:
                await self._stop_tracking()
                self._hang_up()

    async def cancel(self, why: str) -> None:
        """Before the standstill only; later only the decision counts."""
        if self.state not in (Source.PREPARING, Source.COPYING, Source.BACK):
            raise NotAllowed(self.state, Event.FAILED)
        await self._failed(why or "cancelled")

    def check_release(self) -> None:
        step(self.state, Event.RELEASED)

    def release(self) -> None:
        self.take(Event.RELEASED)
        self.vm.finish(pb.END_REASON_MIGRATED)

    async def _failed(self, why: str) -> None:
        async with self._deciding:
            before, after = self.state, step(self.state, Event.FAILED)
            if before is Source.BACK:
                return
            self.error = self.error or why
            if after is Source.BACK and self.vm.lifecycle.state is State.HELD:
                await self.vm.unhold(self._was_paused)
            self.take(Event.FAILED)
            self._hang_up()
            if after is Source.BACK:
                await self._stop_tracking()

    async def _accepted(self) -> None:
        self.take(Event.ACCEPTED)
        self._tracking = True                                 # first: a stop that comes meanwhile is queued behind
        await self.vm.on_machine(self.vm.machine.space.dirty_start)

    async def _standstill(self) -> None:
        async with self._deciding:
            step(self.state, Event.CONVERGED)                 # before the guest is touched
            self._stopped_ns = self.vm.clock.monotonic_ns()
            self._was_paused = await self.vm.hold()
            self.take(Event.CONVERGED)

    async def _sending(self) -> None:
        """From the first byte of the last word on only the decision counts: the target may have all of it before we
        know that it went."""
        self.take(Event.SENT)

    async def _stop_tracking(self) -> None:
        if self._tracking:
            self._tracking = False
            await self.vm.on_machine(self.vm.machine.space.dirty_stop)

    async def _note(self, rounds: int, sent: int, remaining: int) -> None:
        self._progress.rounds, self._progress.bytes, self._progress.remaining_bytes = rounds, sent, remaining
        self.vm.announce_migration(self.progress())

    async def _target_ready(self) -> None:
        self._progress.copy_ms = self._ms_since(self._stopped_ns)
        self._progress.total_ms = self._ms_since(self._began_ns)
        self.vm.announce_migration(self.progress())

    # ---- the thread --------------------------------------------------------------------------------------------

    def _work(self) -> None:
        order = self._order
        with contextlib.ExitStack() as closing:
            sock = closing.enter_context(socket.create_connection((order.host, order.port), PEER_TIMEOUT_S))
            stream.tune(sock)
            if stream.require_tls(order.host, order.tls):
                sock = closing.enter_context(stream.secure(sock, order.tls, server=False, host=order.host))
            self._sock = sock
            self._offer(sock)
            self._ask(self._accepted())
            sender = stream.Sender(sock, self.vm.machine.space.memory)
            pending = self._copy(sender)
            self._stop_and_send(sender, pending)
            ready = wire.receive(sock, pb.Ready)
            if ready.error:
                raise stream.StreamError(f"the target could not take it: {ready.error}")
            self._ask(self._target_ready())

    def _offer(self, sock: socket.socket) -> None:
        wire.send(sock, pb.Offer(protocol=stream.PROTOCOL, id=self.id, token=self._order.token,
                                 config=self.vm.config, generation=self.vm.generation, version=VERSION))
        reply = wire.receive(sock, pb.OfferReply)
        if reply.refusal:
            raise stream.StreamError(f"the target refuses: {reply.refusal}")

    def _harvest(self) -> np.ndarray:
        space = self.vm.machine.space
        return pages.dirty_frames(space.dirty_harvest(), len(space.memory) // pages.FRAME)

    def _copy(self, sender: stream.Sender) -> np.ndarray:
        """Rounds, while the guest runs. Returns what is dirty when it is time to stop."""
        limit = self._order.max_rounds or MAX_ROUNDS
        stop_below_s = (self._order.stop_below_ms or STOP_BELOW_MS) / 1e3
        space = self.vm.machine.space
        mask = pages.backed(space.fd, len(space.memory) // pages.FRAME)       # after the dirty log began
        rate = MIN_BYTES_PER_S
        for number in range(1, limit + 1):
            before_ns, before_bytes = self.vm.clock.monotonic_ns(), sender.bytes
            sender.send_frames(mask, first_round=number == 1)
            sender.round()
            seconds = max(1e-4, (self.vm.clock.monotonic_ns() - before_ns) / 1e9)
            if sender.bytes - before_bytes > 1 << 20:         # less says more of latency than of bandwidth
                rate = (sender.bytes - before_bytes) / seconds
            mask = self._harvest()
            left = int(mask.sum()) * pages.FRAME
            self._ask(self._note(number, sender.bytes, left))
            if left / rate <= stop_below_s:
                return mask
        max_gap_ms = self._order.max_gap_ms or MAX_GAP_MS
        if left / rate * 1e3 > max_gap_ms:
            raise stream.StreamError(
                f"does not converge: after {limit} rounds {left >> 20} MiB are left, more than {max_gap_ms:.0f} ms")
        return mask

    def _stop_and_send(self, sender: stream.Sender, pending: np.ndarray) -> None:
        self._ask(self._standstill())
        sender.send_frames(pending | self._harvest())
        word = self._last_word()
        self._ask(self._sending())
        sender.standstill(word)
        self._ask(self._note(self._progress.rounds + 1, sender.bytes, 0))


    def _last_word(self) -> pb.Standstill:
        """Nothing moves: while it is HELD nobody but this thread touches the machine."""
        written, tail = self.vm.console.tail(CONSOLE_TAIL)
        return pb.Standstill(
            machine_state=self.vm.machines.save(self.vm.machine), monotonic_ns=self._stopped_ns, boot_id=boot_id(),
            rounds=self._progress.rounds, console_written=written, console_tail=tail, phases=self.vm.phases,
            paused=self._was_paused, total_ms=self._ms_since(self._began_ns))


class Incoming(Side):
    """The target."""

    outgoing = False

    def __init__(self, vm: VmProcess, call: pb.MigrateIn) -> None:
        super().__init__(vm, call.id, Target.LISTENING)
        self._call = call
        self._word = pb.Standstill()
        self._ready_ns = 0
        self._listener: socket.socket | None = None

    @classmethod
    async def begin(cls, vm: VmProcess, call: pb.MigrateIn) -> int:
        """The port. Raises NotNow, StreamError, OSError. The same call again answers the same."""
        if vm.migration is not None and vm.migration.id == call.id:
            return vm.migration.progress().listen_port
        vm.lifecycle.check(LifecycleEvent.EXPECT)
        host = call.bind_host or "127.0.0.1"
        stream.require_tls(host, call.tls)
        side = cls(vm, call)
        listener = socket.create_server((host, 0), backlog=8)
        listener.settimeout(call.offer_timeout_s or OFFER_TIMEOUT_S)
        side._listener = listener
        side._progress.listen_port = listener.getsockname()[1]
        vm.migration = side
        vm.change(LifecycleEvent.EXPECT)
        # its threads stand and wait before the guest stands still at the source: they take milliseconds to come up
        await vm.on_machine(lambda: vm.machine.start(paused=True))
        side._start_thread("migrate-in", listener)
        return side._progress.listen_port

    # ---- the loop's steps --------------------------------------------------------------------------------------

    async def decide(self, generation: int, mine: bool) -> None:
        async with self._deciding:
            arrived_ns = self.vm.clock.monotonic_ns()
            event = Event.MINE if mine else Event.THEIRS
            after = step(self.state, event)
            if after is Target.RUNNING and self.state is Target.READY:
                self.vm.generation = max(self.vm.generation, generation)
                await self.vm.enter(self._word.paused)
                self._measure(arrived_ns)
            self.take(event)
            if after is Target.GONE:
                self._hang_up()
                self.vm.finish(pb.END_REASON_ABANDONED, "the migration was aborted")

    def _measure(self, arrived_ns: int) -> None:
        p = self._progress
        p.decision_ms = (arrived_ns - self._ready_ns) / 1e6
        if self._word.boot_id == boot_id():                   # else the two clocks cannot be compared
            p.gap_ms = self._ms_since(self._word.monotonic_ns)
        p.total_ms = self._word.total_ms + p.gap_ms

    async def cancel(self, why: str) -> None:
        if self.state not in (Target.LISTENING, Target.RECEIVING, Target.GONE):
            raise NotAllowed(self.state, Event.FAILED)
        await self._failed(why or "cancelled")

    async def _failed(self, why: str) -> None:
        async with self._deciding:
            if self.state is Target.GONE:
                return
            after = step(self.state, Event.FAILED)
            self.error = self.error or why
            self.take(Event.FAILED)
            if after is Target.GONE:
                self._hang_up()
                if self._listener is not None:
                    self._listener.close()
                self.vm.finish(pb.END_REASON_ABANDONED, why)

    async def _offered(self) -> None:
        self.take(Event.OFFERED)

    async def _loaded(self, word: pb.Standstill, received: int) -> None:
        vm = self.vm
        self._word = word
        vm.console.continue_from(word.console_written, word.console_tail)
        vm.phases = [pb.Phase(name=p.name, seconds=p.seconds, detail=p.detail) for p in word.phases]
        self._progress.rounds, self._progress.bytes = word.rounds + 1, received
        self._ready_ns = vm.clock.monotonic_ns()
        self.take(Event.LOADED)

    # ---- the thread --------------------------------------------------------------------------------------------

    def _work(self, listener: socket.socket) -> None:
        with listener:
            sock = self._accept(listener)
        with sock:
            self._sock = sock
            self._ask(self._offered())
            receiver = stream.Receiver(sock, self.vm.machine.space.memory)
            word = receiver.run()
            try:
                # INCOMING: nobody but this thread touches the machine
                self.vm.machines.load(self.vm.machine, word.machine_state)
                self._ask(self._loaded(word, receiver.bytes))
            except Exception as error:
                wire.send(sock, pb.Ready(error=f"{type(error).__name__}: {error}"))
                raise
            wire.send(sock, pb.Ready())
            # the source hangs up when it knows its fate, or dies: neither says anything about ours

    def _accept(self, listener: socket.socket) -> socket.socket:
        """Wait for whoever has the token; strangers are turned away and change nothing."""
        while True:
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                raise stream.StreamError("nobody came") from None
            try:
                sock.settimeout(PEER_TIMEOUT_S)
                stream.tune(sock)
                if stream.require_tls(self._call.bind_host or "127.0.0.1", self._call.tls):
                    sock = stream.secure(sock, self._call.tls, server=True, host="")
                offer = wire.receive(sock, pb.Offer)
                if hmac.compare_digest(offer.token, self._call.token) and offer.id == self.id:
                    self._check(sock, offer)
                    return sock
                sock.close()
            except (OSError, wire.WireError):
                sock.close()
            except stream.StreamError:
                sock.close()
                raise

    def _check(self, sock: socket.socket, offer: pb.Offer) -> None:
        mine, theirs = self.vm.config, offer.config
        refusal = ""
        if offer.protocol < stream.PROTOCOL:
            refusal = f"version {VERSION} cannot take a stream of protocol {offer.protocol}"
        for field in ("uid", "memory_bytes", "cpus", "clock"):
            if getattr(mine, field) != getattr(theirs, field):
                refusal = f"{field} is {getattr(theirs, field)} there and {getattr(mine, field)} here"
        wire.send(sock, pb.OfferReply(refusal=refusal, protocol=stream.PROTOCOL))
        if refusal:
            raise stream.StreamError(refusal)
