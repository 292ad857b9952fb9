"""Keyboard controller, ACPI power management, debug ports."""

import pytest

from node_agent.devices.acpi_pm import AcpiPm
from node_agent.devices.debug import DebugConsole, DebugExit
from node_agent.devices.i8042 import I8042


@pytest.fixture
def events():
    return []


@pytest.fixture
def keyboard(line, events):
    return I8042(line, lambda: events.append("reset"))


@pytest.fixture
def pm(line, timers, events):
    return AcpiPm(line, timers, lambda: events.append("off"))


def answers(keyboard):
    got = []
    while keyboard.read(0x64, 1) & 1:
        got.append(keyboard.read(0x60, 1))
    return got


@pytest.mark.parametrize("writes, expected", [
    ([(0x64, 0xAA)], [0x55]),
    ([(0x64, 0xAB)], [0x00]),
    ([(0x64, 0x60), (0x60, 0x65), (0x64, 0x20)], [0x65]),
    ([(0x60, 0xFF)], [0xFA, 0xAA]),
    ([(0x60, 0xF2)], [0xFA, 0xAB, 0x83]),
    ([(0x60, 0xED), (0x60, 0x02)], [0xFA, 0xFA]),
    ([(0x60, 0xEE)], [0xEE]),
    ([(0x64, 0xD0)], [0x03]),
    ([(0x64, 0xD4), (0x60, 0xFF)], []),
])
def test_keyboard_controller_answers(keyboard, writes, expected):
    for port, value in writes:
        keyboard.write(port, 1, value)
    assert answers(keyboard) == expected


def test_keyboard_bytes_interrupt_one_by_one(keyboard, line):
    keyboard.write(0x60, 1, 0xF2)
    assert line.level
    answers(keyboard)
    assert line.rises == 3 and not line.level


def test_keyboard_controller_resets_the_machine(keyboard, events):
    keyboard.write(0x64, 1, 0xFE)
    keyboard.write(0x64, 1, 0xD1)
    keyboard.write(0x60, 1, 0x02)
    assert events == ["reset", "reset"]


def test_keyboard_queue_is_bounded_and_goes_round(keyboard, line):
    for _ in range(1000):
        keyboard.write(0x60, 1, 0xF2)
    other = I8042(line, lambda: None)
    other.load(keyboard.save())
    assert other.save() == keyboard.save()
    assert len(answers(other)) == 32


def test_the_power_button_is_an_sci_until_it_is_cleared(pm, line):
    pm.press_power_button()
    assert not line.level
    pm.write(0x602, 2, 0x0100)
    assert line.level and pm.read(0x600, 2) == 0x0100
    pm.write(0x600, 2, 0x0100)
    assert not line.level and pm.read(0x600, 2) == 0


def test_s5_powers_off_and_nothing_else_does(pm, events):
    pm.write(0x604, 2, 0x1C01)
    pm.write(0x604, 2, 0x3C01)               # SLP_TYP 7
    assert events == []
    pm.write(0x604, 2, 0x2001)
    assert events == ["off"]


def test_the_pm_timer_runs_at_its_rate_in_24_bits(pm, timers):
    timers.advance_to(1_000_000_000)
    assert pm.read(0x608, 4) == 3_579_545
    timers.advance_to(10_000_000_000)
    assert pm.read(0x608, 4) == 35_795_450 & 0xFFFFFF


def test_the_pm_timer_overflow_interrupts(pm, line, timers):
    pm.write(0x602, 2, 1)
    timers.advance_to(2_343_000_000)
    assert not line.level
    timers.advance_to(2_344_000_000)
    assert line.level and pm.read(0x600, 2) & 1


def test_acpi_bytes_and_words_agree(pm):
    pm.write(0x603, 1, 0x01)
    assert pm.read(0x602, 2) == 0x0100 and pm.read(0x600, 4) == 0x0100_0000
    assert pm.read(0x604, 2) & 1             # SCI_EN: always in ACPI mode


def test_acpi_state_goes_round(pm, line, timers):
    pm.write(0x602, 2, 0x0101)
    pm.press_power_button()
    other = AcpiPm(line, timers, lambda: None)
    other.load(pm.save())
    assert other.save() == pm.save()


def test_debug_ports():
    values, text = [], []
    DebugExit(values.append).write(0xF4, 4, 0x1234)
    console = DebugConsole(text.append)
    console.write(0xE9, 1, 0x41)
    assert (values, text, console.read(0xE9, 1)) == ([0x1234], [0x41], 0xE9)
