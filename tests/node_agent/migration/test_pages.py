"""Frames as masks and runs."""

import mmap
import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from node_agent.migration import pages
from node_agent.migration.pages import FRAME


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 40))
def test_runs_name_every_frame_once_and_no_other(bits, limit):
    mask = np.array(bits, bool)
    rows = pages.split(pages.runs(mask), limit)
    named = [n for first, count in rows.tolist() for n in range(first, first + count)]
    assert named == list(np.flatnonzero(mask)) and all(0 < count <= limit for _, count in rows.tolist())


@given(st.binary(min_size=8, max_size=64))
def test_a_bitmap_is_read_from_its_least_significant_bit(bitmap):
    mask = pages.dirty_frames(bitmap, len(bitmap) * 8)
    assert all(mask[n] == bool(bitmap[n >> 3] >> (n & 7) & 1) for n in range(len(mask)))


@given(st.sets(st.integers(0, 15)), st.integers(0, FRAME - 1))
def test_filled_means_any_byte(frames, at):
    memory = bytearray(16 * FRAME)
    for frame in frames:
        memory[frame * FRAME + at] = 1
    assert set(np.flatnonzero(pages.filled(memoryview(memory), 0, 16))) == frames


def test_untouched_frames_stay_untouched():
    fd = os.memfd_create("test")
    os.ftruncate(fd, 1024 * FRAME)
    memory = mmap.mmap(fd, 1024 * FRAME)
    for frame in (3, 4, 700, 1023):
        memory[frame * FRAME] = 1
    mask = pages.backed(fd, 1024)
    assert mask[[3, 4, 700, 1023]].all()
    if mask.sum() == 4:                              # else the host gives out huge pages
        assert os.fstat(fd).st_blocks * 512 == 4 * FRAME
    memory.close()
    os.close(fd)
    empty = os.memfd_create("test")
    os.ftruncate(empty, 8 * FRAME)
    assert not pages.backed(empty, 8).any()
    os.close(empty)
