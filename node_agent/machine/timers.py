"""One queue of timers in guest time, and work to be done beside the guest's instructions.

    device ── at(ns) ──► heap ── due(now) ──► callbacks, in the order of (time, age)
    device ── submit ──► real clock: the I/O thread, at once
                         virtual clock: a timer at now + delay, so that two runs agree

Owns:    the heap and the list of tasks.
Never:   reads the host's clock; calls back without the machine's lock (`io` work of a task excepted: see run_task).
Threads: any for at, cancel, submit; due and run_task from the one thread that runs the machine's timers.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from threading import RLock
from typing import Any


SWEEP_AT = 256                # so many alarms and most of them cancelled: a guest that re-arms in a loop


class Alarm:
    __slots__ = ("_queue", "callback")

    def __init__(self, queue: TimerQueue, callback: Callable[[], None]) -> None:
        self._queue = queue
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self._queue.cancelled += 1


class TimerQueue:
    """`wake` is called when the earliest deadline moved forward or a task came: the I/O thread looks again."""

    def __init__(self, now_ns: Callable[[], int], lock: RLock, virtual: bool, wake: Callable[[], None]) -> None:
        self.now_ns = now_ns
        self._lock = lock
        self._virtual = virtual
        self._wake = wake
        self._heap: list[tuple[int, int, Alarm]] = []
        self._age = itertools.count()
        self._tasks: deque[Callable[[], Any]] = deque()
        self.cancelled = 0        # alarms in the heap that will not ring, about

    def at(self, deadline_ns: int, callback: Callable[[], None]) -> Alarm:
        alarm = Alarm(self, callback)
        with self._lock:
            if len(self._heap) > SWEEP_AT and self.cancelled > len(self._heap) // 2:
                self._heap = [entry for entry in self._heap if entry[2].callback is not None]
                heapq.heapify(self._heap)
                self.cancelled = 0
            first = not self._heap or deadline_ns < self._heap[0][0]
            heapq.heappush(self._heap, (deadline_ns, next(self._age), alarm))
        if first:
            self._wake()
        return alarm

    def submit(self, work: Callable[[], Any], delay_ns: int) -> None:
        """`work` runs under the lock and may return (io, done): io() runs without it, then done(result) as work did."""
        if self._virtual:
            self.at(self.now_ns() + delay_ns, lambda: self.run_task(work))
            return
        self._tasks.append(work)
        self._wake()

    def next_ns(self) -> int | None:
        with self._lock:
            while self._heap and self._heap[0][2].callback is None:
                heapq.heappop(self._heap)
                self.cancelled = max(self.cancelled - 1, 0)
            return self._heap[0][0] if self._heap else None

    def run_due(self) -> None:
        """Call back everything whose time has come by now, timers that this arms included. What comes due meanwhile is
        the next call's: a timer faster than its callback must not keep the caller here."""
        now_ns = self.now_ns()
        while True:
            with self._lock:
                deadline_ns = self.next_ns()
                if deadline_ns is None or deadline_ns > now_ns:
                    return
                alarm = heapq.heappop(self._heap)[2]
                callback, alarm.callback = alarm.callback, None      # one that rang needs no cancelling
                if callback is not None:
                    callback()

    def has_tasks(self) -> bool:
        return bool(self._tasks)

    def run_tasks(self) -> None:
        """What waits now; what these tasks submit is the next call's, behind timers and output."""
        for _ in range(len(self._tasks)):
            self.run_task(self._tasks.popleft())

    def run_task(self, work: Callable[[], Any]) -> None:
        """In virtual time the caller holds the lock already; there is no other thread to keep out."""
        with self._lock:
            step = work()
        while step:
            io, done = step
            result = io()
            with self._lock:
                step = done(result)
