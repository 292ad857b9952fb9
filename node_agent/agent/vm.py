"""One VM on this node: what is wanted of it, what is there, and the next step between the two.

An actor: whoever learns something stores it and wakes the task; the task looks at everything anew and takes one step
at a time. So it does not matter what was missed, repeated or interrupted.

Owns:    the VM's folder, its process, its record.
Never:   begins a run or a generation twice: the record is on disk before what it permits is done. Never removes
         anything but by a REMOVE, or what a failed migration left.
Threads: the agent's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from node_agent.agent import observe
from node_agent.agent.images import ImageError
from node_agent.agent.move import Move
from node_agent.agent.run import begin_run
from node_agent.vmprocess import files
from node_agent.vmprocess.client import CallFailed, Client, Gone
from node_agent.vmprocess.identity import ProcessId, boot_id
from virga.agent.v1 import agent_pb2 as agent
from virga.v1 import vm_pb2 as v1
from virga.vmm.v1 import vmm_pb2 as pb

if TYPE_CHECKING:
    from node_agent.agent.node import Node

log = logging.getLogger("vm")

PRESS_AGAIN_S = 5.0              # a guest that was not listening yet gets the button again
RETRY_MIN_S, RETRY_MAX_S = 0.2, 5.0
KILL_TIMEOUT_S = 3.0
END_TIMEOUT_S = 1.0              # between a process' end and its zygote's word


class LocalVm:
    def __init__(self, node: Node, uid: str) -> None:
        self.node = node
        self.uid = uid
        self.folder = files.VmFolder.under(node.config.state, uid)
        self.record = pb.VmRecord(format=1)
        self.corrupt = ""
        self.client: Client | None = None
        self.process: ProcessId | None = None
        self.seen: pb.Description | None = None
        self.end: pb.End | None = None
        self.desired: agent.DesiredVm | None = None
        self.gone = False
        self.doing = 0
        self.message = ""
        self.move = Move(self)
        self.extra = {"vm": uid}
        self._pressed_at = 0.0
        self._wake = asyncio.Event()
        self._retry_s = RETRY_MIN_S
        self._watcher: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    # ---- what others do --------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._task = asyncio.create_task(self._live(), name=f"vm-{self.uid}")

    def want(self, desired: agent.DesiredVm | None, order: agent.MigrationOrder | None) -> None:
        self.desired = desired                                # None: nothing is said of it, it stays as it is
        self.move.order = order
        self.wake()

    def wake(self) -> None:
        self._wake.set()

    @property
    def alive(self) -> bool:
        return self.client is not None or self.process is not None

    def observed(self) -> agent.ObservedVm:
        if self.gone:
            return agent.ObservedVm(uid=self.uid, generation=self.record.generation, gone=True)
        if self.corrupt:
            return agent.ObservedVm(uid=self.uid, state=v1.VM_STATE_UNKNOWN, reason="STATE_CORRUPT",
                                    message=self.corrupt)
        return observe.observed(self.uid, self.record, self.doing, self.alive, self.seen, self.end, self.message)

    async def close(self) -> None:
        """The agent leaves; the VM stays."""
        for task in (self._task, self._watcher):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self.client is not None:
            await self.client.close()

    # ---- the loop --------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        pause: float | None = None
        while not self.gone:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()
            try:
                pause = await self._step()
                self._retry_s = RETRY_MIN_S
                self.message = ""
            except Exception as error:
                pause, self._retry_s = self._retry_s, min(RETRY_MAX_S, self._retry_s * 2)
                self.message = str(error) or type(error).__name__
                log.warning("%s: %s; again in %.1f s", type(error).__name__, self.message, pause, extra=self.extra,
                            exc_info=not isinstance(error, (Gone, CallFailed, OSError)))
            self.changed()
        self.node.forget(self.uid)

    def changed(self) -> None:
        self.node.changed(self.uid)

    async def _step(self) -> float | None:
        """Do what is next; seconds until to look again, None: when woken."""
        want = self.desired
        if self.process is not None and self.client is None and not self.corrupt:
            try:
                await self._connect()
            except (Gone, CallFailed, TimeoutError):
                if want is None or not (want.disposition == agent.DISPOSITION_REMOVE or want.force_stop):
                    raise                                     # those two work on a process that is deaf, too
        if want is not None and want.disposition == agent.DISPOSITION_REMOVE:
            return await self._remove(want)
        if self.corrupt:
            return None
        pause = await self.move.step()
        if self.move.holds_the_vm or want is None or self.gone:
            return pause
        return await self._keep(want)

    # ---- from disk -------------------------------------------------------------------------------------------

    def discover(self) -> None:
        """What the folder says; synchronous, before the first connection to the controller."""
        try:
            self.record = self.folder.record() or self.record
            if not self.record.format:
                raise files.CorruptRecord(self.folder.record_file, "is missing")
            self.end = self.folder.end()
            self.process = self._process_on_disk()
            if self.process is None and self.end is None:
                self._note_lost_end()
        except files.CorruptRecord as error:
            self.corrupt = str(error)
            with contextlib.suppress(files.CorruptRecord):
                self.process = self._process_on_disk()        # left alone, but a removal has to end it
            log.error("%s: left alone", error, extra=self.extra)

    def _process_on_disk(self) -> ProcessId | None:
        process = self.folder.process()
        if process is None or process.boot_id != boot_id():
            return None
        who = ProcessId(process.pid, process.start_time)
        return who if who.alive() else None

    def _note_lost_end(self) -> None:
        """The process is gone and left no word, nor did its zygote."""
        process = self.folder.process()
        if process is None:
            return                                            # never forked
        self.end = pb.End(format=1, reason=pb.END_REASON_LOST, generation=process.generation, pid=process.pid,
                          start_time=process.start_time, unix_time=self.node.clock(), ran=self.folder.ran.exists(),
                          detail="the process is gone, and nobody saw how")
        with contextlib.suppress(OSError):
            files.write_record(self.folder.end_file, self.end)

    async def save(self, durable: bool = True) -> None:
        """Without durable it takes microseconds, and somebody may be standing still until it is done."""
        if durable:
            await asyncio.to_thread(files.write_record, self.folder.record_file, self.record)
        else:
            files.write_record(self.folder.record_file, self.record, durable=False)

    # ---- the process -----------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        """To a process that is there: after a spawn, or one that an agent before us left."""
        assert self.process is not None
        if not self.process.alive():
            await self._process_ended()
            return
        client = await Client.connect(self.folder.socket)
        client.on_notice = self._heard
        try:
            await client.call(subscribe=pb.Subscribe())
        except BaseException:
            await client.close()
            raise
        self.client = client
        self._watcher = asyncio.create_task(self._watch(client))

    async def _watch(self, client: Client) -> None:
        await client.closed.wait()
        self.client = None
        await self._process_ended()
        self.wake()

    async def _process_ended(self) -> None:
        """Wait until it is really gone, then for the word about its end."""
        who = self.process
        if who is None:
            return
        deadline = asyncio.get_running_loop().time() + END_TIMEOUT_S
        while who.alive():
            if asyncio.get_running_loop().time() > deadline:
                return                                        # the connection broke, the process lives: connect again
            await asyncio.sleep(0.005)
        while (end := self._end_of(who)) is None and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        self.process = None
        self.end = end
        if end is None:
            with contextlib.suppress(files.CorruptRecord):    # then only the next agent can say more
                self._note_lost_end()
        self.node.vm_ended(self)
        self.changed()

    def _end_of(self, who: ProcessId) -> pb.End | None:
        try:
            end = self.folder.end()
        except files.CorruptRecord:
            return None
        return end if end is not None and (end.pid, end.start_time) == (who.pid, who.start_time) else None

    def _heard(self, notice: pb.Notice) -> None:
        if notice.HasField("changed"):
            self.seen = notice.changed
        elif notice.HasField("migration") and self.seen is not None:
            self.seen.migration.CopyFrom(notice.migration)
        self.changed()
        self.wake()

    async def spawn(self) -> None:
        """A process with memory and devices. Raises CallFailed and what Zygotes raise."""
        spawned = await self.node.zygotes.spawn(self.folder, self.record.generation)
        self.process = ProcessId(spawned.pid, spawned.start_time)
        await self._connect()

    async def kill(self, why: str) -> None:
        """Returns when the process is gone."""
        who = self.process
        if who is None:
            return
        if self.client is not None:
            with contextlib.suppress(Gone, CallFailed, TimeoutError):
                await self.client.call(KILL_TIMEOUT_S, kill=pb.Kill(detail=why))
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = asyncio.get_running_loop().time() + KILL_TIMEOUT_S
            while who.alive() and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.01)
            if not who.alive():
                break
            who.signal(number)
        if self._watcher is not None:
            await self._watcher
        await self._process_ended()

    # ---- wishes ----------------------------------------------------------------------------------------------

    async def _remove(self, want: agent.DesiredVm) -> float | None:
        if not self.corrupt and self.record.generation > want.generation:
            return None                                       # an order about a copy that is no more
        self.doing = v1.VM_STATE_STOPPING if self.alive else 0
        await self.kill("removed")
        self.node.files.raise_floor(self.uid, min(want.generation, self.record.generation) + 1)
        await self.discard(self.move.settle_removed)
        return None

    async def discard(self, settle: Callable[[], None]) -> None:
        """The folder goes, with the console and what it had of disks; then `settle` says so."""
        await self.kill("discarded")
        await asyncio.to_thread(self.node.files.throw_away, self.folder.path)
        settle()
        self.gone, self.doing = True, 0
        log.info("gone", extra=self.extra)

    async def _keep(self, want: agent.DesiredVm) -> float | None:
        record = self.record
        if want.generation < max(record.generation, self.node.files.floor(self.uid)):
            return None                                       # older than what is known here
        news = (record.generation, record.spec_generation) != (want.generation, want.spec_generation)
        record.generation, record.spec_generation = want.generation, want.spec_generation
        record.config.name = want.name
        unborn = record.run and not self.alive and self.end is None and not record.failure_reason
        if want.power != v1.POWER_STATE_STOPPED and (want.run > record.run or (want.run == record.run and unborn)):
            return await self._begin(want)                    # writes the record itself
        if news:
            await self.ensure_folder()
            await self.save()
        if want.power == v1.POWER_STATE_STOPPED:
            return await self._stop(want)
        return await self._steer(want)

    async def ensure_folder(self) -> None:
        await asyncio.to_thread(self.folder.path.mkdir, 0o700, True, True)

    async def _begin(self, want: agent.DesiredVm) -> float | None:
        await self.kill("a new run begins")
        try:
            await begin_run(self, want)
        except ImageError as error:
            await self._fail(error.reason, str(error))
        except CallFailed as error:
            await self._fail(observe.failure_reason(error.kind, error.field), str(error))
        except OSError as error:
            await self._fail(observe.failure_reason(self.node.kind_of(error), ""), f"{self.node.config.state}: {error}")
        self.doing = 0
        return 0.0

    async def _fail(self, reason: str, message: str) -> None:
        """This run will not be. Said once, with the reason; the next run is another number."""
        log.error("run %d: %s: %s", self.record.run, reason, message, extra=self.extra)
        self.record.failure_reason, self.record.failure_message = reason, message
        await self.kill("could not start")
        with contextlib.suppress(OSError):                    # a full disk is what may have brought us here
            await self.save()

    async def _steer(self, want: agent.DesiredVm) -> float | None:
        """A run that is there: paused or not, reset or not."""
        if self.client is None or self.seen is None:
            return None
        record, client, state = self.record, self.client, self.seen.state
        if record.stop_asked:
            record.stop_asked = False
            await self.save()
        if state == pb.VM_STATE_CREATED:                      # an agent before us died between spawn and start
            await client.call(start=pb.Start())
        elif state == pb.VM_STATE_RUNNING and want.power == v1.POWER_STATE_PAUSED:
            await client.call(pause=pb.Pause())
        elif state == pb.VM_STATE_PAUSED and want.power != v1.POWER_STATE_PAUSED:
            await client.call(resume=pb.Resume())
        if want.reset_serial > record.reset_serial and state in (pb.VM_STATE_RUNNING, pb.VM_STATE_PAUSED):
            record.reset_serial = want.reset_serial
            await self.save()
            await client.call(reset=pb.Reset())
        return None

    async def _stop(self, want: agent.DesiredVm) -> float | None:
        if not self.alive:
            if self.record.run and self.end is None and not self.record.failure_reason:
                await self._fail("STOPPED_BY_USER", "stopped before it began")
            return None
        if not self.record.stop_asked:
            self.record.stop_asked = True
            await self.save()
            self._pressed_at = float("-inf")
        self.changed()
        if want.force_stop or self.seen is None or self.seen.state == pb.VM_STATE_CREATED:
            await self.kill("stopped by force")
            return None
        now = asyncio.get_running_loop().time()
        if now - self._pressed_at >= PRESS_AGAIN_S and self.client is not None:
            if self.seen.state == pb.VM_STATE_PAUSED:         # a guest that stands still hears no button
                await self.client.call(resume=pb.Resume())
            await self.client.call(power_button=pb.PowerButton())
            self._pressed_at = now
        return max(0.1, self._pressed_at + PRESS_AGAIN_S - now)


