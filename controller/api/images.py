"""ImageService. Contracts: proto/virga/v1/image.proto.

Owns:    the course of an upload.
Never:   lets an image exist before all its files are there, whole and checked.
Threads: one event loop.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

from controller import errors
from controller.api import listing, wire
from controller.api.access import Caller
from controller.api.once import Once
from controller.api.rpc import first_message
from controller.events import Events
from controller.ids import Ids
from controller.images.check import check_file
from controller.images.files import ImageFiles, Upload
from controller.model.records import FileRole, ImageFile, ImageRecord, Pointer
from controller.store import keys
from controller.store.cache import Entry
from controller.store.store import Commit, Store
from controller.store.world import World
from virga.v1 import image_pb2 as pb

IDLE_S = 60.0                     # an upload that brings nothing for so long is ended
MAX_ASKED = 1000


class ImageService:
    def __init__(self, store: Store, world: World, files: ImageFiles, events: Events, ids: Ids,
                 clock: Callable[[], float]) -> None:
        self._store, self._world, self._files, self._events = store, world, files, events
        self._ids, self._clock = ids, clock

    async def upload_image(self, requests: AsyncIterator[Any], caller: Caller) -> Any:
        first = await first_message(requests, "open")
        if not first.HasField("open"):
            raise errors.BadField("open", "must be the first message")
        once = Once(self._store, "UploadImage", first.open, first.open.request_id)
        if not (uid := once.done()):
            image = wire.image_from_proto(first.open.image, self._ids.next(), self._clock())
            self._refuse_taken(image)
            async with AsyncExitStack() as stack:
                uploads = await self._receive(stack, image, requests)
                for file, upload in uploads:
                    await upload.check()
                    await asyncio.to_thread(check_file, image.kind, file, upload.path)
                await self._check_present(image, {file.sha256 for file, _ in uploads})
                for _, upload in uploads:
                    await upload.finish()
            uid = await self._commit(image, once)
        return pb.UploadImageResponse(image=self._show(self._world.find_image(uid)))

    async def _receive(self, stack: AsyncExitStack, image: ImageRecord, requests: AsyncIterator[Any]
                       ) -> list[tuple[ImageFile, Upload]]:
        """The files that come, each in a temporary place that ends with the stack."""
        files = {file.role: file for file in image.files}
        uploads: dict[FileRole, Upload] = {}
        messages = aiter(requests)
        while True:
            try:
                async with asyncio.timeout(IDLE_S):
                    message = await anext(messages)
            except StopAsyncIteration:
                return [(files[role], upload) for role, upload in uploads.items()]
            except TimeoutError:
                raise errors.BadField("chunk", f"nothing came for {IDLE_S:.0f} s", "FILE_TRUNCATED") from None
            if not message.HasField("chunk"):
                raise errors.BadField("chunk", "must follow")
            role = wire.enum_from_proto("chunk.role", pb.FileRole, "FILE_ROLE_", FileRole, message.chunk.role)
            if role not in files:
                raise errors.BadField("chunk.role", f"the image has no {role.lower()}")
            if role not in uploads:
                upload = self._files.upload(files[role].sha256, files[role].size_bytes)
                uploads[role] = await stack.enter_async_context(upload)
            await uploads[role].write(message.chunk.offset, message.chunk.data)

    async def _check_present(self, image: ImageRecord, uploaded: set[str]) -> None:
        """Files that did not come are here already, and are what this image calls them."""
        for file in image.files:
            if file.sha256 in uploaded:
                continue
            if not self._files.has(file.sha256):
                raise errors.BadField("files", f"the {file.role.lower()} {file.sha256[:12]}… has not come and is not "
                                      "here", "FILE_MISSING")
            path = self._files.path(file.sha256)
            if path.stat().st_size != file.size_bytes:
                raise errors.BadField("files.size_bytes", f"the {file.role.lower()} has {path.stat().st_size} bytes")
            await asyncio.to_thread(check_file, image.kind, file, path)
            os.utime(path)                            # used again: housekeeping leaves it

    async def _commit(self, image: ImageRecord, once: Once) -> str:
        def decide() -> tuple[Commit, str]:
            commit = Commit()
            if earlier := once.done():
                return commit, earlier
            self._refuse_taken(image)
            commit.create(keys.IMAGE, image.uid, image).create(keys.IMAGE_NAME, image.name, Pointer(image.uid))
            once.remember(commit, image.uid, self._clock())
            size = sum(file.size_bytes for file in image.files)
            self._events.image(commit, image, "Imported", f"{size} bytes", self._clock())
            return commit, image.uid

        return await self._store.change(decide)

    def _refuse_taken(self, image: ImageRecord) -> None:
        if self._store.entry(keys.IMAGE_NAME, image.name):
            raise errors.Taken("image", image.name)

    async def find_missing_files(self, request: Any, caller: Caller) -> Any:
        if len(request.sha256) > MAX_ASKED:
            raise errors.BadField("sha256", f"has more than {MAX_ASKED}")
        return pb.FindMissingFilesResponse(sha256=[each for each in request.sha256 if not self._files.has(each)])

    async def get_image(self, request: Any, caller: Caller) -> Any:
        return pb.GetImageResponse(image=self._show(self._world.find_image(request.image)))

    async def list_images(self, request: Any, caller: Caller) -> Any:
        table = self._world.cache.table(keys.IMAGE)
        page, token = listing.page_of(((uid, table[uid]) for uid in sorted(table)), request.page_size,
                                      request.page_token)
        return pb.ListImagesResponse(images=map(self._show, page), next_page_token=token,
                                     revision=self._world.revision)

    async def delete_image(self, request: Any, caller: Caller) -> Any:
        def decide() -> tuple[Commit, None]:
            entry, commit = self._world.find_image(request.image), Commit()
            image: ImageRecord = entry.record
            if users := self._world.vms_of_image(image.uid):
                raise errors.WrongState("IMAGE_IN_USE", "image", image.name, f"{len(users)} VMs are made from "
                                        f"{image.name}: {', '.join(view.record.name for view in users[:5])}")
            commit.delete(keys.IMAGE, image.uid, entry)
            commit.delete(keys.IMAGE_NAME, image.name, self._store.entry(keys.IMAGE_NAME, image.name))
            self._events.image(commit, image, "Deleted", "", self._clock())
            return commit, None

        await self._store.change(decide)
        return pb.DeleteImageResponse()

    def _show(self, entry: Entry) -> Any:
        return wire.image_to_proto(entry.record, entry.revision)
