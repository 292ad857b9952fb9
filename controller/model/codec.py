"""Records to JSON and back.

Owns:    the form of every value in etcd: one JSON object per record, defaults left out.
Never:   I/O; knows any particular record.
Threads: pure functions.

A field that a record doesn't know is ignored, one that is missing has its default: so that a controller can read what
the version before and the version after it wrote.
"""

import dataclasses
import enum
import json
import types
import typing
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


class BadRecord(Exception):
    """The bytes are no record of this type."""


def encode(record: Any, nonce: str = "") -> bytes:
    """The nonce makes a write recognisable as one's own, even where the record is the same."""
    plain = _plain(record)
    if nonce:
        plain["_w"] = nonce
    return json.dumps(plain, separators=(",", ":"), sort_keys=True).encode()


def decode(kind: type[T], data: bytes) -> T:
    try:
        return typing.cast(T, _record(kind, json.loads(data)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadRecord(f"no {kind.__name__}: {error}") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(item) for field in dataclasses.fields(value)
                if (item := getattr(value, field.name)) != field.default}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _record(kind: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"an object was expected for {kind.__name__}")
    hints = _hints(kind)
    return kind(**{field.name: _value(hints[field.name], value[field.name])
                   for field in dataclasses.fields(kind) if field.name in value})


def _value(hint: Any, value: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:                                # only `X | None` occurs
        return None if value is None else _value(typing.get_args(hint)[0], value)
    if origin is tuple:
        return tuple(_value(typing.get_args(hint)[0], item) for item in value)
    if origin is dict:
        return {str(key): _value(typing.get_args(hint)[1], item) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return _record(hint, value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ValueError(f"{value!r} is no {hint.__name__}")
    return value
