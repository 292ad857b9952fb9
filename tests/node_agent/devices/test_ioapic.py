"""The I/O APIC's messages and its level inputs."""

import pytest

from node_agent.devices.ioapic import Ioapic

BASE = 0xFEC00000


@pytest.fixture
def ioapic():
    sent = []
    made = Ioapic(lambda address, data: sent.append((address, data)))
    made.sent = sent
    return made


def set_entry(ioapic, pin, value):
    for half in (1, 0):
        ioapic.write(BASE, 4, 0x10 + 2 * pin + half)
        ioapic.write(BASE + 0x10, 4, value >> 32 * half & 0xFFFFFFFF)


def get_entry(ioapic, pin):
    value = 0
    for half in (0, 1):
        ioapic.write(BASE, 4, 0x10 + 2 * pin + half)
        value |= ioapic.read(BASE + 0x10, 4) << 32 * half
    return value


def test_it_says_24_inputs(ioapic):
    ioapic.write(BASE, 4, 1)
    assert ioapic.read(BASE + 0x10, 4) >> 16 & 0xFF == 23


def test_inputs_are_masked_after_reset(ioapic):
    ioapic.set_pin(4, True)
    assert ioapic.sent == []


def test_an_edge_is_one_message(ioapic):
    set_entry(ioapic, 4, 3 << 56 | 0x34)
    ioapic.set_pin(4, True)
    ioapic.set_pin(4, True)
    assert ioapic.sent == [(0xFEE03000, 0x4034)]
    ioapic.set_pin(4, False)
    ioapic.set_pin(4, True)
    assert len(ioapic.sent) == 2


def test_logical_destination_and_lowest_priority(ioapic):
    set_entry(ioapic, 1, 0xFF << 56 | 0x0900 | 0x41)
    ioapic.set_pin(1, True)
    assert ioapic.sent == [(0xFEEFF004, 0x4141)]


def test_a_level_input_waits_for_its_eoi(ioapic):
    set_entry(ioapic, 10, 0x8050)
    ioapic.set_pin(10, True)
    assert get_entry(ioapic, 10) & 1 << 14
    ioapic.set_pin(10, False)
    ioapic.set_pin(10, True)
    assert ioapic.sent == [(0xFEE00000, 0xC050)]
    ioapic.end_of_interrupt(0x50)
    assert len(ioapic.sent) == 2             # still high: again
    ioapic.set_pin(10, False)
    ioapic.end_of_interrupt(0x50)
    assert len(ioapic.sent) == 2 and not get_entry(ioapic, 10) & 1 << 14


def test_unmasking_a_high_level_input_sends(ioapic):
    set_entry(ioapic, 10, 0x18050)
    ioapic.set_pin(10, True)
    assert ioapic.sent == []
    set_entry(ioapic, 10, 0x8050)
    assert ioapic.sent == [(0xFEE00000, 0xC050)]


def test_read_only_bits_stay(ioapic):
    set_entry(ioapic, 0, 0xFFFFFFFF_FFFFFFFF)
    assert get_entry(ioapic, 0) & (1 << 12 | 1 << 14) == 0


def test_state_goes_round(ioapic):
    set_entry(ioapic, 9, 0x8059)
    ioapic.set_pin(9, True)
    other = Ioapic(lambda address, data: None)
    other.load(ioapic.save())
    assert other.save() == ioapic.save()
