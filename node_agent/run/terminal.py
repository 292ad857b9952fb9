"""The terminal of `virga run`: raw while the machine runs, restored whatever happens; Ctrl-A is the escape.

    Ctrl-A X    leave           Ctrl-A Ctrl-A    one Ctrl-A to the guest

Owns:    stdin's mode, and the thread that reads it.
Never:   loses the guest's output; input that the guest doesn't take waits here.
Threads: `write` from the machine's threads; the reader is its own.
"""

from __future__ import annotations

import errno
import os
import termios
import threading
import tty
from collections.abc import Callable

ESCAPE = 0x01
RETRY_S = 0.02


class EscapeFilter:
    """Bytes from the keyboard to bytes for the guest; `left` once Ctrl-A X was typed."""

    def __init__(self) -> None:
        self._escaped = False
        self.left = False

    def feed(self, data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            if self._escaped:
                self._escaped = False
                if byte in b"xX":
                    self.left = True
                    break
                if byte == ESCAPE:
                    out.append(byte)
            elif byte == ESCAPE:
                self._escaped = True
            else:
                out.append(byte)
        return bytes(out)


class Terminal:
    """`send` offers input to the guest and says how much it took; `leave` is called for Ctrl-A X."""

    def __init__(self, send: Callable[[bytes], int], leave: Callable[[], None], stdin: int = 0, stdout: int = 1) -> None:
        self._send = send
        self._leave = leave
        self._stdin = stdin
        self._stdout = stdout
        self._saved: list | None = None
        self.lost: OSError | None = None
        self._over = threading.Event()

    def __enter__(self) -> Terminal:
        if os.isatty(self._stdin):
            self._saved = termios.tcgetattr(self._stdin)
            tty.setraw(self._stdin, termios.TCSANOW)
        threading.Thread(target=self._read, name="stdin", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._saved is not None:
            termios.tcsetattr(self._stdin, termios.TCSADRAIN, self._saved)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._stdout, view):]
            except BlockingIOError:
                self._over.wait(RETRY_S)
            except OSError as error:
                # a reader that went away is as if one had left; anything else is output lost
                self.lost = None if error.errno == errno.EPIPE else error
                self._leave()
                return

    def _read(self) -> None:
        keys = EscapeFilter()
        while not self._over.is_set():
            try:
                data = os.read(self._stdin, 4096)
            except OSError:
                return
            if not data:                     # the end of a pipe: the machine goes on
                return
            left = keys.feed(data) if self._saved is not None else data
            while left and not self._over.is_set():
                left = left[self._send(left):]
                if left:
                    self._over.wait(RETRY_S)
            if keys.left:
                self._leave()
                return
