"""`virga run`'s words, and the escape key."""

from __future__ import annotations

import json

import pytest

from node_agent.machine.spec import ExitKind, MachineExit, SpecError
from node_agent.run.arguments import machine_spec, memory_bytes, parser
from node_agent.run.main import exit_status
from node_agent.run.terminal import EscapeFilter


def spec(*words):
    return machine_spec(parser().parse_args(words), 1000)


@pytest.mark.parametrize("text, size", [("256M", 256 << 20), ("256", 256 << 20), ("2G", 2 << 30), ("1GiB", 1 << 30),
                                        ("65536k", 64 << 20)])
def test_sizes(text, size):
    assert memory_bytes(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-", "1.5G", "12Q"])
def test_what_is_no_size(text):
    with pytest.raises(SpecError, match="memory"):
        memory_bytes(text)


def test_all_words():
    made = spec("--kernel", "k", "--initrd", "i", "--append", "quiet", "--cpus", "2", "--disk", "a", "--disk", "b,ro",
                "--memory", "1G")
    assert (made.kernel, made.initrd, made.append, made.cpus, made.memory_bytes) == ("k", "i", "quiet", 2, 1 << 30)
    assert [(disk.path, disk.read_only) for disk in made.disks] == [("a", False), ("b", True)]
    assert made.rtc_epoch_s == 1000
    assert spec("--kernel", "k", "--clock", "virtual").rtc_epoch_s is None


@pytest.mark.parametrize("words", [[], ["image", "--kernel", "k"], ["no-such-image"], ["--kernel", "k", "--memory", "0"],
                                   ["--kernel", "k", "--cpus", "0"]])
def test_what_cannot_be(words):
    with pytest.raises(SpecError):
        spec(*words)


def test_an_image_is_a_file_a_folder_or_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "virga" / "images" / "debian"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(
        {"append": "console=ttyS0", "files": {"kernel": {"file": "kernel"}, "initrd": {"file": "initrd"}}}))
    for name in ("debian", str(folder)):
        made = spec(name, "--append", "quiet")
        assert (made.kernel, made.initrd) == (str(folder / "kernel"), str(folder / "initrd"))
        assert made.append == "console=ttyS0 quiet"
    (folder / "kernel").write_bytes(b"")
    assert spec(str(folder / "kernel")).initrd is None
    (folder / "manifest.json").write_text("{")
    with pytest.raises(SpecError, match="damaged"):
        spec("debian")


def test_the_escape_key():
    keys = EscapeFilter()
    assert keys.feed(b"ls\r\x01\x01\x01") == b"ls\r\x01"
    assert keys.feed(b"c") == b"" and not keys.left
    assert keys.feed(b"a\x01xb") == b"a" and keys.left


@pytest.mark.parametrize("kind, value, status", [
    (ExitKind.POWER_OFF, 0, 0), (ExitKind.DEBUG_EXIT, 0, 1), (ExitKind.DEBUG_EXIT, 16, 33),
    (ExitKind.TRIPLE_FAULT, 0, 254), (ExitKind.FAILURE, 0, 126)])
def test_exit_statuses(kind, value, status):
    assert exit_status(MachineExit(kind, value)) == status
