"""`virga vm console|log`: the serial port, live and kept.

Owns:    the terminal while attached: raw, and restored whatever happens.
Never:   interprets what the guest sends; bytes go to stdout as they are.
Threads: one reads the keyboard and feeds the request stream; the caller's prints.
"""

import os
import queue
import re
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from cli.errors import TIMED_OUT, CliError
from cli.options import Target, target_options

DETACH = b"\x1d"                 # Ctrl-], as telnet has it
QUIET_SECONDS = 1.0              # after a pipe's end: this long without output is the end


class Keyboard:
    """Standard input as console messages; ends at Ctrl-] or, for a pipe, when closed."""

    def __init__(self, opening: Any, make_input: Any, read_only: bool) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._queue.put(opening)
        self._make, self._read_only = make_input, read_only
        self._stop = threading.Event()
        self.ended = threading.Event()               # no more input comes
        self.detached = False

    def __iter__(self) -> Iterator[Any]:
        while (message := self._queue.get()) is not None:
            yield message

    def start(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def close(self) -> None:
        self._stop.set()
        self._queue.put(None)

    def send(self, data: bytes) -> None:
        self._queue.put(self._make(input=data))

    def _read(self) -> None:
        source = sys.stdin.fileno()
        while not self._stop.is_set():
            if not select.select([source], [], [], 0.2)[0]:
                continue
            data = os.read(source, 4096)
            before, detach, _ = data.partition(DETACH) if os.isatty(source) else (data, b"", b"")
            if before and not self._read_only:
                self.send(before)
            if detach or not data:
                self.detached = bool(detach)
                break
        self.ended.set()


@contextmanager
def raw_terminal() -> Iterator[None]:
    """Keys go through one by one, Ctrl-C too; nothing is changed where stdin is no terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin, termios.TCSANOW)          # what was typed ahead is kept
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@click.command()
@click.argument("name")
@click.option("--read-only", is_flag=True, help="Look on; leave the keyboard to others.")
@click.option("--steal", is_flag=True, help="Take the keyboard from whoever has it.")
@click.option("--send", metavar="TEXT", help="Send this line instead of reading the keyboard.")
@click.option("--until", metavar="REGEX", help="Leave when the output since then matches.")
@click.option("--timeout", type=click.FloatRange(min=0.1), default=30, show_default=True, metavar="S",
              help="With --until: give up after this long.")
@target_options
def console(target: Target, name: str, read_only: bool, steal: bool, send: str | None, until: str | None,
            timeout: float) -> None:
    """Attach to a VM's serial console. Ctrl-] leaves it; the VM goes on.

    With input from a pipe it sends that, and leaves when the output has been quiet for a second.
    """
    from virga.v1 import vm_pb2

    try:
        pattern = re.compile(until.encode()) if until else None
    except re.error as error:
        raise click.BadParameter(f"no regular expression: {error}", param_hint="--until") from None
    api = target.api()
    interactive = sys.stdin.isatty() and send is None and pattern is None
    opening = vm_pb2.ConsoleOpen(vm=name, writer=not read_only, steal=steal, replay_bytes=4096 if interactive else 0)
    keyboard = Keyboard(vm_pb2.ConsoleRequest(open=opening), vm_pb2.ConsoleRequest, read_only)
    call = api.open(api.vms.Console, iter(keyboard))
    session = Session(call, keyboard, pattern, timeout)
    greeting = f"attached to {name}; Ctrl-] leaves" if interactive else ""
    try:
        with raw_terminal():
            session.run(name, send, greeting)
    finally:
        keyboard.close()
        call.cancel()
    if session.timed_out:
        raise CliError("timed_out", f"{name} did not print {until!r} within {timeout:g} s", TIMED_OUT, f"virga vm log {name}")
    if interactive:
        print(f"\ndetached from {name}; it goes on" if keyboard.detached else f"\nthe console of {name} ended", file=sys.stderr)


class Session:
    """One attachment: output to stdout until it ends, the keyboard detaches, a pattern matches or it goes quiet."""

    def __init__(self, call: Any, keyboard: Keyboard, pattern: "re.Pattern[bytes] | None", timeout_s: float) -> None:
        self._call, self._keyboard, self._pattern = call, keyboard, pattern
        self._until = time.monotonic() + timeout_s if pattern else None
        self._seen = bytearray()
        self._last = time.monotonic()
        self.timed_out = False
        self._over = False

    def run(self, name: str, send: str | None, greeting: str) -> None:
        import grpc

        from cli.errors import from_rpc

        watcher = threading.Thread(target=self._watch, args=(send is not None,), daemon=True)
        try:
            for message in self._call:
                if message.attached:
                    if greeting:
                        print(greeting, end="\r\n", file=sys.stderr, flush=True)      # the terminal is raw by now
                    if send is not None:
                        self._keyboard.send(send.encode() + b"\n")
                        self._keyboard.ended.set()
                    elif self._pattern is None or not sys.stdin.isatty():
                        self._keyboard.start()
                    self._last = time.monotonic()
                    watcher.start()
                self._show(message.output)
                if self._over:
                    return
        except grpc.RpcError as error:
            if not self._over:
                raise from_rpc(error, name) from None

    def _show(self, data: bytes) -> None:
        if not data:
            return
        self._last = time.monotonic()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        if self._pattern:
            self._seen += data
            if self._pattern.search(self._seen):
                self._over = True
            del self._seen[:-65536]

    def _watch(self, sent: bool) -> None:
        """Ends the call for reasons that don't come with output."""
        while not self._over:
            time.sleep(0.05)
            now = time.monotonic()
            if self._until and now > self._until:
                self.timed_out = self._over = True
            elif self._keyboard.ended.is_set() and not self._pattern:
                piped = sent or not sys.stdin.isatty()
                self._over = self._keyboard.detached or not piped or now - self._last > QUIET_SECONDS
        self._call.cancel()


@click.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, over restarts and migrations.")
@click.option("--tail", type=click.IntRange(min=1), metavar="BYTES", help="Only the last bytes.")
@target_options
def log(target: Target, name: str, follow: bool, tail: int | None) -> None:
    """What the serial console printed, also after the VM stopped."""
    from cli import waiting
    from virga.v1 import vm_pb2

    api = target.api()
    request = vm_pb2.StreamLogRequest(vm=name, follow=follow, tail_bytes=tail or 0)
    with waiting.detachable("the VM goes on", f"virga vm log -f {name}"):
        for message in api.stream(api.vms.StreamLog, request, name):
            sys.stdout.buffer.write(message.data)
            sys.stdout.buffer.flush()


VERBS = (console, log)
