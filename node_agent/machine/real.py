"""Runs a machine by the host's clock: a thread a vCPU, and one for timers, tasks and console output.

    vCPU thread:  run() ─ exit ─► dispatcher ─► run() …            parks between two runs when asked
    I/O thread:   tasks, due timers, output, resets; sleeps until the next deadline or a wake

Owns:    the threads and the rule by which they stand still: `_gate` holds who is parked.
Never:   asks for a standstill while holding the machine's lock: a vCPU may wait for that lock.
Threads: pause, resume and stop from any thread but a vCPU's.
"""

from __future__ import annotations

import threading
import time
from typing import Any

FLUSH_S = 0.002                   # output is gathered this long
STOP_S = 5                        # a vCPU that does not even hear a kick is left behind
NS_PER_S = 1_000_000_000


class RealRunner:
    def __init__(self, machine: Any) -> None:
        self._machine = machine
        self._gate = threading.Condition()
        self._pauses = 0              # how many want a standstill
        self._moving = 0              # threads that are not parked
        self._stopping = False
        self._go = threading.Event()
        self._wake = threading.Event()
        self._threads: list[threading.Thread] = []
        self._io: threading.Thread | None = None
        self.engine_ns = [0] * len(machine.cpus)

    def wake(self) -> None:
        self._wake.set()

    wake_output = wake

    def start(self, paused: bool) -> None:
        self._pauses = int(paused)
        for index in range(len(self._machine.cpus)):
            self._spawn(f"vcpu{index}", lambda index=index: self._run_cpu(index))
        self._io = self._spawn("io", self._run_io)
        self._go.set()                # not before all of them exist: the first may end the machine at once

    def _spawn(self, name: str, body: Any) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(name, body), name=name, daemon=True)
        self._threads.append(thread)
        with self._gate:
            self._moving += 1
        thread.start()
        return thread

    def _guarded(self, name: str, body: Any) -> None:
        self._go.wait()
        try:
            body()
        except Exception as error:           # ours: the machine ends with it, nobody else does
            self._machine.fail(f"{name}: {type(error).__name__}: {error}")
        finally:
            with self._gate:
                self._moving -= 1
                self._gate.notify_all()

    # standing still

    def _park(self) -> bool:
        """Wait while somebody wants a standstill; False when all is over."""
        with self._gate:
            if self._pauses and not self._stopping:
                self._moving -= 1
                self._gate.notify_all()
                while self._pauses and not self._stopping:
                    self._gate.wait()
                self._moving += 1
            return not self._stopping

    def pause(self) -> None:
        """Returns when nothing of the guest moves. Calls nest."""
        with self._gate:
            self._pauses += 1
        self.kick()
        # the I/O thread itself may ask (for a reset): it does not wait for itself
        own = int(threading.current_thread() is self._io)
        with self._gate:
            while self._moving > own and not self._stopping:
                self._gate.wait()

    def resume(self) -> None:
        with self._gate:
            self._pauses = max(self._pauses - 1, 0)
            self._gate.notify_all()

    def kick(self) -> None:
        for cpu in self._machine.cpus:
            cpu.kick()
        self._wake.set()

    def stop(self) -> None:
        """Ends the threads; from one of them, it only asks."""
        with self._gate:
            self._stopping = True
            self._gate.notify_all()
        self.kick()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(STOP_S)

    # the threads

    def _run_cpu(self, index: int) -> None:
        cpu, vmcs = self._machine.cpus[index], self._machine.vmcs[index]
        handle = self._machine.dispatchers[index].handle
        try:
            while self._park():
                handle(cpu.run(vmcs))
                if self._machine.ended:
                    return
        finally:
            self.engine_ns[index] = time.thread_time_ns()

    def engine_now_ns(self) -> int:
        """Processor time of the vCPU threads, also while they run."""
        total = 0
        for index, thread in enumerate(self._threads[:len(self._machine.cpus)]):     # none before the start
            if self.engine_ns[index] == 0 and thread.is_alive():
                try:
                    total += time.clock_gettime_ns(time.pthread_getcpuclockid(thread.ident))
                    continue
                except OSError:
                    pass
            total += self.engine_ns[index]
        return total

    def _run_io(self) -> None:
        machine, timers = self._machine, self._machine.timers
        while True:
            self._wake.clear()
            if machine.reset_wanted:
                machine.perform_reset()
            timers.run_tasks()
            timers.run_due()
            if machine.output.waiting:
                if not timers.has_tasks():
                    self._wake.wait(FLUSH_S)
                machine.output.flush()
            if not self._park() or machine.ended:
                return
            deadline_ns = timers.next_ns()
            if not timers.has_tasks() and not machine.output.waiting and not machine.reset_wanted:
                self._wake.wait(None if deadline_ns is None else
                                max(deadline_ns - timers.now_ns(), 0) / NS_PER_S)
