"""One PC: memory, clock, vCPUs and devices from a spec, and what can be done with it from outside.

    MachineSpec ─► Machine ── boot() ─► start() ─► … ─► MachineExit
                      └────── load(state) ─┘

Owns:    all of it, and how it ends.
Never:   reads the host's clock or entropy but through what it was given.
Threads: every public method from any thread; `on_exit` and `console` are called from the machine's own.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vcpu
from node_agent.boot.cpu_state import StartState
from node_agent.boot.loader import load_kernel
from node_agent.dispatcher import Dispatcher, describe, reason_name
from node_agent.machine import table
from node_agent.machine.bus import Bus
from node_agent.machine.lines import Lines
from node_agent.machine.output import Output
from node_agent.machine.real import RealRunner
from node_agent.machine.spec import (VIRTUAL_EPOCH_S, ExitKind, MachineExit, MachineSpec, MachineState, MachineStats,
                                     SpecError)
from node_agent.machine.timers import TimerQueue
from node_agent.machine.turns import TurnRunner

CONSOLES = ("ttyS0", "ttyS1", "hvc0")
NS_PER_S = 1_000_000_000


class Machine:
    """`console(channel, data)` takes the guest's output; `entropy(n)` feeds its random numbers (real clock only)."""

    def __init__(self, spec: MachineSpec, console: Callable[[str, bytes], None], *,
                 entropy: Callable[[int], bytes] = os.urandom, memory_fd: int | None = None,
                 kernel_cache: Path | None = None) -> None:
        spec.check()
        self.spec = spec
        self.on_exit: Callable[[MachineExit], None] | None = None
        self._kernel_cache = kernel_cache
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._exit: MachineExit | None = None
        self.reset_wanted = False
        self._resets = 0
        self._paused_by_caller = False
        self._started = False
        virtual = spec.clock == "virtual"
        self.space = vcpu.AddressSpace(spec.memory_bytes, memory_fd)
        self.clock = vcpu.Clock(spec.clock, seed=spec.seed, wall_ns=self._epoch_s() * NS_PER_S)
        self.cpus = [vcpu.Vcpu(self.space, self.clock, index, spec.cpus) for index in range(spec.cpus)]
        self.vmcs = [vcpu.Vmcs() for _ in self.cpus]
        self.dispatchers = [Dispatcher(self, cpu, vmcs, index)
                            for index, (cpu, vmcs) in enumerate(zip(self.cpus, self.vmcs, strict=True))]
        self._runner: Any = (TurnRunner if virtual else RealRunner)(self)
        self.timers = TimerQueue(self.clock.now_ns, self._lock, virtual, self._runner.wake)
        self.output = Output(console, self._runner.wake_output)
        self._build(random.Random(spec.seed).randbytes if virtual else entropy)

    def _build(self, entropy: Callable[[int], bytes]) -> None:
        spec = self.spec
        parts = table.Parts(
            spec=spec, epoch_s=self._epoch_s(), space=self.space, bus=Bus(self.space, self._lock), timers=self.timers, lines=Lines(), intr=self._intr,
            byte_sink=self.output.put_byte, sink=self.output.put, entropy=entropy, power_off=self._power_off,
            reset_machine=self.reset, exit_machine=self._debug_exit)
        try:
            self.devices, self._backends = table.build(parts)
        except OSError as error:
            raise SpecError("disk", f"{error.filename}: {error.strerror}") from None
        pic, ioapic = self.devices["pic"], self.devices["ioapic"]
        self.space.set_extint(self._locked(pic.acknowledge))
        self.space.set_eoi_callback(self._locked(ioapic.end_of_interrupt))

    def _epoch_s(self) -> int:
        return VIRTUAL_EPOCH_S if self.spec.rtc_epoch_s is None else self.spec.rtc_epoch_s

    def _locked(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def locked(*args: Any) -> Any:
            with self._lock:
                return call(*args)
        return locked

    def _intr(self, level: bool) -> None:
        if level:
            self.space.extint_raise()
        else:
            self.space.extint_lower()

    # starting

    def boot(self) -> None:
        """Load the kernel and bring the boot processor to its entry. Raises BootError, SpecError."""
        if self.spec.kernel is None:
            raise SpecError("kernel", "is missing")
        with self._lock:
            table.place_bars(self.devices)
        state = load_kernel(self.space, self.spec.cpus, self.spec.kernel, self.spec.initrd, self.spec.append,
                            self.spec.modules, self._kernel_cache)
        self._enter(state)

    def _enter(self, state: StartState) -> None:
        for name, value in state.fields.items():
            self.vmcs[0][getattr(vcpu, name)] = value
        for name, value in state.registers.items():
            self.cpus[0].set(name, value)
        # an entry whose time is up: the state is checked and becomes the processor's, nothing runs; a kick from before
        # a reset may come first
        entry = self.cpus[0].run(self.vmcs[0], deadline_ns=0)
        while entry.reason == vcpu.EXIT_REASON_EXTERNAL_INTERRUPT:
            entry = self.cpus[0].run(self.vmcs[0], deadline_ns=0)
        if entry.reason != vcpu.EXIT_REASON_PREEMPTION_TIMER:
            raise SpecError("kernel", f"cannot be entered: {entry!r}")

    def start(self, paused: bool = False) -> None:
        self._paused_by_caller = paused
        if paused:
            self.clock.pause()
        self._started = True
        self._runner.start(paused)

    # ending

    @property
    def ended(self) -> MachineExit | None:
        return self._exit

    def _end(self, end: MachineExit) -> None:
        with self._lock:
            if self._exit is not None:
                return
            self._exit = end
        self._runner.kick()
        threading.Thread(target=self._finish, name="end", daemon=True).start()

    def _finish(self) -> None:
        """Beside the machine's threads, since it waits for them."""
        self._runner.stop()
        self.output.flush()
        self._over.set()
        if self.on_exit:
            self.on_exit(self._exit)

    def wait(self, timeout_s: float | None = None) -> MachineExit | None:
        """How it ended, or None when time is up first."""
        return self._exit if self._over.wait(timeout_s) else None

    def stop(self) -> None:
        """End it now, as if the plug were pulled. Returns when its threads are gone."""
        self._end(MachineExit(ExitKind.STOPPED))
        self._over.wait()

    def close(self) -> None:
        """Give the host's files back. Only after the end, or before the start."""
        if self._started:
            self.stop()
        for backend in self._backends.values():
            if hasattr(backend, "close"):
                backend.close()
        self._backends = {}

    def _power_off(self) -> None:
        self._end(MachineExit(ExitKind.POWER_OFF))

    def _debug_exit(self, value: int) -> None:
        self._end(MachineExit(ExitKind.DEBUG_EXIT, value))

    def triple_fault(self, index: int) -> None:
        self._end(MachineExit(ExitKind.TRIPLE_FAULT, index,
                              f"vCPU {index}:\n{describe(self.cpus[index].registers())}"))

    def fail(self, why: str) -> None:
        self._end(MachineExit(ExitKind.FAILURE, detail=why))

    # while it runs

    def console_input(self, data: bytes, channel: str = "ttyS0") -> int:
        """How many bytes were taken: a guest that doesn't read has a bounded backlog."""
        if channel not in CONSOLES:
            raise ValueError(f"no console {channel!r}; there are {', '.join(CONSOLES)}")
        with self._lock:
            target = self._backends.get(channel) or self.devices[channel]
            taken = target.receive(data)
        self._runner.wake()
        return taken

    def power_button(self) -> None:
        with self._lock:
            self.devices["acpi-pm"].press_power_button()
        self._runner.wake()

    def reset(self) -> None:
        """As the reset button: soon, by the machine's own thread."""
        self.reset_wanted = True
        self._runner.kick()

    def perform_reset(self) -> None:
        """For the runner: everything to its state after power-on, the kernel loaded anew."""
        self._runner.pause()
        try:
            self.reset_wanted = False
            self._resets += 1
            with self._lock:
                for device in self.devices.values():
                    device.reset()
            for cpu in self.cpus:
                cpu.reset()
            self.boot()
        except Exception as error:               # the kernel's file may have gone meanwhile
            self.fail(f"reset: {error}")
        finally:
            self._runner.resume()

    def pause(self) -> None:
        """Returns when nothing of the guest moves and all it said was handed over; its clock stands still."""
        if not self._paused_by_caller:
            self._paused_by_caller = True
            self._runner.pause()
            self.output.flush()
            self.clock.pause()

    def resume(self) -> None:
        if self._paused_by_caller:
            self._paused_by_caller = False
            self.clock.resume()
            self._runner.resume()
            self._runner.wake()

    @property
    def paused(self) -> bool:
        return self._paused_by_caller

    def stats(self) -> MachineStats:
        exits: dict[str, int] = {}
        for cpu in self.cpus:
            for reason, count in cpu.exit_counts().items():
                exits[reason_name(reason)] = exits.get(reason_name(reason), 0) + count
        return MachineStats(sum(cpu.retired_instructions for cpu in self.cpus), exits,
                            self._runner.engine_now_ns() / NS_PER_S, self.clock.now_ns(), self._resets)

    # state

    def _shape(self) -> dict[str, Any]:
        spec = self.spec
        return {"memory_bytes": spec.memory_bytes, "cpus": spec.cpus, "clock": spec.clock, "disks": len(spec.disks)}

    def save(self) -> MachineState:
        """All but the memory. Paused only."""
        if self._started and not self._paused_by_caller:
            raise RuntimeError("pause the machine before saving it")
        with self._lock:
            devices = {name: device.save() for name, device in self.devices.items()}
        return MachineState(self._shape(), self.clock.save(), tuple(cpu.save() for cpu in self.cpus), devices)

    def load(self, state: MachineState) -> None:
        """Take over a saved state, before start(). Memory is there already. ValueError: it is another machine's."""
        if state.spec != self._shape():
            raise ValueError(f"the state is of another machine: {state.spec}, this one is {self._shape()}")
        missing = self.devices.keys() - state.devices.keys()
        if missing:
            raise ValueError(f"the state lacks {', '.join(sorted(missing))}")
        self.clock.load(state.clock)
        with self._lock:
            for name, device in self.devices.items():
                device.load(state.devices[name])
        for cpu, saved in zip(self.cpus, state.cpus, strict=True):
            cpu.load(saved)
