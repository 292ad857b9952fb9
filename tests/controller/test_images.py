"""Images: uploads that are whole, or nothing."""

import asyncio
import hashlib
import os
import struct

import grpc
import pytest

from tests.servers.cloud import USER, cloud, multiboot_kernel
from virga.agent.v1 import agent_pb2, agent_pb2_grpc
from virga.v1 import image_pb2 as pb


@pytest.fixture
async def site(tmp_path):
    async with cloud(tmp_path, nodes=(), image=False) as made:
        yield made


def bzimage(size=64 << 10):
    head = bytearray(size)
    head[0x1F1] = 3
    struct.pack_into("<I", head, 0x1F4, (size - 4 * 512) // 16)
    struct.pack_into("<H", head, 0x1FE, 0xAA55)
    head[0x202:0x206] = b"HdrS"
    return bytes(head)


def file_of(data, role=pb.FILE_ROLE_KERNEL):
    return pb.ImageFile(role=role, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


async def upload(site, image, pieces):
    """pieces: (role, offset, data)"""
    async def messages():
        yield pb.UploadImageRequest(open=pb.UploadOpen(image=image))
        for role, offset, data in pieces:
            yield pb.UploadImageRequest(chunk=pb.UploadChunk(role=role, offset=offset, data=data))
    return (await site.api.images.UploadImage(messages(), metadata=USER)).image


def linux(data, name="debian", **fields):
    return pb.Image(name=name, kind=pb.IMAGE_KIND_LINUX, files=[file_of(data)], **fields)


async def names(site):
    return [image.name for image in (await site.api.images.ListImages(pb.ListImagesRequest(), metadata=USER)).images]


async def test_an_image_comes_and_agents_get_its_bytes(site):
    data = bzimage(3 << 20)
    image = await upload(site, linux(data), [(pb.FILE_ROLE_KERNEL, 0, data[:1 << 20]),
                                             (pb.FILE_ROLE_KERNEL, 1 << 20, data[1 << 20:])])
    assert image.size_bytes == len(data)
    agent = agent_pb2_grpc.AgentServiceStub(site.api.channel)
    metadata = (("authorization", "Bearer token-node-1"), ("virga-node", "node-1"))
    got = b""
    async for piece in agent.FetchImage(agent_pb2.FetchImageRequest(sha256=image.files[0].sha256, offset=5),
                                        metadata=metadata):
        assert (piece.offset, piece.size_bytes) == (5 + len(got), len(data))
        got += piece.data
    assert got == data[5:]


async def test_a_file_that_is_here_needn_t_come_again(site):
    data = bzimage()
    await upload(site, linux(data), [(pb.FILE_ROLE_KERNEL, 0, data)])
    known, unknown = file_of(data).sha256, "0" * 64
    missing = await site.api.images.FindMissingFiles(pb.FindMissingFilesRequest(sha256=[known, unknown]), metadata=USER)
    assert list(missing.sha256) == [unknown]
    await upload(site, linux(data, "again"), [])
    assert await names(site) == ["debian", "again"]


K = pb.FILE_ROLE_KERNEL
GOOD = bzimage()
ELF64_CUT = (b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
             + struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 1 << 20, 1 << 20, 0))


@pytest.mark.parametrize("image, pieces, reason", [
    (linux(GOOD), [], "FILE_MISSING"),
    (linux(GOOD), [(K, 0, GOOD[:1000])], "FILE_TRUNCATED"),
    (linux(GOOD), [(K, 0, GOOD + b"x")], "FILE_TOO_LONG"),
    (linux(GOOD), [(K, 0, GOOD[:-1] + b"x")], "CHECKSUM_MISMATCH"),
    (linux(GOOD), [(K, 0, GOOD[:100]), (K, 200, GOOD[200:])], "CHUNK_GAP"),
    (linux(GOOD), [(pb.FILE_ROLE_DISK, 0, b"x")], "INVALID_FIELD"),
    (linux(b"hello, world"), [(K, 0, b"hello, world")], "NOT_A_KERNEL"),
    (linux(b"\x7fELF"), [(K, 0, b"\x7fELF")], "NOT_A_KERNEL"),
    (linux(GOOD[:-4096]), [(K, 0, GOOD[:-4096])], "FILE_TRUNCATED"),
    (linux(ELF64_CUT), [(K, 0, ELF64_CUT)], "FILE_TRUNCATED"),
    (linux(GOOD, name="No Name"), [], "INVALID_FIELD"),
    (linux(GOOD, name=""), [], "INVALID_FIELD"),
    (linux(GOOD, append="a\nb"), [], "INVALID_FIELD"),
    (pb.Image(name="x", kind=pb.IMAGE_KIND_LINUX), [], "INVALID_FIELD"),
    (pb.Image(name="x", files=[file_of(GOOD)]), [], "INVALID_FIELD"),
    (pb.Image(name="x", kind=pb.IMAGE_KIND_DISK, files=[file_of(GOOD)]), [], "INVALID_FIELD"),
    (pb.Image(name="x", kind=pb.IMAGE_KIND_LINUX, files=[file_of(GOOD), file_of(GOOD)]), [], "INVALID_FIELD"),
    (pb.Image(name="x", kind=pb.IMAGE_KIND_MULTIBOOT, files=[file_of(GOOD)]), [(K, 0, GOOD)], "NOT_A_KERNEL"),
    (pb.Image(name="x", kind=pb.IMAGE_KIND_DISK, files=[file_of(b"abc", pb.FILE_ROLE_DISK)]),
     [(pb.FILE_ROLE_DISK, 0, b"abc")], "NOT_A_DISK"),
    (pb.Image(name="x", kind=pb.IMAGE_KIND_LINUX, files=[pb.ImageFile(role=K, size_bytes=5, sha256="../../etc")]), [],
     "INVALID_FIELD"),
])
async def test_what_is_no_image_leaves_nothing(site, image, pieces, reason):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await upload(site, image, pieces)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason.encode() in dict(refused.value.trailing_metadata())["grpc-status-details-bin"]
    assert await names(site) == []
    assert os.listdir(site.folder / "images") == []


async def test_an_upload_broken_off_leaves_nothing(site):
    call = site.api.images.UploadImage(metadata=USER)
    await call.write(pb.UploadImageRequest(open=pb.UploadOpen(image=linux(GOOD))))
    await call.write(pb.UploadImageRequest(chunk=pb.UploadChunk(role=K, offset=0, data=GOOD[:100])))
    call.cancel()
    for _ in range(100):
        if not os.listdir(site.folder / "images"):
            break
        await asyncio.sleep(0.02)
    assert os.listdir(site.folder / "images") == []


async def test_a_full_disk_is_told(site, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await upload(site, linux(GOOD), [(K, 0, GOOD)])
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert os.listdir(site.folder / "images") == []


async def test_an_image_in_use_stays(site):
    await site.api.upload("tiny", multiboot_kernel())
    await site.api.create("web")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await site.api.images.DeleteImage(pb.DeleteImageRequest(image="tiny"), metadata=USER)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "web" in refused.value.details()


async def test_a_deleted_image_is_gone_and_its_name_free(site):
    await site.api.upload("tiny")
    await site.api.images.DeleteImage(pb.DeleteImageRequest(image="tiny"), metadata=USER)
    assert await names(site) == []
    await site.api.upload("tiny")
