"""A machine without a processor, for tests of everything around it: it counts aloud and dirties its memory.

The append line says what it does, in the tiny guest's words: `count`, `dirty=MB/s`, `flood`, `hello`, `triplefault`,
`exit=N`, `nopower` (deaf to the power button), and `witness=FILE`: each number is appended there too, so that two
copies that run, or one that ran in vain, are seen by whoever reads it. Its number lives in its memory, so a migration that loses a page loses
the count.

Owns:    one thread that plays the guest.
Never:   ships in a machine that anybody asked for: only tests choose it.
Threads: as the real one: callbacks come from the guest's thread, calls from any.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any

from node_agent.machine.spec import ExitKind, MachineExit, MachineStats
from node_agent.vmprocess.machines import BadConfig, ConsoleWrite
from virga.vmm.v1 import vmm_pb2 as pb

FRAME = 4096
TICK_S = 0.005
COUNT_AT = 5 * FRAME             # where the guest keeps its number
DIRTY_AT = 64 * FRAME            # from here on it dirties


class FakeSpace:
    """memory, dirty_start, dirty_harvest, dirty_stop, as vcpu.AddressSpace has them."""

    def __init__(self, ram_bytes: int) -> None:
        self.ram_bytes = ram_bytes
        self.fd = os.memfd_create("fake-ram", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, ram_bytes)
        self._map = mmap.mmap(self.fd, ram_bytes)
        self.memory = memoryview(self._map)
        self._dirty: bytearray | None = None
        self._lock = threading.Lock()

    def write(self, gpa: int, data: bytes) -> None:
        with self._lock:
            self.memory[gpa:gpa + len(data)] = data
            if self._dirty is not None:
                for frame in range(gpa // FRAME, (gpa + len(data) - 1) // FRAME + 1):
                    self._dirty[frame >> 3] |= 1 << (frame & 7)

    def dirty_start(self) -> None:
        with self._lock:
            self._dirty = bytearray(self.ram_bytes // FRAME // 8)

    def dirty_harvest(self) -> bytearray:
        with self._lock:
            assert self._dirty is not None, "harvest without start"
            out, self._dirty = self._dirty, bytearray(len(self._dirty))
            return out

    def dirty_stop(self) -> None:
        with self._lock:
            self._dirty = None


@dataclass
class _Wish:
    count: bool = False
    dirty_mb: float = 0
    flood: bool = False
    hello: bool = False
    triplefault: bool = False
    nopower: bool = False
    exit: int | None = None
    witness: str = ""

    @classmethod
    def parse(cls, append: str) -> _Wish:
        wish = cls()
        for word in append.split():
            name, _, value = word.partition("=")
            if name == "dirty":
                wish.dirty_mb = float(value)
            elif name == "exit":
                wish.exit = int(value)
            elif name == "witness":
                wish.witness = value
            elif name in ("count", "flood", "hello", "triplefault", "nopower"):
                setattr(wish, name, True)
        return wish


class FakeMachine:
    def __init__(self, config: pb.VmConfig, console: ConsoleWrite) -> None:
        if config.memory_bytes < 1 << 20:
            raise BadConfig("memory", f"{config.memory_bytes} bytes are too few")
        self.space = FakeSpace(config.memory_bytes)
        self.on_exit: Any = None
        self._console = console
        self._wish = _Wish.parse(config.append)
        self._state = threading.Condition()
        self._running = False
        self._moving = False             # the guest's thread is inside a tick
        self._over = False
        self._retired = 0
        self._dirty_next = 0
        self._thread: threading.Thread | None = None

    # ---- the face of node_agent.machine.Machine ------------------------------------------------------------

    def start(self, paused: bool = False) -> None:
        self._running = not paused
        self._thread = threading.Thread(target=self._live, name="vcpu-0", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        with self._state:
            self._running = False
            self._state.wait_for(lambda: not self._moving)

    def resume(self) -> None:
        with self._state:
            self._running = True
            self._state.notify_all()

    def power_button(self) -> None:
        if not self._wish.nopower:
            self._end(MachineExit(ExitKind.POWER_OFF))

    def reset(self) -> None:
        self.space.write(COUNT_AT, struct.pack("<Q", 0))

    def stop(self) -> None:
        with self._state:
            self._over = True
            self._state.notify_all()

    def close(self) -> None:
        pass

    def stats(self) -> MachineStats:
        return MachineStats(self._retired, {"HLT": self._retired // 10}, 0.0, self._retired)

    def console_input(self, data: bytes, channel: str = "ttyS0") -> None:
        self._console(channel, data)

    # ---- the guest -----------------------------------------------------------------------------------------

    def _live(self) -> None:
        if self._wish.hello:
            self._console("ttyS0", b"hello\n")
        if self._wish.triplefault:
            self._end(MachineExit(ExitKind.TRIPLE_FAULT, detail="rip=0xdead"))
        if self._wish.exit is not None:
            self._end(MachineExit(ExitKind.DEBUG_EXIT, self._wish.exit))
        while True:
            with self._state:
                self._state.wait_for(lambda: self._running or self._over)
                if self._over:
                    return
                self._moving = True
            self._tick()
            with self._state:
                self._moving = False
                self._state.notify_all()
            if not self._wish.flood:
                time.sleep(TICK_S)

    def _tick(self) -> None:
        self._retired += 1000
        if self._wish.count:
            (number,) = struct.unpack_from("<Q", self.space.memory, COUNT_AT)
            self._console("ttyS0", b"%d\n" % number)
            self.space.write(COUNT_AT, struct.pack("<Q", number + 1))
            if self._wish.witness:
                with open(self._wish.witness, "a") as file:
                    file.write(f"{number}\n")
        if self._wish.flood:
            self._console("ttyS0", b"x" * 4096)
        room = self.space.ram_bytes // FRAME - DIRTY_AT // FRAME
        for _ in range(int(self._wish.dirty_mb * 1e6 * TICK_S / FRAME)):
            self.space.write(DIRTY_AT + self._dirty_next % room * FRAME, struct.pack("<Q", self._retired))
            self._dirty_next += 1

    def _end(self, exit: MachineExit) -> None:
        self.stop()
        if self.on_exit is not None:
            self.on_exit(exit)


class FakeMachines:
    def create(self, config: pb.VmConfig, console: ConsoleWrite, rtc_epoch_s: int | None) -> FakeMachine:
        return FakeMachine(config, console)

    def boot(self, machine: FakeMachine) -> None:
        """Its kernel is its append line."""

    def save(self, machine: FakeMachine) -> bytes:
        return json.dumps({"retired": machine._retired, "dirty_next": machine._dirty_next}).encode()

    def load(self, machine: FakeMachine, state: bytes) -> None:
        values = json.loads(state)
        machine._retired, machine._dirty_next = values["retired"], values["dirty_next"]
