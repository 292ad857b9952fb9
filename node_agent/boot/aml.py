"""Encoder for the little AML that our DSDT needs. Source: ACPI 6.5 §20.2; resource descriptors §6.4.

Every function gives bytes; they nest as in ASL:  device("COM1", name("_HID", eisa_id("PNP0501")), …)

Owns:    the encodings.
Never:   knows the machine.
"""

from __future__ import annotations

import struct

NAME_OP, PACKAGE_OP, BUFFER_OP, SCOPE_OP, EXT_OP, DEVICE_OP = 0x08, 0x12, 0x11, 0x10, 0x5B, 0x82
MEMORY, IO, BUS = 0, 1, 2
MIN_MAX_FIXED = 0x0C


def integer(value: int) -> bytes:
    if value in (0, 1):
        return bytes([value])
    for prefix, fmt, limit in ((0x0A, "<B", 1 << 8), (0x0B, "<H", 1 << 16), (0x0C, "<I", 1 << 32), (0x0E, "<Q", 1 << 64)):
        if value < limit:
            return bytes([prefix]) + struct.pack(fmt, value)
    raise ValueError(f"{value:#x} has more than 64 bits")


def package_length(size: int) -> bytes:
    """The length in front of `size` bytes counts itself (§20.2.4)."""
    for extra in range(4):
        total = size + 1 + extra
        if total < (64 if extra == 0 else 1 << 4 + 8 * extra):
            if extra == 0:
                return bytes([total])
            return bytes([extra << 6 | total & 0xF]) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"{size} bytes are too long for AML")


def path(text: str) -> bytes:
    """A name path: `\\` or segments of up to four letters, joined by dots."""
    prefix, rest = (b"\\", text[1:]) if text.startswith("\\") else (b"", text)
    segments = [segment.ljust(4, "_").encode() for segment in rest.split(".") if segment]
    counts = {0: b"\0", 1: b"", 2: b"\x2e"}
    return prefix + counts.get(len(segments), b"\x2f" + bytes([len(segments)])) + b"".join(segments)


def name(text: str, value: bytes) -> bytes:
    return bytes([NAME_OP]) + path(text) + value


def scope(text: str, *body: bytes) -> bytes:
    inner = path(text) + b"".join(body)
    return bytes([SCOPE_OP]) + package_length(len(inner)) + inner


def device(text: str, *body: bytes) -> bytes:
    inner = path(text) + b"".join(body)
    return bytes([EXT_OP, DEVICE_OP]) + package_length(len(inner)) + inner


def package(*items: bytes) -> bytes:
    inner = bytes([len(items)]) + b"".join(items)
    return bytes([PACKAGE_OP]) + package_length(len(inner)) + inner


def buffer(data: bytes) -> bytes:
    inner = integer(len(data)) + data
    return bytes([BUFFER_OP]) + package_length(len(inner)) + inner


def eisa_id(text: str) -> bytes:
    """"PNP0A03" as the compressed 32-bit number (§19.3.4)."""
    letters = sum((ord(letter) & 0x1F) << shift for letter, shift in zip(text[:3], (10, 5, 0), strict=True))
    value = letters << 16 | int(text[3:], 16)
    return bytes([0x0C]) + value.to_bytes(4, "big")


def resources(*items: bytes) -> bytes:
    return buffer(b"".join(items) + b"\x79\0")


def io_ports(first: int, count: int) -> bytes:
    return struct.pack("<BBHHBB", 0x47, 1, first, first, 1, count)


def irq(number: int) -> bytes:
    return struct.pack("<BH", 0x22, 1 << number)


def window(kind: int, first: int, end: int, type_flags: int) -> bytes:
    """A produced address space [first, end), in the narrowest form that holds it."""
    last, size = end - 1, end - first
    if kind != MEMORY:
        return struct.pack("<BHBBBHHHHH", 0x88, 13, kind, MIN_MAX_FIXED, type_flags, 0, first, last, 0, size)
    if end <= 1 << 32:
        return struct.pack("<BHBBBIIIII", 0x87, 23, kind, MIN_MAX_FIXED, type_flags, 0, first, last, 0, size)
    return struct.pack("<BHBBBQQQQQ", 0x8A, 43, kind, MIN_MAX_FIXED, type_flags, 0, first, last, 0, size)
