"""Image files arrive whole, once, or not at all."""

import asyncio
import errno
import hashlib
import os

import pytest

from node_agent.agent import images as module
from node_agent.agent.images import ImageError, Images

DATA = os.urandom(300_000)
SHA = hashlib.sha256(DATA).hexdigest()


class Source:
    def __init__(self, data=DATA):
        self.data, self.calls, self.break_at = data, [], None

    async def fetch(self, sha256, offset):
        self.calls.append(offset)
        for at in range(offset, len(self.data), 65536):
            if self.break_at is not None and at >= self.break_at:
                raise ConnectionError("cut")
            yield self.data[at:at + 65536]


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def images(tmp_path, source):
    return Images(tmp_path, source.fetch, lambda: {SHA})


async def test_fetched_once_also_by_many(images, source):
    results = await asyncio.gather(*(images.get(SHA, len(DATA)) for _ in range(5)))
    assert source.calls == [0] and [cached for _, cached in results] == [False, True, True, True, True]
    assert results[0][0].read_bytes() == DATA


async def test_goes_on_where_it_was_cut(images, source):
    source.break_at = 131072
    with pytest.raises(ConnectionError):
        await images.get(SHA, len(DATA))
    source.break_at = None
    path, _ = await images.get(SHA, len(DATA))
    assert source.calls == [0, 131072] and path.read_bytes() == DATA


@pytest.mark.parametrize("data", [DATA[:-1] + b"x", DATA[:1000], DATA + b"more"])
async def test_what_does_not_fit_its_hash_is_never_kept(images, source, tmp_path, data):
    source.data = data
    with pytest.raises(ImageError) as error:
        await images.get(SHA, len(DATA))
    assert error.value.reason == "IMAGE_FAILED" and list(tmp_path.iterdir()) == []


async def test_a_file_that_lost_its_end_is_fetched_anew(images, source, tmp_path):
    (tmp_path / SHA).write_bytes(DATA[:100])
    path, cached = await images.get(SHA, len(DATA))
    assert not cached and path.read_bytes() == DATA


async def test_a_full_disk_first_frees_what_nobody_uses(images, source, tmp_path, monkeypatch):
    (tmp_path / ("0" * 64)).write_bytes(b"unused")
    real = os.posix_fallocate

    def fallocate(fd, offset, size):
        if (tmp_path / ("0" * 64)).exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd, offset, size)
    monkeypatch.setattr(module.os, "posix_fallocate", fallocate)
    path, _ = await images.get(SHA, len(DATA))
    assert path.read_bytes() == DATA


async def test_a_full_disk_is_told(images, source, tmp_path, monkeypatch):
    def fallocate(fd, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(module.os, "posix_fallocate", fallocate)
    with pytest.raises(ImageError) as error:
        await images.get(SHA, len(DATA))
    assert error.value.reason == "DISK_FULL"


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63])
async def test_names_that_are_no_hash(images, name):
    with pytest.raises(ImageError):
        await images.get(name, 1)
