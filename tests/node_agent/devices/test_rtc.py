"""The real-time clock against its data sheet."""

import pytest

from node_agent.devices.rtc import Rtc

EPOCH_S = 951_782_399                   # 2000-02-28 23:59:59, a Monday before a leap day


@pytest.fixture
def rtc(line, timers):
    return Rtc(line, timers, EPOCH_S, 256 << 20)


def get(rtc, index):
    rtc.write(0x70, 1, index)
    return rtc.read(0x71, 1)


def put(rtc, index, value):
    rtc.write(0x70, 1, index)
    rtc.write(0x71, 1, value)


def date(rtc):
    return [get(rtc, index) for index in (0x32, 9, 8, 7, 6, 4, 2, 0)]


def test_the_date_is_bcd_by_default(rtc, timers):
    assert date(rtc) == [0x20, 0x00, 0x02, 0x28, 2, 0x23, 0x59, 0x59]
    timers.advance_to(1_000_000_000)
    assert date(rtc) == [0x20, 0x00, 0x02, 0x29, 3, 0x00, 0x00, 0x00]


def test_binary_and_twelve_hours(rtc):
    put(rtc, 0x0B, 0x04)
    assert get(rtc, 4) == 0x80 | 11 and get(rtc, 0) == 59


def test_the_guest_can_set_it(rtc, timers):
    put(rtc, 0x0B, 0x82)
    for index, value in ((0x32, 0x20), (9, 0x26), (8, 0x12), (7, 0x24), (4, 0x18), (2, 0x30), (0, 0x00)):
        put(rtc, index, value)
    timers.advance_to(5_000_000_000)
    assert get(rtc, 0) == 0x00                        # SET holds it
    put(rtc, 0x0B, 0x02)
    timers.advance_to(6_000_000_000)
    assert date(rtc) == [0x20, 0x26, 0x12, 0x24, 5, 0x18, 0x30, 0x01]


@pytest.mark.parametrize("index", range(128))
def test_garbage_is_no_error(rtc, index):
    for value in (0xFF, 0x00, 0x9A):
        put(rtc, index, value)
        assert 0 <= get(rtc, index) <= 0xFF


def test_update_in_progress_is_seen_before_each_second(rtc, timers):
    timers.advance_to(999_900_000)
    assert get(rtc, 0x0A) & 0x80
    timers.advance_to(1_000_100_000)
    assert not get(rtc, 0x0A) & 0x80


def test_periodic_interrupts_at_1024_hz(rtc, line, timers):
    put(rtc, 0x0B, 0x42)
    edges = 0
    for step in range(1, 101):
        timers.advance_to(step * 10_000_000)
        if line.level:
            edges += 1
            assert get(rtc, 0x0C) & 0xC0 == 0xC0
            assert not line.level
    assert edges == 100


def test_the_alarm_rings_when_its_time_comes(rtc, line, timers):
    for index, value in ((1, 0x05), (3, 0xFF), (5, 0xFF)):
        put(rtc, index, value)
    put(rtc, 0x0B, 0x22)
    timers.advance_to(5_900_000_000)
    assert not line.level
    timers.advance_to(6_000_000_001)
    assert line.level and get(rtc, 0x0C) & 0xA0 == 0xA0


def test_memory_size_where_a_bios_leaves_it(rtc):
    assert get(rtc, 0x34) | get(rtc, 0x35) << 8 == (256 - 16) << 4


def test_state_goes_round(rtc, line, timers):
    put(rtc, 0x0B, 0x72)
    put(rtc, 0x40, 0x5A)
    other = Rtc(line, timers, 0, 256 << 20)
    other.load(rtc.save())
    assert other.save() == rtc.save()
    assert date(other) == date(rtc)
