"""`virga run`: builds a machine, gives it this terminal, and leaves with what became of it.

Owns:    exit statuses and the statistics' file.
Never:   leaves a terminal raw.
Threads: the main one waits; signals end the machine.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path

from node_agent.boot.layout import BootError
from node_agent.machine.spec import ExitKind, MachineExit, MachineSpec, SpecError
from node_agent.run.arguments import machine_spec, parser
from node_agent.run.terminal import Terminal

EXIT_TIMEOUT, EXIT_FAILURE, EXIT_TRIPLE_FAULT = 124, 126, 254
SHOWN = ("ttyS0", "hvc0", "debug")


def exit_status(end: MachineExit) -> int:
    """As QEMU's isa-debug-exit for debug exits; the shell sees eight bits of it."""
    if end.kind is ExitKind.DEBUG_EXIT:
        return (end.value << 1 | 1) & 0xFF
    return {ExitKind.TRIPLE_FAULT: EXIT_TRIPLE_FAULT, ExitKind.FAILURE: EXIT_FAILURE}.get(end.kind, 0)


class Session:
    """One run: the machine, and why it was left before its end, if it was."""

    def __init__(self, spec: MachineSpec) -> None:
        from node_agent.machine.machine import Machine       # vcpu is heavy: not for --help

        self._status: int | None = None
        self._left = threading.Event()
        self.machine = Machine(spec, self._output)
        self.machine.on_exit = lambda _: self._left.set()
        self.terminal = Terminal(self._input, lambda: self.leave(0))
        self._speaker = "ttyS0"

    def _output(self, channel: str, data: bytes) -> None:
        if channel in SHOWN:
            if channel != "debug":
                self._speaker = channel
            self.terminal.write(data)

    def _input(self, data: bytes) -> int:
        """To the console that spoke last, so that console=hvc0 works as well."""
        return self.machine.console_input(data, self._speaker)

    def leave(self, status: int) -> None:
        self._status = status
        self._left.set()

    def run(self, timeout_s: float | None) -> int:
        self.machine.boot()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda number, _: self.leave(128 + number))
        with self.terminal:
            self.machine.start()
            if not self._left.wait(timeout_s):
                self.leave(EXIT_TIMEOUT)
            self.machine.stop()
        if self._status == EXIT_TIMEOUT:
            print(f"virga run: stopped after {timeout_s:g} s", file=sys.stderr)
        if self.terminal.lost:
            raise self.terminal.lost
        end = self.machine.wait(0)
        if self._status is not None and end.kind is ExitKind.STOPPED:
            return self._status
        if end.detail:
            print(f"virga: {end.kind.value}: {end.detail}", file=sys.stderr)
        return exit_status(end)


def write_stats(path: str, session: Session, wall_seconds: float) -> None:
    stats = session.machine.stats()
    content = {"retired_instructions": stats.retired_instructions, "exits": stats.exits,
               "engine_seconds": round(stats.engine_seconds, 6), "wall_seconds": round(wall_seconds, 6),
               "guest_seconds": stats.guest_ns / 1e9, "resets": stats.resets}
    Path(path).write_text(json.dumps(content, indent=1) + "\n")


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    start_s = time.monotonic()
    try:
        session = Session(machine_spec(arguments, int(time.time())))
        try:
            status = session.run(arguments.timeout)
            if arguments.stats:
                write_stats(arguments.stats, session, time.monotonic() - start_s)
        finally:
            session.machine.close()
        return status
    except (SpecError, BootError, OSError, MemoryError) as error:
        print(f"virga run: {error}", file=sys.stderr)
    return EXIT_FAILURE
