"""The 16550A against its data sheet."""

import pytest

from node_agent.devices.uart import Uart

BASE = 0x3F8
DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(BASE, BASE + 8)
FCR = IIR


@pytest.fixture
def out():
    return []


@pytest.fixture
def uart(line, timers, out):
    return Uart(BASE, line, timers, out.append)


def test_what_is_sent_is_out_at_once(uart, out):
    for byte in b"hello":
        assert uart.read(LSR, 1) & 0x60 == 0x60
        uart.write(DATA, 1, byte)
    assert bytes(out) == b"hello"


def test_the_divisor_hides_behind_dlab(uart, out):
    uart.write(LCR, 1, 0x83)
    uart.write(DATA, 1, 1)
    uart.write(IER, 1, 2)
    assert (uart.read(DATA, 1), uart.read(IER, 1)) == (1, 2)
    uart.write(LCR, 1, 0x03)
    assert uart.read(IER, 1) == 0 and out == []


def test_transmitter_empty_interrupts_once_a_write(uart, line):
    uart.write(IER, 1, 0x02)
    assert line.level and uart.read(IIR, 1) & 0x0F == 0x02
    assert not line.level and uart.read(IIR, 1) & 0x0F == 0x01
    uart.write(DATA, 1, 0x41)
    assert line.level


def test_input_waits_in_order_beyond_the_fifo(uart, line):
    uart.write(FCR, 1, 0x01)
    uart.write(IER, 1, 0x01)
    data = bytes(range(40))
    assert uart.receive(data) == 40
    got = []
    while uart.read(LSR, 1) & 1:
        assert line.level
        got.append(uart.read(DATA, 1))
    assert bytes(got) == data and not line.level


def test_the_backlog_is_bounded(uart):
    assert uart.receive(bytes(100_000)) == 65536
    assert uart.receive(b"x") <= 16


def test_the_trigger_level_decides_the_cause(uart):
    uart.write(FCR, 1, 0x81)                 # trigger at 8
    uart.write(IER, 1, 0x01)
    uart.receive(b"abc")
    assert uart.read(IIR, 1) == 0xCC         # character time-out
    uart.receive(b"defgh")
    assert uart.read(IIR, 1) == 0xC4


def test_loopback_as_drivers_probe_it(uart, out):
    uart.write(MCR, 1, 0x1A)
    assert uart.read(MSR, 1) & 0xF0 == 0x90
    uart.write(DATA, 1, 0xAE)
    assert uart.read(LSR, 1) & 1 and uart.read(DATA, 1) == 0xAE
    assert out == []


def test_scratch_and_absent_bits(uart):
    uart.write(SCR, 1, 0x5A)
    uart.write(IER, 1, 0xFF)
    assert (uart.read(SCR, 1), uart.read(IER, 1)) == (0x5A, 0x0F)


def test_clearing_the_receive_fifo_only_holds_what_was_piped_in(uart, timers):
    uart.write(FCR, 1, 0x01)
    uart.receive(b"early words that are long")
    uart.write(FCR, 1, 0x03)
    assert not uart.read(LSR, 1) & 1 and uart.read(DATA, 1) == 0
    timers.advance_to(10_000_000)
    got = bytearray()
    while uart.read(LSR, 1) & 1:
        got.append(uart.read(DATA, 1))
    assert got == b"early words that are long"


def test_state_goes_round(uart, line, timers, out):
    uart.write(FCR, 1, 0x01)
    uart.write(IER, 1, 0x05)
    uart.receive(bytes(30))
    other = Uart(BASE, line, timers, out.append)
    other.load(uart.save())
    assert other.save() == uart.save()
