"""Which process is which: pid and start time together name one process for as long as the host is up.

Owns:    what /proc says of a process' birth and of the host's boot.
Never:   signals by pid alone.
Threads: any.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessId:
    pid: int
    start_time: int          # clock ticks after boot: field 22 of /proc/PID/stat (proc(5))

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        start = start_time(pid)
        return None if start is None else cls(pid, start)

    @classmethod
    def mine(cls) -> ProcessId:
        me = cls.of(os.getpid())
        assert me is not None, "/proc is not mounted"
        return me

    def alive(self) -> bool:
        """A zombie is not alive: nothing of its guest moves any more."""
        return self.pid > 0 and start_time(self.pid) == self.start_time

    def signal(self, number: int) -> bool:
        """Send through a pidfd opened before the check, so that a reused pid is never hit."""
        try:
            fd = os.pidfd_open(self.pid)
        except (ProcessLookupError, PermissionError, ValueError):
            return False
        try:
            if not self.alive():
                return False
            signal.pidfd_send_signal(fd, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)

    def wait_gone(self, timeout_s: float) -> bool:
        """Poll until it is gone; for synchronous callers that have nothing else to do."""
        end = time.monotonic() + timeout_s
        while self.alive():
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True


def start_time(pid: int) -> int | None:
    """Start time of a living process; None where it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2:].split()      # the command's name may hold spaces and brackets
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
