"""The image `debian-cloud`: Debian's cloud kernel, its virtio drivers, a static busybox, and an init of ours.

Owns:    what goes into the image, and asking apt for it: the host's sources and keyring, but lists, cache and state
         of our own, so that neither root nor a filled /var/lib/apt is needed and nothing of the host's is changed.
Never:   installs anything; takes a package whose hash apt did not check.
Threads: none.
"""

import getpass
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from node_agent.image import cpio, modules

KERNEL_PACKAGE = "linux-image-cloud-amd64"      # a meta-package: it depends on the kernel of the day
BUSYBOX_PACKAGE = "busybox-static"
READY_MARKER = "virga: user space is up"
APPEND = "console=ttyS0"
# Those that the cloud kernel builds in are simply not found among its modules.
MODULES = ("button evdev virtio_pci virtio_blk virtio_net virtio_console virtio_rng virtio_balloon virtio_scsi "
           "vmw_vsock_virtio_transport overlay squashfs loop isofs vfat nls_ascii nls_cp437 nls_utf8").split()


class ImageError(Exception):
    """The image cannot be made here; the text is for the user."""


@dataclass(frozen=True)
class Parts:
    kernel: bytes
    initrd: bytes
    version: str                 # of the kernel, as `uname -r` tells it


class Apt:
    """apt-get and apt-cache with the host's sources, in directories of our own below root."""

    def __init__(self, root: Path, host_lists: Path = Path("/var/lib/apt/lists")) -> None:
        self._root = root
        for folder in ("lists/partial", "cache/archives/partial", "state", "debs"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "state" / "status").touch()
        self._seed(host_lists)

    def _seed(self, host_lists: Path) -> None:
        """Begin with the host's lists where it has some: an update then fetches only what changed."""
        lists = self._root / "lists"
        if any(entry.is_file() for entry in lists.iterdir()) or not os.access(host_lists, os.R_OK):
            return
        for source in host_lists.iterdir():
            if source.is_file() and source.name != "lock" and os.access(source, os.R_OK):
                shutil.copy2(source, lists / source.name)

    def _run(self, *command: str, check: bool = True) -> str:
        options = {"Dir::State": "state", "Dir::State::status": "state/status", "Dir::State::lists": "lists",
                   "Dir::Cache": "cache"}
        arguments = [f"-oAPT::Sandbox::User={getpass.getuser()}", "-oAPT::Architecture=amd64",
                     "-oAcquire::Languages=none", "-oAcquire::Retries=2", "-oAcquire::http::Timeout=20",
                     "-oAcquire::https::Timeout=20"]
        arguments += [f"-o{key}={self._root / where}" for key, where in options.items()]
        done = subprocess.run([command[0], *arguments, *command[1:]], cwd=self._root / "debs", text=True,
                              env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL, capture_output=True)
        if check and done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))]
            raise ImageError(f"{' '.join(command[:2])} failed: {'; '.join(lines[:2]) or done.stderr.strip()[:200]}")
        return done.stdout

    def update(self) -> None:
        """Fetch the lists. One source that fails is no obstacle while another offers the packages."""
        self._run("apt-get", "-q", "update", check=False)

    def kernel_package(self) -> str:
        """The package that the kernel's meta-package depends on today."""
        found = self._run("apt-cache", "depends", "--important", KERNEL_PACKAGE, check=False)
        names = [line.split()[-1] for line in found.splitlines() if "Depends: linux-image-" in line]
        if not names:
            raise ImageError(f"this machine's apt sources offer no {KERNEL_PACKAGE} (a package of Debian's), or they "
                             "could not be reached")
        return names[0]

    def download(self, package: str) -> Path:
        """The .deb, checked by apt against the signed lists."""
        before = set((self._root / "debs").glob(f"{package}_*.deb"))
        self._run("apt-get", "-q", "download", package)
        after = set((self._root / "debs").glob(f"{package}_*.deb"))
        newest = after - before or after
        return max(newest, key=lambda path: path.stat().st_mtime)


def read_deb(deb: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Files of a package by their path without the leading slash."""
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], capture_output=True)
    if done.returncode:
        raise ImageError(f"{deb.name} is damaged: {done.stderr.decode(errors='replace').strip()}")
    files = {}
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        for member in tar:
            path = str(PurePosixPath("/", member.name))[1:]
            if member.isfile() and wanted(path):
                content = tar.extractfile(member)
                assert content is not None
                files[path] = content.read()
    return files


def initramfs(version: str, busybox: bytes, drivers: list[modules.Module]) -> bytes:
    """The archive: /init, busybox under all its names, the drivers with modprobe's indexes."""
    base = f"lib/modules/{version}"
    root = [cpio.directory(name) for name in ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "mnt", "var")]
    root += [cpio.symlink("sbin", "bin"), cpio.symlink("usr", "."),
             cpio.char_device("dev/console", 5, 1), cpio.char_device("dev/null", 1, 3),
             cpio.file("init", (Path(__file__).parent / "init.sh").read_bytes(), executable=True),
             cpio.file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n"), cpio.file("etc/group", b"root:x:0:\n"),
             cpio.file("etc/profile", b"PS1='\\h:\\w# '\nalias ll='ls -l'\n"),
             cpio.file("bin/busybox", busybox, executable=True)]
    root += [cpio.symlink(f"bin/{name}", "busybox") for name in busybox_applets(busybox)]
    root += [cpio.file(f"{base}/{module.path}", module.data) for module in drivers]
    root += [cpio.file(f"{base}/modules.dep", modules.modules_dep(drivers).encode()),
             cpio.file(f"{base}/modules.alias", modules.modules_alias(drivers).encode())]
    return cpio.archive(root)


def busybox_applets(busybox: bytes) -> list[str]:
    """The names it answers to. They stand in it as one run of NUL-terminated words that begins with '[', '[['."""
    start = busybox.find(b"\0[\0[[\0acpid\0")
    start = start if start >= 0 else busybox.find(b"\0[\0[[\0")
    if start < 0:
        raise ImageError("the busybox package is unlike any known one: its list of applets was not found")
    names = []
    for word in busybox[start + 1:start + 8192].split(b"\0"):
        if not word or not word.isascii():
            break
        names.append(word.decode())
    return [name for name in names if name != "busybox"]


def assemble(kernel_deb: Path, busybox_deb: Path) -> Parts:
    """Kernel and initramfs from the two packages."""
    kernel_files = read_deb(kernel_deb, lambda path: path.startswith("boot/vmlinuz-") or ".ko" in path)
    kernel_path = next((path for path in kernel_files if path.startswith("boot/vmlinuz-")), None)
    if kernel_path is None:
        raise ImageError(f"{kernel_deb.name} holds no kernel")
    version = kernel_path.removeprefix("boot/vmlinuz-")
    known = {modules.module_name(path): (path, data) for path, data in kernel_files.items() if ".ko" in path}
    parsed = {name: modules.parse(path.split(f"lib/modules/{version}/", 1)[-1], data)
              for name, (path, data) in known.items()}
    busybox = next(iter(read_deb(busybox_deb, lambda path: path in ("bin/busybox", "usr/bin/busybox")).values()), None)
    if busybox is None:
        raise ImageError(f"{busybox_deb.name} holds no busybox")
    return Parts(kernel_files[kernel_path], initramfs(version, busybox, modules.closure(MODULES, parsed)), version)


def fetch_and_assemble(work: Path, say: Callable[[str], None]) -> Parts:
    """All of it: lists, packages, image. say() gets one line per step."""
    for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(tool) is None:
            raise ImageError(f"{tool} (package {package}) is missing; debian-cloud is made from Debian's packages")
    apt = Apt(work)
    say("package lists")
    apt.update()
    kernel = apt.kernel_package()
    say(f"packages {kernel}, {BUSYBOX_PACKAGE}")
    debs = [apt.download(kernel), apt.download(BUSYBOX_PACKAGE)]
    say("initramfs")
    return assemble(*debs)
