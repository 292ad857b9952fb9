"""The archive, the modules' index, the cache. Nothing here asks apt; building the real image is an e2e test."""

import hashlib
import json
import shutil
import struct
import subprocess

import pytest

from node_agent.image import cpio, debian, main, modules


def elf_with_modinfo(*items: str) -> bytes:
    """The smallest 64-bit ELF with a .modinfo section."""
    info = b"\0".join(item.encode() for item in items) + b"\0"
    names = b"\0.modinfo\0.shstrtab\0"
    body = info + names
    table = 64 + len(body)
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)

    def section(name, offset, size):
        return struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)
    return header + body + section(0, 0, 0) + section(1, 64, len(info)) + section(10, 64 + len(info), len(names))


def test_modules_tell_what_they_need():
    module = modules.parse("kernel/drivers/virtio-x.ko", elf_with_modinfo("alias=pci:v1AF4", "depends=virtio,virtio-ring", "x=y"))
    assert module.depends == ("virtio", "virtio_ring") and module.aliases == ("pci:v1AF4",)


def test_dependencies_come_first_and_modprobe_can_read_them():
    def module(name, *needs):
        return modules.Module(f"kernel/{name}.ko", b"", needs, ())
    known = {name: module(name, *needs) for name, needs in
             {"virtio_pci": ("virtio", "ring"), "virtio": ("ring",), "ring": (), "other": ()}.items()}
    order = modules.closure(["virtio_pci", "built_in"], known)
    assert [modules.module_name(m.path) for m in order] == ["ring", "virtio", "virtio_pci"]
    assert "kernel/virtio_pci.ko: kernel/virtio.ko kernel/ring.ko\n" in modules.modules_dep(order)


def test_a_file_that_is_no_module_is_an_error():
    with pytest.raises(ValueError):
        modules.parse("x.ko", b"garbage")


def test_archive_is_the_same_each_time_and_what_cpio_reads(tmp_path):
    entries = [cpio.file("init", b"#!/bin/sh\n", executable=True), cpio.file("a/b/c", b"xyz"), cpio.symlink("l", "a/b")]
    data = cpio.archive(entries)
    assert data == cpio.archive(entries) and len(data) % 512 == 0
    assert read_back(data) == {"init": (0o100755, b"#!/bin/sh\n"), "a": (0o040755, b""), "a/b": (0o040755, b""),
                               "a/b/c": (0o100644, b"xyz"), "l": (0o120777, b"a/b")}


def read_back(data: bytes) -> dict[str, tuple[int, bytes]]:
    """A reader by the format's description, not by the writer's code."""
    found, at = {}, 0
    while True:
        assert data[at:at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i:at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110:at + 110 + fields[11] - 1].decode()
        start = (at + 110 + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], data[start:start + fields[6]])
        at = (start + fields[6] + 3) & ~3


def test_applets_are_found_in_a_busybox():
    assert debian.busybox_applets(b"junk\0[\0[[\0acpid\0ash\0zcat\0\0junk") == ["[", "[[", "acpid", "ash", "zcat"]
    with pytest.raises(debian.ImageError):
        debian.busybox_applets(b"no list in here")


@pytest.mark.parametrize("broken", ["", "{", '{"recipe": 1}', "[]"])
def test_a_broken_manifest_is_not_believed(tmp_path, broken):
    (tmp_path / "manifest.json").write_text(broken)
    assert main.load_cached(tmp_path) is None


def test_a_truncated_file_is_not_believed(tmp_path):
    (tmp_path / "kernel").write_bytes(b"12345")
    manifest = {"recipe": main.recipe(), "files": {"kernel": {"file": "kernel", "size": 5}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert main.load_cached(tmp_path) == manifest
    (tmp_path / "kernel").write_bytes(b"123")
    assert main.load_cached(tmp_path) is None


def test_where_there_is_no_apt_the_sentence_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(debian.shutil, "which", lambda tool: None)
    assert main.main(["build", "debian-cloud", "--cache", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "made from Debian's packages" in told and "virga image import" in told


def test_sources_without_debians_kernel_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(debian.Apt, "_run", lambda *arguments, **options: "")
    with pytest.raises(debian.ImageError, match="linux-image-cloud-amd64"):
        debian.Apt(tmp_path, tmp_path / "none").kernel_package()


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="images from Debian's packages need dpkg-deb")
def test_a_damaged_package_is_told(tmp_path):
    deb = tmp_path / "x.deb"
    deb.write_bytes(b"!<arch>\ngarbage")
    with pytest.raises(debian.ImageError, match="damaged"):
        debian.read_deb(deb, lambda path: True)


def test_the_tiny_guest_is_a_multiboot_elf_and_built_once(tmp_path):
    from node_agent.guest import build
    target = tmp_path / "tiny.elf"
    elf = build.ensure(target).read_bytes()
    assert elf[:5] == b"\x7fELF\x01" and b"\x02\xb0\xad\x1b" in elf[:8192]
    before = target.stat().st_mtime_ns, hashlib.sha256(elf).digest()
    build.ensure(target)
    assert (target.stat().st_mtime_ns, hashlib.sha256(target.read_bytes()).digest()) == before
    headers = subprocess.run(["readelf", "-lW", str(target)], capture_output=True, text=True, check=True).stdout
    assert "0x00100000" in headers
