"""The agent's log: JSON lines, with node and VM; readable on a terminal.

Owns:    the format.
Never:   blocks on anything but stderr.
Threads: any.
"""

from __future__ import annotations

import json
import logging
import sys
import time


class _Json(logging.Formatter):
    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "node": self._node,
                "logger": record.name, "message": record.getMessage()}
        if vm := getattr(record, "vm", ""):
            line["vm"] = vm
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        vm = getattr(record, "vm", "")
        text = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.levelname:7} " \
               f"{vm + ': ' if vm else ''}{record.getMessage()}"
        return text + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def set_up(node: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain() if sys.stderr.isatty() else _Json(node))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
