"""One VM: its machine, what state it is in, and how it ends.

The control loop (asyncio, main thread) owns the state; the machine is touched only from the one control thread, so
that a pause that waits for processors never keeps the loop from answering. Processors and devices have threads of
their own inside the machine.

Owns:    the machine, the console, the lifecycle, the record of the end.
Never:   imports grpc; decides who may run the VM.
Threads: everything here on the loop, but `_console_write` and `_machine_exited` (the machine's threads).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from node_agent.console.console import Console, Milestones
from node_agent.vmprocess import files
from node_agent.vmprocess.errors import Refused
from node_agent.vmprocess.identity import ProcessId
from node_agent.vmprocess.lifecycle import Event, Lifecycle, State
from node_agent.vmprocess.machines import Machines
from virga.vmm.v1 import vmm_pb2 as pb

T = TypeVar("T")

STOP_TIMEOUT_S = 5.0

# node_agent.machine's words for an end -> ours
_REASONS = {
    "power-off": pb.END_REASON_POWER_OFF,
    "debug-exit": pb.END_REASON_DEBUG_EXIT,
    "triple-fault": pb.END_REASON_TRIPLE_FAULT,
    "stopped": pb.END_REASON_KILLED,
    "failure": pb.END_REASON_FAILURE,
}


@dataclass(frozen=True)
class Clock:
    """The host's time, passed in."""

    unix: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    monotonic_ns: Callable[[], int] = time.monotonic_ns


def log(event: str, **fields: object) -> None:
    """One JSON line on stderr, which is the VM's log file."""
    print(json.dumps({"time": round(time.time(), 3), "event": event, **fields}, default=str), file=sys.stderr,
          flush=True)


class VmProcess:
    def __init__(self, folder: files.VmFolder, record: pb.VmRecord, machines: Machines, asked_at: float,
                 clock: Clock = Clock()) -> None:
        self.folder = folder
        self.config = pb.VmConfig()
        self.config.CopyFrom(record.config)
        self.generation = record.generation
        self.machines = machines
        self.clock = clock
        self.machine: Any = None
        self.ran = False
        self.lifecycle = Lifecycle()
        self.migration: Any = None                       # node_agent.migration's side, once there is one
        self.ended: asyncio.Event = asyncio.Event()
        self.end: pb.End | None = None
        self.phases: list[pb.Phase] = []
        self._asked_at = asked_at
        self._me = ProcessId.mine()
        self._control = ThreadPoolExecutor(1, "control")
        self._loop = asyncio.get_running_loop()
        self._listeners: set[Callable[[pb.Notice], None]] = set()
        self._order = asyncio.Lock()                     # one change of state at a time
        self._leaving = False
        self.console = Console(folder.console, self.config.console_bytes,
                               Milestones(self.config.ready_marker, self.milestone), self._loop)

    # ---- the machine -------------------------------------------------------------------------------------------

    async def on_machine(self, what: Callable[..., T], *args: object) -> T:
        """Run on the control thread."""
        return await self._loop.run_in_executor(self._control, what, *args)

    async def create(self, config: pb.VmConfig | None = None) -> None:
        """Memory and devices. Raises BadConfig, OSError."""
        if config is not None:
            self.config.CopyFrom(config)
        epoch = int(self.clock.unix()) if self.config.clock != "virtual" else None
        self.machine = await self.on_machine(self.machines.create, self.config, self.console.write, epoch)
        self.machine.on_exit = self._machine_exited

    async def start(self) -> None:
        async with self._order:
            if self.lifecycle.state in (State.RUNNING, State.PAUSED):
                return
            self.lifecycle.check(Event.START)
            await self.on_machine(self.machines.boot, self.machine)
            self._mark_ran()
            await self.on_machine(self.machine.start)
            self._going(Event.START)

    async def pause(self) -> None:
        async with self._order:
            if self.lifecycle.state is State.PAUSED:
                return
            self.lifecycle.check(Event.PAUSE)
            await self.on_machine(self.machine.pause)
            self.change(Event.PAUSE)

    async def resume(self) -> None:
        async with self._order:
            if self.lifecycle.state is State.RUNNING:
                return
            self.lifecycle.check(Event.RESUME)
            self._mark_ran()
            await self.on_machine(self.machine.resume)
            self._going(Event.RESUME)

    async def power_button(self) -> None:
        self._require_live("press the power button")
        await self.on_machine(self.machine.power_button)

    async def reset(self) -> None:
        self._require_live("reset")
        async with self._order:
            await self.on_machine(self.machine.reset)

    def console_input(self, data: bytes) -> None:
        """What a stopped guest cannot take is kept by the device or dropped, as on a wire."""
        if self.machine is not None and self.lifecycle.state in (State.RUNNING, State.PAUSED):
            self.machine.console_input(data)

    def _require_live(self, what: str) -> None:
        if self.lifecycle.state not in (State.RUNNING, State.PAUSED):
            raise Refused(f"cannot {what}: the VM is {self.lifecycle.state.name.lower()}")

    def _going(self, event: Event) -> None:
        """The guest runs; and it may have ended already, in its first microseconds."""
        if self.end is None:
            self.change(event)

    def _mark_ran(self) -> None:
        """On disk before the first instruction: that a copy never ran must be certain when it is said."""
        if not self.ran:
            self.folder.ran.touch(mode=0o600)
            self.ran = True

    # ---- migration's hold on the machine -----------------------------------------------------------------------

    async def hold(self) -> bool:
        """Stand still for a migration. True where the guest was paused by wish before."""
        async with self._order:
            was_paused = self.lifecycle.state is State.PAUSED
            self.lifecycle.check(Event.HOLD)
            if not was_paused:
                await self.on_machine(self.machine.pause)
            self.change(Event.HOLD)
            return was_paused

    async def unhold(self, paused: bool) -> None:
        async with self._order:
            event = Event.UNHOLD_PAUSED if paused else Event.UNHOLD
            self.lifecycle.check(event)
            if not paused:
                await self.on_machine(self.machine.resume)
            self._going(event)

    async def enter(self, paused: bool) -> None:
        """Target: the decision fell for us."""
        async with self._order:
            event = Event.ENTER_PAUSED if paused else Event.ENTER
            self.lifecycle.check(event)
            if not paused:
                self._mark_ran()
                self.machine.resume()        # at once: a resume waits for nobody, and the guest has stood long enough
            self._going(event)

    # ---- what others hear --------------------------------------------------------------------------------------

    def change(self, event: Event) -> None:
        before, after = self.lifecycle.state, self.lifecycle.take(event)
        log("state", before=before.name, after=after.name)
        self.announce()

    def announce(self) -> None:
        self._tell(pb.Notice(changed=self.describe(with_counts=False)))

    def announce_migration(self, migration: pb.Migration) -> None:
        self._tell(pb.Notice(migration=migration))

    def _tell(self, notice: pb.Notice) -> None:
        for listener in list(self._listeners):
            listener(notice)

    @contextlib.contextmanager
    def listening(self, listener: Callable[[pb.Notice], None]):
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    def milestone(self, name: str, detail: str) -> None:
        """A phase is reached, or (kernel) more is known of it."""
        for phase in self.phases:
            if phase.name == name:
                phase.detail = detail
                break
        else:
            now = self.clock.monotonic()
            self.phases.append(pb.Phase(name=name, seconds=now - self._asked_at, detail=detail,
                                        unix_time=self.clock.unix()))
        self.announce()

    def describe(self, with_counts: bool = True) -> pb.Description:
        out = pb.Description(
            config=self.config, generation=self.generation, state=self.lifecycle.state.value, phases=self.phases,
            console_written=self.console.written, pid=self._me.pid, start_time=self._me.start_time, ran=self.ran)
        if with_counts and self.machine is not None and self.end is None:
            self._fill_counts(out)
        if self.migration is not None:
            out.migration.CopyFrom(self.migration.progress())
        if self.end is not None:
            out.end.CopyFrom(self.end)
        return out

    def _fill_counts(self, out: pb.Description) -> None:
        stats = self.machine.stats()
        out.retired_instructions = stats.retired_instructions
        out.engine_seconds = stats.engine_seconds
        out.guest_ns = stats.guest_ns
        out.resets = stats.resets
        for reason, count in stats.exits.items():
            out.exits[reason] = count

    # ---- the end -----------------------------------------------------------------------------------------------

    def _machine_exited(self, exit: Any) -> None:
        """On one of the machine's threads."""
        reason = _REASONS.get(exit.kind.value, pb.END_REASON_FAILURE)
        with contextlib.suppress(RuntimeError):          # the loop is gone: we are ending anyway
            # a guest writes any 32 bits to the debug exit; the record's field is signed
            value = (exit.value + (1 << 31) & 0xFFFFFFFF) - (1 << 31)
            self._loop.call_soon_threadsafe(self.finish, reason, exit.detail, value)

    def finish(self, reason: int, detail: str = "", value: int = 0) -> None:
        """Write down the end, tell it, and let the process go. The first reason counts."""
        if self._leaving:
            return
        self._leaving = True
        end = pb.End(format=1, reason=reason, detail=detail, value=value, generation=self.generation,
                     pid=self._me.pid, start_time=self._me.start_time, unix_time=self.clock.unix(), ran=self.ran)
        if self.machine is not None:
            counts = pb.Description()
            self._fill_counts(counts)
            end.retired_instructions = counts.retired_instructions
            for name, count in counts.exits.items():
                end.exits[name] = count
        try:
            files.write_record(self.folder.end_file, end)
        except OSError as error:                         # a full disk: the zygote will say how the process went
            log("end.not_written", error=str(error))
        self.end = end
        log("end", reason=pb.EndReason.Name(reason), detail=detail[:2000], value=value)
        self.change(Event.END)
        self.ended.set()

    async def close(self) -> None:
        """Stop the machine's threads, so that disks are flushed; bounded, whatever the machine does."""
        if self.machine is not None:
            def stop() -> None:
                self.machine.stop()
                self.machine.close()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(self.on_machine(stop)), STOP_TIMEOUT_S)
