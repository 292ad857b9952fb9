"""Runs a machine by the virtual clock: one thread, vCPUs in turn, device timers at their exact guest times.

    ┌► due timers ─► vCPU 0: QUANTUM instructions, or to the next deadline ─► due timers ─► vCPU 1 … ┐
    └───────────────────────────── all halted: the clock jumps to the next deadline ◄────────────────┘

Nothing here depends on the host's time or load: turns end at instruction counts, at guest times, and where the guest
itself told a device something. Requests from other threads (pause, input, power button) are looked at between turns.

Owns:    the thread and the order of turns.
Never:   lets another thread end a turn.
Threads: pause, resume and stop from any thread but its own.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import vcpu

QUANTUM = 100_000                 # instructions of one turn
FLUSH_ROUNDS = 64
STOP_S = 5                        # a vCPU that does not end its turn is left behind


class TurnRunner:
    def __init__(self, machine: Any) -> None:
        self._machine = machine
        self._gate = threading.Condition()
        self._pauses = 0
        self._parked = False
        self._stopping = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._engine_ns = 0
        self._current: Any = None     # the vCPU whose turn it is

    def wake(self) -> None:
        """From the vCPU that runs (a device was told something): its turn ends at the next block, at the same instruction
        in every run. From outside: only the sleep ends."""
        if self._current is not None and threading.current_thread() is self._thread:
            self._current.kick()
        self._wake.set()

    kick = wake

    def wake_output(self) -> None:
        """Output is flushed between turns anyway."""

    def start(self, paused: bool) -> None:
        self._pauses = int(paused)
        self._thread = threading.Thread(target=self._guarded, name="turns", daemon=True)
        self._thread.start()

    def _guarded(self) -> None:
        try:
            self._run()
        except Exception as error:           # ours: the machine ends with it, nobody else does
            self._machine.fail(f"{type(error).__name__}: {error}")
        finally:
            self._engine_ns = time.thread_time_ns()
            with self._gate:
                self._parked = True
                self._gate.notify_all()

    def engine_now_ns(self) -> int:
        if self._engine_ns == 0 and self._thread and self._thread.is_alive():
            return time.clock_gettime_ns(time.pthread_getcpuclockid(self._thread.ident))
        return self._engine_ns

    # standing still

    def pause(self) -> None:
        if threading.current_thread() is self._thread:
            return                           # between turns it stands still anyway
        with self._gate:
            self._pauses += 1
            self._wake.set()
            while not self._parked and not self._stopping:
                self._gate.wait()

    def resume(self) -> None:
        if threading.current_thread() is not self._thread:
            with self._gate:
                self._pauses = max(self._pauses - 1, 0)
                self._gate.notify_all()

    def stop(self) -> None:
        with self._gate:
            self._stopping = True
            self._wake.set()
            self._gate.notify_all()
        if self._thread and threading.current_thread() is not self._thread:
            self._thread.join(STOP_S)

    def _park(self) -> bool:
        with self._gate:
            while self._pauses and not self._stopping:
                self._parked = True
                self._gate.notify_all()
                self._gate.wait()
            self._parked = False
            return not self._stopping

    # the turns

    def _run(self) -> None:
        machine = self._machine
        rounds = 0
        while self._park() and not machine.ended:
            if machine.reset_wanted:
                machine.perform_reset()
            machine.timers.run_due()
            idle = self._round()
            rounds += 1
            if idle or rounds % FLUSH_ROUNDS == 0:
                machine.output.flush()
            if idle and not machine.ended and not machine.reset_wanted:
                self._skip_idle()
        machine.output.flush()

    def _round(self) -> bool:
        """One turn each; True when none had anything to do."""
        machine = self._machine
        idle = True
        for cpu, vmcs, dispatcher in zip(machine.cpus, machine.vmcs, machine.dispatchers, strict=True):
            self._current = cpu
            vm_exit = cpu.run(vmcs, deadline_ns=machine.timers.next_ns(), quantum=QUANTUM)
            self._current = None
            dispatcher.handle(vm_exit)
            if machine.ended or machine.reset_wanted:
                return False
            if vm_exit.reason != vcpu.EXIT_REASON_HLT:
                idle = False
            machine.timers.run_due()
        return idle

    def _skip_idle(self) -> None:
        """All wait: on to the next deadline, or for somebody outside where there is none."""
        machine = self._machine
        deadlines = [machine.timers.next_ns(), *(cpu.next_timer_ns() for cpu in machine.cpus)]
        known = [deadline for deadline in deadlines if deadline is not None]
        if known:
            machine.clock.advance_to(max(min(known), machine.clock.now_ns()))
        else:
            self._wake.wait()
            self._wake.clear()
