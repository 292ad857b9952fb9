"""The ring keeps the last bytes, says what is missing, and refuses what is no ring."""

import os
import resource
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent.console.console import Milestones
from node_agent.console.ring import PAGE, CorruptRing, RingReader, RingWriter


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.binary(min_size=0, max_size=3 * PAGE), max_size=12), at=st.integers(-9000, 40000))
def test_it_holds_the_end_of_all_that_was_written(tmp_path_factory, pieces, at):
    path = tmp_path_factory.mktemp("ring") / "console"
    writer = RingWriter(path, PAGE)
    for piece in pieces:
        writer.write(piece)
    whole = b"".join(pieces)
    reader = RingReader(path)
    got = reader.read(at)
    wanted = max(0, len(whole) + at) if at < 0 else at
    start = max(wanted, len(whole) - PAGE)
    assert (got.offset, got.data, got.lost) == (start, whole[start:], start - wanted)
    reader.close()
    writer.close()


def test_it_goes_on_where_a_writer_before_stopped(tmp_path):
    path = tmp_path / "console"
    writer = RingWriter(path, PAGE)
    writer.write(b"one ")
    writer.close()
    writer = RingWriter(path, 4 * PAGE)
    writer.write(b"two")
    reader = RingReader(path)
    assert reader.read(0).data == b"one two"
    reader.close()
    writer.close()


def test_another_rings_history_is_taken_over(tmp_path):
    writer = RingWriter(tmp_path / "console", PAGE)
    writer.continue_at(1_000_000, b"tail")
    writer.write(b" and more")
    reader = RingReader(tmp_path / "console")
    piece = reader.read(0)
    assert piece.data[-13:] == b"tail and more" and reader.written == 1_000_009
    reader.close()
    writer.close()


@pytest.mark.parametrize("content", [b"garbage" * 2000, b"VIRGACON" + bytes(10 * PAGE), b"x"])
def test_what_is_no_ring_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "console"
    path.write_bytes(content)
    with pytest.raises(CorruptRing):
        RingWriter(path, PAGE)
    with pytest.raises(CorruptRing):
        RingReader(path)
    assert path.read_bytes() == content


def test_a_disk_without_room_is_an_error_and_leaves_nothing(tmp_path):
    """A file-size limit stands in for a full disk: both fail in posix_fallocate."""
    code = ("import sys; from pathlib import Path; from node_agent.console.ring import RingWriter\n"
            "try: RingWriter(Path(sys.argv[1]), 1 << 20)\n"
            "except OSError: sys.exit(7)")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    path = tmp_path / "console"
    done = subprocess.run([sys.executable, "-c", code, str(path)], preexec_fn=limit, check=False)
    assert done.returncode == 7 and not path.exists()


def test_its_blocks_are_there_from_the_start(tmp_path):
    writer = RingWriter(tmp_path / "console", 64 * PAGE)
    assert os.stat(tmp_path / "console").st_blocks * 512 >= 65 * PAGE
    writer.close()


class Seen(list):
    def __call__(self, name, detail):
        self.append((name, detail))


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_milestones_however_the_stream_is_cut(size):
    seen = Seen()
    milestones = Milestones("guest is ready", seen)
    text = b"early\n[    0.0] Linux version 6.1.0-56-cloud-amd64 (gcc)\n ... guest is ready\n guest is ready\n"
    for at in range(0, len(text), size):
        milestones.feed(text[at:at + size])
    names = [name for name, _ in seen]
    assert names[0] == "kernel" and names.count("user_space") == 1 and milestones.done
    assert [detail for name, detail in seen if name == "kernel"][-1] == "Linux 6.1.0-56-cloud-amd64"


def test_a_kernel_that_is_no_linux_is_known_by_its_first_byte():
    seen = Seen()
    milestones = Milestones("", seen)
    milestones.feed(b"x")
    assert seen == [("kernel", "")] and not milestones.done
    milestones.feed(b"y" * (1 << 17))
    milestones.feed(b"y")
    assert milestones.done, "not looked for for ever"
