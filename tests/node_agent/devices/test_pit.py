"""The 8254 against its data sheet, on a clock that is moved by hand."""

import pytest

from node_agent.devices.pit import PIT_HZ, Pit, ticks_to_ns


@pytest.fixture
def pit(line, timers):
    return Pit(line, timers)


def program(pit, channel, mode, count):
    pit.write(0x43, 1, channel << 6 | 0x30 | mode << 1)
    pit.write(0x40 + channel, 1, count & 0xFF)
    pit.write(0x40 + channel, 1, count >> 8)


def read_count(pit, channel):
    pit.write(0x43, 1, channel << 6)
    return pit.read(0x40 + channel, 1) | pit.read(0x40 + channel, 1) << 8


def test_rate_generator_gives_one_edge_a_period_without_drift(pit, line, timers):
    program(pit, 0, 2, 1193)
    line.rises = 0
    timers.advance_to(1_000_000_000)
    assert line.rises == PIT_HZ // 1193


def test_a_late_clock_loses_edges_but_not_its_phase(pit, line, timers):
    program(pit, 0, 2, 11932)
    timers.time_ns = 35_000_000              # the host slept through three periods
    line.rises = 0
    timers.advance_to(39_000_000)
    assert line.rises == 1
    timers.advance_to(41_000_000)
    assert line.rises == 2


def test_one_shot_fires_once(pit, line, timers):
    program(pit, 0, 0, 1000)
    assert not line.level
    timers.advance_to(ticks_to_ns(999) - 1)
    assert not line.level
    timers.advance_to(ticks_to_ns(1000))
    assert line.level
    rises = line.rises
    timers.advance_to(10_000_000_000)
    assert line.rises == rises


def test_the_counter_counts_down(pit, timers):
    program(pit, 2, 2, 10000)
    pit.write(0x61, 1, 1)
    start = read_count(pit, 2)
    timers.advance_to(timers.time_ns + ticks_to_ns(100))
    assert start - read_count(pit, 2) == 100


def test_a_latched_count_stays_until_it_was_read(pit, timers):
    program(pit, 0, 2, 50000)
    timers.advance_to(ticks_to_ns(10))
    pit.write(0x43, 1, 0x00)
    timers.advance_to(ticks_to_ns(5000))
    assert pit.read(0x40, 1) | pit.read(0x40, 1) << 8 == 50000 - 10


def test_channel_2_is_seen_at_port_61(pit, timers):
    pit.write(0x61, 1, 0)
    program(pit, 2, 0, 1193)
    pit.write(0x61, 1, 1)
    assert not pit.read(0x61, 1) & 0x20
    timers.advance_to(timers.time_ns + 1_001_000)
    assert pit.read(0x61, 1) & 0x20


def test_read_back_gives_the_mode(pit):
    program(pit, 0, 2, 1000)
    pit.write(0x43, 1, 0xE2)
    assert pit.read(0x40, 1) & 0x3F == 0x34


def test_bcd_counts_in_tens(pit, timers):
    pit.write(0x43, 1, 0x35)
    pit.write(0x40, 1, 0x00)
    pit.write(0x40, 1, 0x10)
    timers.advance_to(ticks_to_ns(1))
    pit.write(0x43, 1, 0x00)
    assert pit.read(0x40, 1) | pit.read(0x40, 1) << 8 == 0x0999


def test_a_count_of_zero_is_65536(pit, line, timers):
    program(pit, 0, 2, 0)
    line.rises = 0
    timers.advance_to(ticks_to_ns(65535))
    assert line.rises == 0
    timers.advance_to(ticks_to_ns(65536))
    assert line.rises == 1


def test_state_goes_round_with_its_alarm(pit, line, timers):
    program(pit, 0, 2, 1193)
    timers.advance_to(5_000_000)
    other = Pit(line, timers)
    other.load(pit.save())
    assert other.save() == pit.save()
    pit.reset()
    line.rises = 0
    timers.advance_to(6_000_000)
    assert line.rises == 1


@pytest.mark.parametrize("mode", [2, 3])
def test_a_counter_of_one_is_no_storm(pit, line, timers, mode):
    program(pit, 0, mode, 1)
    line.rises = 0
    timers.advance_to(1_000_000)
    assert 10 <= line.rises <= 20
