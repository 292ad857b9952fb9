"""The 8259A pair against its data sheet."""

import pytest

from node_agent.devices.pic import Pic


@pytest.fixture
def pic():
    levels = []
    made = Pic(levels.append)
    made.levels = levels
    for port, values in ((0x20, (0x11,)), (0x21, (0x20, 4, 1)), (0xA0, (0x11,)), (0xA1, (0x28, 2, 1)),
                         (0x21, (0,)), (0xA1, (0,))):
        for value in values:
            made.write(port, 1, value)
    return made


def test_an_edge_asks_once_and_is_served(pic):
    pic.set_pin(4, True)
    assert pic.levels[-1] is True
    assert pic.acknowledge() == 0x24
    assert pic.levels[-1] is False
    pic.write(0x20, 1, 0x20)
    assert pic.levels[-1] is False          # the line is still high, but it was an edge


def test_the_slave_answers_through_the_cascade(pic):
    pic.set_pin(10, True)
    assert pic.acknowledge() == 0x2A
    pic.write(0x20, 1, 0x0B)
    pic.write(0xA0, 1, 0x0B)
    assert (pic.read(0x20, 1), pic.read(0xA0, 1)) == (1 << 2, 1 << 2)


def test_priority_and_nesting(pic):
    pic.set_pin(4, True)
    pic.set_pin(1, True)
    assert pic.acknowledge() == 0x21
    assert pic.levels[-1] is False          # 4 waits for the end of 1
    pic.write(0x20, 1, 0x20)
    assert pic.acknowledge() == 0x24


def test_a_level_line_asks_again_until_it_falls(pic):
    pic.write(0x4D1, 1, 0x04)
    pic.set_pin(10, True)
    assert pic.acknowledge() == 0x2A
    for port in (0xA0, 0x20):
        pic.write(port, 1, 0x20)
    assert pic.acknowledge() == 0x2A
    pic.set_pin(10, False)
    for port in (0xA0, 0x20):
        pic.write(port, 1, 0x20)
    assert pic.levels[-1] is False


def test_the_mask_holds_a_request_back(pic):
    pic.write(0x21, 1, 0x10)
    pic.set_pin(4, True)
    assert pic.levels[-1:] != [True]
    pic.write(0x21, 1, 0)
    assert pic.acknowledge() == 0x24


def test_a_request_that_went_away_is_spurious(pic):
    assert pic.acknowledge() == 0x27


def test_rotation_gives_the_served_input_the_lowest_priority(pic):
    pic.set_pin(0, True)
    pic.acknowledge()
    pic.write(0x20, 1, 0xA0)                # rotate on non-specific EOI
    pic.set_pin(0, False)
    pic.set_pin(0, True)
    pic.set_pin(1, True)
    assert pic.acknowledge() == 0x21


def test_poll_mode_takes_the_request(pic):
    pic.set_pin(3, True)
    pic.write(0x20, 1, 0x0C)
    assert pic.read(0x20, 1) == 0x83


def test_state_goes_round(pic):
    pic.set_pin(9, True)
    other = Pic([].append)
    other.load(pic.save())
    assert other.save() == pic.save()
    assert other.acknowledge() == 0x29
