"""`virga image build|import|list|show|delete`.

Owns:    upload: the record, then the files the controller does not have, in chunks.
Never:   builds an image itself: `python -m node_agent image` does, as a process of its own.
Threads: one; grpc reads the chunks from a generator on its own thread.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from cli.errors import CONFLICT, FAILURE, USAGE, CliError
from cli.options import Target, format_option, target_options
from cli.output import Progress, emit

CHUNK_BYTES = 1 << 20
ROLES = {"kernel": 1, "initrd": 2, "disk": 3}
KINDS = {"linux": 1, "multiboot": 2, "disk": 3}
MULTIBOOT_MAGIC = b"\x02\xb0\xad\x1b"
UPLOAD_SECONDS = 600


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def image() -> None:
    """Images: what VMs boot from."""


@image.command()
@click.argument("what", metavar="debian-cloud", type=click.Choice(["debian-cloud"]))
@click.option("--name", help="Another name for it in the cloud.")
@click.option("--refresh", is_flag=True, help="Ask for newer packages and build again.")
@click.option("--no-upload", is_flag=True, help="Only build it on this machine, for virga run.")
@format_option
@target_options
def build(target: Target, what: str, name: str | None, refresh: bool, no_upload: bool, form: str) -> None:
    """Make an image from Debian's packages, and give it to the cloud."""
    if not no_upload:
        api = target.api()                      # no cloud is told before a minute of building, not after
    manifest_path = _build(what, refresh)
    if no_upload:
        click.echo(manifest_path)
        return
    manifest = json.loads(manifest_path.read_text())
    files = {role: manifest_path.parent / part["file"] for role, part in manifest["files"].items()}
    upload(api, name or manifest["name"], manifest["kind"], files, form, append=manifest["append"],
           ready_marker=manifest["ready_marker"], description=f"Debian cloud kernel {manifest['version']}, busybox",
           replace_hint=True)


def _build(what: str, refresh: bool) -> Path:
    command = [sys.executable, "-m", "node_agent", "image", "build", what, *(["--refresh"] if refresh else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True,
                          stderr=None if Progress().shown else subprocess.PIPE)
    if done.returncode:
        told = [line for line in (done.stderr or "").splitlines() if line.startswith("virga:")][-1:]
        raise CliError("failure.image_build", told[0].removeprefix("virga: ") if told else f"{what} could not be built", FAILURE,
                       "any other kernel: virga image import NAME --kernel FILE [--initrd FILE] [--append TEXT]")
    return Path(done.stdout.strip().splitlines()[-1])


@image.command("import")
@click.argument("name")
@click.option("--kernel", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="A bzImage, a 64-bit vmlinux, or a multiboot 1 ELF.")
@click.option("--initrd", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE")
@click.option("--disk", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE", help="A raw disk.")
@click.option("--append", default="", metavar="TEXT", help="The kernel's command line.")
@click.option("--ready-marker", default="", metavar="TEXT", help="This text on the console says: user space is up.")
@click.option("--description", default="", metavar="TEXT")
@format_option
@target_options
def import_image(target: Target, name: str, kernel: Path | None, initrd: Path | None, disk: Path | None, form: str,
                 **texts: str) -> None:
    """Give the cloud any kernel, with what belongs to it."""
    if kernel is None and disk is None:
        raise CliError("usage", "an image needs a kernel or a disk", USAGE, f"virga image import {name} --kernel FILE")
    files = {role: path for role, path in (("kernel", kernel), ("initrd", initrd), ("disk", disk)) if path}
    kind = kernel_kind(kernel) if kernel else "disk"
    upload(target.api(), name, kind, files, form, **texts)


def kernel_kind(kernel: Path) -> str:
    """linux or multiboot, by the magic of either; whether it is a good one the controller says."""
    with open(kernel, "rb") as source:
        head = source.read(8192)
    if head[0x202:0x206] == b"HdrS":
        return "linux"
    return "multiboot" if MULTIBOOT_MAGIC in head else "linux"


def upload(api: Any, name: str, kind: str, files: dict[str, Path], form: str, replace_hint: bool = False,
           **texts: str) -> None:
    """Hash, ask what is missing, send that; an image that is there already, byte for byte, is no error."""
    from cli.api import request_id
    from virga.v1 import image_pb2

    progress = Progress()
    parts = [image_pb2.ImageFile(role=ROLES[role], size_bytes=path.stat().st_size, sha256=sha256(path))
             for role, path in files.items()]
    record = image_pb2.Image(name=name, kind=KINDS[kind], files=parts, **texts)
    there = _existing(api, name)
    if there is not None:
        if not same(there, record):
            raise CliError("conflict.image", f"another image is called {name}", CONFLICT,
                           f"--name for another name, or virga image delete {name}" if replace_hint
                           else f"another name, or virga image delete {name}")
        _told(there, form, "was there already")
        return
    missing = set(api.call(api.images.FindMissingFiles, image_pb2.FindMissingFilesRequest(
        sha256=[part.sha256 for part in parts])).sha256)
    wanted = [(role, path) for (role, path), part in zip(files.items(), parts) if part.sha256 in missing]
    progress.line(f"{name}  uploading {sum(path.stat().st_size for _, path in wanted) >> 20} MiB")
    opening = image_pb2.UploadImageRequest(open=image_pb2.UploadOpen(image=record, request_id=request_id()))
    answer = api.call(lambda request, **how: api.images.UploadImage(messages(opening, wanted), **how), None, name,
                      UPLOAD_SECONDS)
    _told(answer.image, form, "is ready")


def _told(image: Any, form: str, how: str) -> None:
    from cli.records import IMAGE_COLUMNS, image_record

    record = image_record(image)
    if form == "table":
        click.echo(f"{record['name']} {how} ({record['size']}).  Use it: virga vm create NAME --image {record['name']}")
    else:
        emit(record, form, IMAGE_COLUMNS)


def _existing(api: Any, name: str) -> Any:
    from virga.v1 import image_pb2

    try:
        found = api.call(api.images.GetImage, image_pb2.GetImageRequest(image=name), name).image
    except CliError as error:
        if error.kind.startswith("not_found"):
            return None
        raise
    return found if found.name == name else None


def same(one: Any, other: Any) -> bool:
    """Equal in all that an upload sets."""
    return (one.kind == other.kind and one.append == other.append and one.ready_marker == other.ready_marker
            and {(f.role, f.sha256) for f in one.files} == {(f.role, f.sha256) for f in other.files})


def messages(opening: Any, files: list[tuple[str, Path]]) -> Iterator[Any]:
    from virga.v1 import image_pb2

    yield opening
    for role, path in files:
        with open(path, "rb") as source:
            offset = 0
            while data := source.read(CHUNK_BYTES):
                yield image_pb2.UploadImageRequest(chunk=image_pb2.UploadChunk(role=ROLES[role], offset=offset, data=data))
                offset += len(data)


def sha256(path: Path) -> str:
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


@image.command("list")
@format_option
@target_options
def list_images(target: Target, form: str) -> None:
    """List the images."""
    from cli.api import every_page
    from cli.records import IMAGE_COLUMNS, image_record
    from virga.v1 import image_pb2

    api = target.api()
    found = every_page(api, api.images.ListImages, image_pb2.ListImagesRequest(), "images")
    if not found and form == "table":
        Progress().line("no images; make one: virga image build debian-cloud")
    emit([image_record(one) for one in found], form, IMAGE_COLUMNS)


@image.command()
@click.argument("name")
@format_option
@target_options
def show(target: Target, name: str, form: str) -> None:
    """Everything about one image."""
    from cli.output import table, text
    from cli.records import IMAGE_COLUMNS, image_record
    from virga.v1 import image_pb2

    api = target.api()
    record = image_record(api.call(api.images.GetImage, image_pb2.GetImageRequest(image=name), name).image)
    if form == "table":
        table([{"key": key, "value": text(value)} for key, value in record.items()], {"": "key", " ": "value"})
    else:
        emit(record, form, IMAGE_COLUMNS)


@image.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@target_options
def delete(target: Target, names: tuple[str, ...]) -> None:
    """Remove images that no VM is made from."""
    from virga.v1 import image_pb2

    api = target.api()
    for name in names:
        api.call(api.images.DeleteImage, image_pb2.DeleteImageRequest(image=name), name)
        click.echo(f"{name} is deleted.")
