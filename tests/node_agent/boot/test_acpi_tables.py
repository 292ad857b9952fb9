"""The ACPI tables: checksums and pointers, and what iasl says of them where it is installed."""

from __future__ import annotations

import shutil
import struct
import subprocess

import pytest

from node_agent.boot import acpi_tables, aml


class Memory:
    def __init__(self) -> None:
        self.ram = bytearray(1 << 20)

    def write(self, gpa, data) -> None:
        self.ram[gpa:gpa + len(data)] = data


@pytest.fixture
def tables():
    """All tables by signature, found as a system finds them: RSDP, XSDT, FADT."""
    memory = Memory()
    rsdp = acpi_tables.install(memory, 3)
    ram = memory.ram

    def table(at):
        (size,) = struct.unpack_from("<I", ram, at + 4)
        return bytes(ram[at:at + size])

    assert ram[rsdp:rsdp + 8] == b"RSD PTR " and rsdp % 16 == 0
    assert sum(ram[rsdp:rsdp + 20]) & 0xFF == 0 and sum(ram[rsdp:rsdp + 36]) & 0xFF == 0
    rsdt, = struct.unpack_from("<I", ram, rsdp + 16)
    xsdt, = struct.unpack_from("<Q", ram, rsdp + 24)
    pointers = struct.unpack("<2Q", table(xsdt)[36:])
    assert pointers == struct.unpack("<2I", table(rsdt)[36:])
    found = {table(at)[:4]: table(at) for at in (rsdt, xsdt, *pointers)}
    facs, dsdt = struct.unpack_from("<II", found[b"FACP"], 36)
    assert ram[facs:facs + 4] == b"FACS" and facs % 64 == 0
    return found | {b"DSDT": table(dsdt)}


def test_every_checksum_is_right(tables):
    assert set(tables) == {b"RSDT", b"XSDT", b"FACP", b"APIC", b"DSDT"}
    for data in tables.values():
        assert sum(data) & 0xFF == 0


def test_the_madt_lists_every_processor(tables):
    entries, at, data = [], 44, tables[b"APIC"]
    while at < len(data):
        entries.append(data[at:at + data[at + 1]])
        at += data[at + 1]
    assert [entry[3] for entry in entries if entry[0] == 0] == [0, 1, 2]
    assert at == len(data)


@pytest.mark.skipif(not shutil.which("iasl"), reason="iasl is not installed")
@pytest.mark.parametrize("signature", [b"FACP", b"APIC", b"DSDT"])
def test_iasl_reads_and_compiles_it(tables, signature, tmp_path):
    (tmp_path / "table.aml").write_bytes(tables[signature])
    subprocess.run(["iasl", "-d", "table.aml"], cwd=tmp_path, check=True, capture_output=True)
    source = (tmp_path / "table.dsl").read_text()
    assert "Invalid" not in source and "Incorrect checksum" not in source
    done = subprocess.run(["iasl", "table.dsl"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("size", [0, 62, 63, 64, 4093, 4094, 4095, 4096, 100_000])
def test_package_lengths_count_themselves(size):
    encoded = aml.package_length(size)
    extra = encoded[0] >> 6
    value = encoded[0] & 0x3F if not extra else encoded[0] & 0x0F | int.from_bytes(encoded[1:], "little") << 4
    assert len(encoded) == 1 + extra and value == size + len(encoded)


def test_names_and_numbers():
    assert aml.eisa_id("PNP0A03") == bytes.fromhex("0c41d00a03")
    assert aml.path("\\_SB") == b"\\_SB_"
    assert [aml.integer(value)[0] for value in (0, 1, 2, 0x100, 0x10000, 1 << 32)] == [0, 1, 0x0A, 0x0B, 0x0C, 0x0E]
