"""What a VM keeps on its node's disk.

    STATE/vms/<uid>/vm.pb         VmRecord, by the agent, before the process exists
                    process.pb    ProcessRecord, by the VM process once it holds the lock
                    end.pb        End, by the VM process, or by the zygote where it could not
                    console       the ring (node_agent.console.ring)
                    log           stderr of the process
                    lock          held (flock) by the process for all its life: there is never a second one
                    ran           there as soon as the guest may have executed an instruction here
                    sock          its control socket

A record is "VIRGA" and a format byte, the CRC-32 and the length of the body, the body. It is replaced as a whole
(write, fsync, rename), so a reader sees the old one or the new one; whatever else it sees is a CorruptRecord, which
concerns that VM alone.

Owns:    names in the folder, and the records' bytes.
Never:   deletes what it cannot read.
Threads: any; one writer per record.
"""

from __future__ import annotations

import os
import re
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from virga.vmm.v1 import vmm_pb2 as pb

MAGIC = b"VIRGA\x01"
_HEADER = struct.Struct(">6sII")
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

M = TypeVar("M", bound=Message)


class CorruptRecord(Exception):
    """A state file that is not what was written. The file is left alone."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


def write_atomically(path: Path, data: bytes, mode: int = 0o600, durable: bool = True) -> None:
    """Replace `path` as a whole; OSError (a full disk) leaves the old file as it was.

    durable=False: survives every process, but perhaps not the host.
    """
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if not durable:
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_record(path: Path, message: Message, durable: bool = True) -> None:
    body = message.SerializeToString()
    write_atomically(path, _HEADER.pack(MAGIC, zlib.crc32(body), len(body)) + body, durable=durable)


def read_record(path: Path, kind: type[M]) -> M | None:
    """None where there is no such file. Raises CorruptRecord."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorruptRecord(path, error.strerror or str(error)) from error
    if len(data) < _HEADER.size:
        raise CorruptRecord(path, f"has {len(data)} bytes, too few for a record")
    magic, crc, length = _HEADER.unpack_from(data)
    body = data[_HEADER.size:]
    if magic != MAGIC:
        raise CorruptRecord(path, "does not begin as a record of this version")
    if length != len(body) or crc != zlib.crc32(body):
        raise CorruptRecord(path, "its checksum does not fit")
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise CorruptRecord(path, f"not a {kind.__name__}") from error


@dataclass(frozen=True)
class VmFolder:
    path: Path

    @classmethod
    def under(cls, state: Path, uid: str) -> VmFolder:
        if not _UID.fullmatch(uid):
            raise ValueError(f"{uid!r} is no uid")
        return cls(state / "vms" / uid)

    @property
    def uid(self) -> str:
        return self.path.name

    @property
    def record_file(self) -> Path:
        return self.path / "vm.pb"

    @property
    def process_file(self) -> Path:
        return self.path / "process.pb"

    @property
    def end_file(self) -> Path:
        return self.path / "end.pb"

    @property
    def console(self) -> Path:
        return self.path / "console"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def ran(self) -> Path:
        return self.path / "ran"

    @property
    def socket(self) -> Path:
        return self.path / "sock"

    def record(self) -> pb.VmRecord | None:
        return read_record(self.record_file, pb.VmRecord)

    def process(self) -> pb.ProcessRecord | None:
        return read_record(self.process_file, pb.ProcessRecord)

    def end(self) -> pb.End | None:
        return read_record(self.end_file, pb.End)
