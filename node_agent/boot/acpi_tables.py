"""The machine's ACPI tables: RSDP, RSDT, XSDT, FADT, FACS, MADT, DSDT. Source: ACPI 6.5 §5.2; AML from aml.py.

What they say must be what the devices do: the constants come from there.

Owns:    the bytes at layout.ACPI.
Never:   changes after boot.
"""

from __future__ import annotations

import struct

from node_agent.boot import aml, layout
from node_agent.devices import acpi_pm
from node_agent.devices.ioapic import Ioapic
from node_agent.devices.pci.host import RESET_CONTROL

OEM, TABLE, CREATOR = b"VIRGA ", b"VIRGAPC ", b"VRGA"
SCI_IRQ, TIMER_IRQ = 9, 0
PCI_IRQS = (10, 11)                    # INTx of device n: PCI_IRQS[n & 1]
LEVEL_HIGH = 0x000D                    # MADT override: active high, level
LOCAL_APIC = 0xFEE00000
FADT_FLAGS = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 10      # WBINVD, C1, no sleep button, RTC not fixed, reset register
BOOT_ARCH = 1 << 0 | 1 << 1 | 1 << 2                          # legacy devices, 8042, no VGA
RESET_VALUE = 0x06
SPACE_IO = 1


def pci_irq(device: int) -> int:
    return PCI_IRQS[device & 1]


def checksummed(data: bytearray, at: int, size: int | None = None) -> bytearray:
    data[at] = 0
    data[at] = -sum(data[:size]) & 0xFF
    return data


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    header = struct.pack("<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, OEM, TABLE, 1, CREATOR, 1)
    return bytes(checksummed(bytearray(header + body), 9))


def generic_address(port: int, bits: int) -> bytes:
    return struct.pack("<BBBBQ", SPACE_IO, bits, 0, 0, port)


def fadt(facs: int, dsdt: int) -> bytes:
    """Revision 3, 244 bytes, by offset (§5.2.9)."""
    data = bytearray(244)

    def put(offset: int, fmt: str, value: int) -> None:
        struct.pack_into(fmt, data, offset, value)

    base = acpi_pm.PM_BASE
    put(36, "<I", facs)
    put(40, "<I", dsdt)
    put(46, "<H", SCI_IRQ)
    put(56, "<I", base + acpi_pm.PM1_STS)
    put(64, "<I", base + acpi_pm.PM1_CNT)
    put(76, "<I", base + acpi_pm.PM_TMR)
    data[88:92] = bytes((4, 2, 0, 4))                    # lengths of event, control, PM2, timer
    put(96, "<H", 0xFFFF)                                # no C2, no C3
    put(98, "<H", 0xFFFF)
    data[108] = 0x32                                     # RTC's century
    put(109, "<H", BOOT_ARCH)
    put(112, "<I", FADT_FLAGS)
    data[116:128] = generic_address(RESET_CONTROL, 8)
    data[128] = RESET_VALUE
    put(132, "<Q", facs)
    put(140, "<Q", dsdt)
    data[148:160] = generic_address(base + acpi_pm.PM1_STS, 32)
    data[172:184] = generic_address(base + acpi_pm.PM1_CNT, 16)
    data[208:220] = generic_address(base + acpi_pm.PM_TMR, 32)
    return table(b"FACP", 3, bytes(data[36:]))


def madt(cpus: int) -> bytes:
    entries = [struct.pack("<BBBBI", 0, 8, index, index, 1) for index in range(cpus)]
    entries.append(struct.pack("<BBBBII", 1, 12, 0, 0, Ioapic.frames[0].gpa, 0))
    entries.append(struct.pack("<BBBBIH", 2, 10, 0, TIMER_IRQ, 2, 0))
    entries += [struct.pack("<BBBBIH", 2, 10, 0, irq, irq, LEVEL_HIGH) for irq in (SCI_IRQ, *PCI_IRQS)]
    entries.append(struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1))            # NMI on LINT1 of all
    return table(b"APIC", 3, struct.pack("<II", LOCAL_APIC, 1) + b"".join(entries))


def isa_device(name: str, identity: str, *resources: bytes, uid: int = 0) -> bytes:
    return aml.device(name, aml.name("_HID", aml.eisa_id(identity)), aml.name("_UID", aml.integer(uid)),
                      aml.name("_CRS", aml.resources(*resources)))


def pci_host() -> bytes:
    low, high = layout.PCI_WINDOW, layout.PCI_WINDOW_64
    crs = aml.resources(
        aml.window(aml.BUS, 0, 1, 0),
        aml.io_ports(0xCF8, 8),
        aml.window(aml.IO, 0, 0xCF8, 3),
        aml.window(aml.IO, 0xD00, 0x10000, 3),
        aml.window(aml.MEMORY, *low, 1),
        aml.window(aml.MEMORY, *high, 1))
    routes = [aml.package(aml.integer(number << 16 | 0xFFFF), aml.integer(0), aml.integer(0),
                          aml.integer(pci_irq(number))) for number in range(1, 32)]
    return aml.device("PCI0", aml.name("_HID", aml.eisa_id("PNP0A03")), aml.name("_ADR", aml.integer(0)),
                      aml.name("_UID", aml.integer(0)), aml.name("_CRS", crs), aml.name("_PRT", aml.package(*routes)))


def dsdt() -> bytes:
    typ = aml.integer(acpi_pm.SLP_TYP_S5)
    body = aml.scope(
        "\\_SB", pci_host(),
        isa_device("COM1", "PNP0501", aml.io_ports(0x3F8, 8), aml.irq(4), uid=1),
        isa_device("COM2", "PNP0501", aml.io_ports(0x2F8, 8), aml.irq(3), uid=2),
        isa_device("RTC", "PNP0B00", aml.io_ports(0x70, 2), aml.irq(8)),
        isa_device("KBD", "PNP0303", aml.io_ports(0x60, 1), aml.io_ports(0x64, 1), aml.irq(1)),
    ) + aml.name("\\_S5", aml.package(typ, typ, aml.integer(0), aml.integer(0)))
    return table(b"DSDT", 2, body)


def install(space, cpus: int) -> int:
    """Write all tables from layout.ACPI on; the address of the RSDP."""
    at = layout.ACPI + 64                                # the RSDP comes first, on a 16-byte border

    def place(data: bytes) -> int:
        nonlocal at
        where, at = at, at + len(data) + 63 & ~63
        space.write(where, data)
        return where

    facs = place(struct.pack("<4sIIIIIB31x", b"FACS", 64, 0, 0, 0, 0, 2).ljust(64, b"\0"))
    tables = [place(fadt(facs, place(dsdt()))), place(madt(cpus))]
    rsdt = place(table(b"RSDT", 1, struct.pack(f"<{len(tables)}I", *tables)))
    xsdt = place(table(b"XSDT", 1, struct.pack(f"<{len(tables)}Q", *tables)))
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM, 2, rsdt, 36, xsdt, 0))
    checksummed(rsdp, 8, 20)
    space.write(layout.ACPI, bytes(checksummed(rsdp, 32)))
    return layout.ACPI
