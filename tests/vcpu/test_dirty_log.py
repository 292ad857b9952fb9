"""The dirty log: a frame written since the last harvest is in the next one, whoever wrote it."""

import pytest
from guest_machine import PT, LongMode

PAGE = 0x100000


@pytest.fixture
def guest() -> LongMode:
    guest = LongMode()
    guest.space.dirty_start()
    return guest


def harvest(guest: LongMode) -> set[int]:
    bitmap = guest.space.dirty_harvest()
    return {frame for frame in range(len(bitmap) * 8) if bitmap[frame >> 3] >> (frame & 7) & 1}


WRITE = f"mov qword ptr [{PAGE}], 1; hlt"


def test_each_harvest_has_what_was_written_since(guest: LongMode) -> None:
    guest.run(WRITE)                           # warm: the entry is in the TLB, and writable
    harvest(guest)
    for _ in range(3):
        assert PAGE >> 12 not in harvest(guest)
        guest.run(WRITE)
        assert PAGE >> 12 in harvest(guest)


def test_reading_is_no_writing(guest: LongMode) -> None:
    harvest(guest)
    guest.run(f"mov rax, [{PAGE}]; hlt")
    assert PAGE >> 12 not in harvest(guest)


def test_the_processors_own_writes_count(guest: LongMode) -> None:
    """Accessed bits in the page tables, frames on a stack, both pages of an access across them."""
    harvest(guest)
    guest.run(f"mov rax, [{PAGE + 0x5000}]; hlt")
    assert PT >> 12 in harvest(guest)
    guest.user("ud2")
    assert 0x1E000 >> 12 in harvest(guest)
    guest.run(f"mov qword ptr [{PAGE + 0xFFC}], 1; hlt")
    assert {PAGE >> 12, (PAGE >> 12) + 1} <= harvest(guest)


@pytest.mark.parametrize("program", [
    "lock inc dword ptr [{0}]", "xchg [{0}], eax", "push rax; pop qword ptr [{0}]", "movups [{0}], xmm0",
    "fxsave [{0}]", "mov edi, {0}; mov ecx, 100; rep stosb", "fninit; fld1; fstp qword ptr [{0}]", "cmpxchg16b [{0}]",
    "sgdt [{0}]", "mov esi, 0x1000; mov edi, {0}; mov ecx, 8; rep movsq",
])
def test_by_every_kind_of_store(guest: LongMode, program: str) -> None:
    text = program.format(PAGE) + "; hlt"
    guest.run(text)
    harvest(guest)
    guest.run(text)
    assert PAGE >> 12 in harvest(guest)


def test_devices_count_too(guest: LongMode) -> None:
    harvest(guest)
    guest.space.write(PAGE, b"x")
    assert harvest(guest) == {PAGE >> 12}


def test_stopped_it_costs_nothing_and_says_nothing(guest: LongMode) -> None:
    guest.space.dirty_stop()
    guest.run(WRITE)
    guest.space.dirty_start()
    assert PAGE >> 12 not in harvest(guest)
