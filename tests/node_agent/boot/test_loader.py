"""Kernel files of each kind, made here, into a fake memory; and everything that is none."""

from __future__ import annotations

import gzip
import lzma
import struct
import tracemalloc

import lz4.block
import pytest
import zstandard

from node_agent.boot import layout
from node_agent.boot.layout import BootError
from node_agent.boot.loader import load_kernel
from node_agent.boot.unpack import UnpackError, unpack

MIB = 1 << 20


class Memory:
    def __init__(self, size: int = 64 * MIB) -> None:
        self.ram_bytes = size
        self.ram = bytearray(size)

    def write(self, gpa, data) -> None:
        if gpa + len(data) > self.ram_bytes:
            raise ValueError("not RAM")
        self.ram[gpa:gpa + len(data)] = data

    def read(self, gpa, size) -> bytes:
        return bytes(self.ram[gpa:gpa + size])


def elf64(code: bytes = b"\xF4" * 64, paddr: int = 0x1000000, entry: int | None = None, memory_size: int = 4096) -> bytes:
    header = struct.pack("<4s5B7xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 0, 2, 62, 1, entry or paddr, 64, 0, 0, 64, 56, 1,
                         0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 7, 120, 0xFFFFFFFF81000000, paddr, len(code), memory_size, 4096) + code


def elf32(code: bytes, paddr: int = 0x100000) -> bytes:
    header = struct.pack("<4s5B7xHHIIIIIHHHHHH", b"\x7fELF", 1, 1, 1, 0, 0, 2, 3, 1, paddr, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    return header + struct.pack("<IIIIIIII", 1, 84, paddr, paddr, len(code), len(code) + 64, 7, 4096) + code


def multiboot(flags: int = 3, code: bytes = b"\xF4" * 16) -> bytes:
    return elf32(struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF) + code)


def lz4_legacy(data: bytes) -> bytes:
    out = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[at:at + (8 << 20)], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out + struct.pack("<I", len(data))


PACKERS = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data) + struct.pack("<I", len(data)),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE) + struct.pack("<I", len(data)),
    "zstd": lambda data: zstandard.compress(data) + struct.pack("<I", len(data)),
    "lz4": lz4_legacy,
}


def bzimage(payload: bytes, version: int = 0x20F, xloadflags: int = 1) -> bytes:
    setup = bytearray(1024)
    setup[0x1F1] = 1
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x201] = 0x6A
    setup[0x202:0x206] = b"HdrS"
    for offset, fmt, value in ((0x206, "<H", version), (0x22C, "<I", 0x7FFFFFFF), (0x230, "<I", 0x200000),
                               (0x236, "<H", xloadflags), (0x238, "<I", 2047), (0x248, "<I", 0x100),
                               (0x24C, "<I", len(payload)), (0x258, "<Q", 0x1000000), (0x260, "<I", 0x10000)):
        struct.pack_into(fmt, setup, offset, value)
    return bytes(setup) + bytes(0x100) + payload


@pytest.fixture
def memory():
    return Memory()


@pytest.fixture
def boot(memory, tmp_path):
    def load(data: bytes, **more):
        path = tmp_path / "kernel"
        path.write_bytes(data)
        options = {"cpus": 1, "initrd": None, "append": "", "modules": (), "cache": tmp_path / "cache"} | more
        return load_kernel(memory, kernel=str(path), **options)
    return load


def test_vmlinux_in_long_mode(boot, memory):
    state = boot(elf64(b"kernel!!"), append="console=ttyS0")
    assert memory.read(0x1000000, 9) == b"kernel!!\0"
    assert state.fields["GUEST_RIP"] == 0x1000000 and state.fields["GUEST_IA32_EFER"] == 0x500
    page = memory.read(state.registers["rsi"], 4096)
    assert page[0x202:0x206] == b"HdrS" and page[0x1FE:0x200] == b"\x55\xaa"
    (command_line,) = struct.unpack_from("<I", page, 0x228)
    assert memory.read(command_line, 14) == b"console=ttyS0\0"


def test_identity_tables_map_four_gib(boot, memory):
    cr3 = boot(elf64()).fields["GUEST_CR3"]
    for gva in (0, 0x1234567, 0xC0000000, 0xFFFFFFFF):
        (pdpt,) = struct.unpack("<Q", memory.read(cr3, 8))
        (directory,) = struct.unpack("<Q", memory.read((pdpt & ~0xFFF) + 8 * (gva >> 30), 8))
        (entry,) = struct.unpack("<Q", memory.read((directory & ~0xFFF) + 8 * (gva >> 21 & 511), 8))
        assert entry & 0x83 == 0x83 and (entry & ~0x1FFFFF) == (gva & ~0x1FFFFF)


def test_an_entry_given_as_virtual_address(boot):
    assert boot(elf64(entry=0xFFFFFFFF81000010)).fields["GUEST_RIP"] == 0x1000010


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS.keys())
def test_bzimage_is_unpacked_once(boot, memory, tmp_path, packer):
    image = bzimage(packer(elf64(b"unpacked")))
    assert boot(image).fields["GUEST_RIP"] == 0x1000000
    assert memory.read(0x1000000, 8) == b"unpacked"
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_bytes(elf64(b"cached!!"))
    boot(image)
    assert memory.read(0x1000000, 8) == b"cached!!"


def test_a_cache_that_cannot_be_written_is_no_obstacle(boot, memory, tmp_path):
    (tmp_path / "cache").write_bytes(b"a file")
    boot(bzimage(gzip.compress(elf64(b"unpacked"))))
    assert memory.read(0x1000000, 8) == b"unpacked"


def test_an_unknown_packing_unpacks_itself(boot, memory):
    state = boot(bzimage(b"\x89LZO" + bytes(100)))
    assert state.fields["GUEST_RIP"] == 0x1000200


def test_initrd_lies_high_and_is_told(boot, memory, tmp_path):
    (tmp_path / "initrd").write_bytes(b"cpio" * 2000)
    state = boot(elf64(), initrd=str(tmp_path / "initrd"))
    where, size = struct.unpack_from("<II", memory.read(state.registers["rsi"], 4096), 0x218)
    assert size == 8000 and where % 4096 == 0 and where + size <= memory.ram_bytes
    assert memory.read(where, size) == b"cpio" * 2000


def test_the_memory_map_covers_all_memory_and_no_more(boot):
    for size in (2 * MIB, 64 * MIB, 3 << 30, 5 << 30):
        entries = layout.memory_map(size)
        usable = sum(entry.size for entry in entries if entry.kind == layout.E820_RAM)
        holes = 0x100000 - layout.EBDA
        assert usable == size - holes
        for first, second in zip(entries, entries[1:], strict=False):
            assert first.first + first.size <= second.first


def test_multiboot_information(boot, memory, tmp_path):
    (tmp_path / "module").write_bytes(b"module data")
    state = boot(multiboot(), append="count fast", modules=(f"{tmp_path / 'module'} with words",))
    assert state.registers["rax"] == 0x2BADB002 and state.fields["GUEST_RIP"] == 0x100000
    assert state.fields["GUEST_CR0"] & 0x80000001 == 1
    info = memory.read(state.registers["rbx"], 116)
    flags, _, upper, _, command, count, modules = struct.unpack_from("<7I", info)
    assert flags & 0x4D == 0x4D and upper == 63 * 1024 and count == 1
    assert memory.read(command, 300).split(b"\0")[0].endswith(b" count fast")
    first, end, string, _ = struct.unpack("<4I", memory.read(modules, 16))
    assert memory.read(first, end - first) == b"module data" and first % 4096 == 0
    assert memory.read(string, 300).split(b"\0")[0].endswith(b"with words")
    length, at = struct.unpack_from("<II", info, 44)
    size, base, extent, kind = struct.unpack("<IQQI", memory.read(at, 24))
    assert (size, base, extent, kind, length % 24) == (20, 0, layout.EBDA, 1, 0)


def test_a_kernel_packed_as_a_whole(boot):
    assert boot(gzip.compress(multiboot())).registers["rax"] == 0x2BADB002
    with pytest.raises(BootError, match="truncated"):
        boot(gzip.compress(multiboot())[:-20])


def test_multiboot_by_addresses(boot, memory):
    header = struct.pack("<IIIIIIII", 0x1BADB002, 0x10000, -(0x1BADB002 + 0x10000) & 0xFFFFFFFF,
                         0x200000, 0x200000, 0x200000 + 48, 0x200100, 0x200020)
    state = boot(header + b"flat program....")
    assert memory.read(0x200020, 12) == b"flat program" and state.fields["GUEST_RIP"] == 0x200020


@pytest.mark.parametrize("data, why", [
    (b"", "is empty"),
    (b"#!/bin/sh\necho hello\n" * 100, "is no kernel"),
    (elf64()[:100], "truncated"),
    (elf64()[:150], "truncated"),
    (multiboot()[:80], "is"),
    (elf64(paddr=1 << 30), "needs memory up to 1024 MiB"),
    (elf64(paddr=0xE0000), "BIOS area"),
    (elf32(b"\xF4" * 64), "without a multiboot header"),
    (bzimage(gzip.compress(elf64()))[:-50], "truncated"),
    (bzimage(gzip.compress(elf64())[:-20]), "truncated"),
    (bzimage(gzip.compress(b"no kernel in here" * 10)), "no ELF"),
    (bzimage(gzip.compress(elf64()), version=0x0206), "without a 64-bit entry"),
    (bzimage(gzip.compress(elf64()), xloadflags=0), "without a 64-bit entry"),
    (multiboot(flags=0x0008), "multiboot features"),
], ids=range(14))
def test_what_is_no_kernel_is_told_so(boot, data, why):
    with pytest.raises(BootError, match=why):
        boot(data)


def test_files_that_are_not_there(boot, memory, tmp_path):
    with pytest.raises(BootError, match="No such file"):
        load_kernel(memory, 1, str(tmp_path / "none"), None, "", (), tmp_path)
    with pytest.raises(BootError, match="No such file"):
        boot(elf64(), initrd=str(tmp_path / "none"))
    with pytest.raises(BootError, match="Is a directory"):
        load_kernel(memory, 1, str(tmp_path), None, "", (), tmp_path)


def test_an_initrd_too_large(boot, tmp_path):
    (tmp_path / "initrd").write_bytes(bytes(50 * MIB))
    with pytest.raises(BootError, match="don't fit in 64 MiB"):
        boot(elf64(), initrd=str(tmp_path / "initrd"))


def test_a_command_line_too_long(boot):
    with pytest.raises(BootError, match="2047 bytes"):
        boot(elf64(), append="x" * 3000)


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS.keys())
def test_a_damaged_payload_is_an_error_of_ours(packer):
    packed = bytearray(packer(elf64(bytes(range(256)) * 64)))
    for at in range(8, len(packed), 7):
        damaged = bytes(packed[:at]) + bytes([packed[at] ^ 0x55]) + bytes(packed[at + 1:])
        try:
            unpack(damaged)
        except UnpackError:
            continue


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS.keys())
def test_a_few_packed_bytes_cannot_fill_the_hosts_memory(packer, monkeypatch):
    monkeypatch.setattr("node_agent.boot.unpack.MAX_KERNEL_BYTES", 1 << 20)
    packed = packer(bytes(32 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(UnpackError, match="larger than 1 MiB"):
            unpack(packed)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20     # dictionaries, and blocks of LZ4, are 8 MiB
    finally:
        tracemalloc.stop()
