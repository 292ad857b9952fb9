"""What names may look like.

Owns:    the patterns.
Never:   knows what exists.
Threads: pure functions.
"""

import re

from controller.errors import BadField

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
IMAGE_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
SHA256 = re.compile(r"[0-9a-f]{64}")


def check(field: str, name: str, pattern: re.Pattern[str] = NAME) -> str:
    if not name:
        raise BadField(field, "is missing")
    if not pattern.fullmatch(name):
        raise BadField(field, f"{name[:80]!r} must match {pattern.pattern}")
    return name


def check_request_id(request_id: str) -> None:
    if request_id:
        check("request_id", request_id, REQUEST_ID)
