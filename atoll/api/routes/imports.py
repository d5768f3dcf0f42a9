"""Images come in and go out: by URL, or as the bytes of a request and an answer."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from litestar.exceptions import InternalServerException
from litestar.response import Stream
from msgspec import Meta

from atoll.api.route import BYTES, Call, Reply, Routes, accepted
from atoll.base.errors import Invalid, Unreachable
from atoll.client.wire import ImportBody
from atoll.host.web import check_url
from atoll.image.imports import Arch, Format, ImportArgs, Sha256
from atoll.operation.model import Operation, Subject

routes = Routes()
IMAGE = "/projects/{project}/images/{name}"
SILENCE = 120.0
"""Seconds without a byte after which a sender is given up."""


class SendQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`sha256`: what the file must have."""

    sha256: Sha256 = ""
    format: Format = ""
    arch: Arch = ""
    agent: bool = False
    replace: bool = False


class ContentQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`role`: which of its files; none: its disk, disc or root file system."""

    role: Annotated[str, Meta(pattern="^(disk|kernel|initrd|iso|rootfs)?$")] = ""


@routes.add("POST", IMAGE + "/import", action="image.import", answer=Operation, status=202)
async def import_url(call: Call, body: ImportBody) -> Reply:
    """Fetch an image from a URL. The daemon fetches it: addresses that are not the internet's are refused, unless
    images.private in its settings allows them."""
    check_url(body.url)
    given = {name: getattr(body, name) for name in body.__struct_fields__}
    return await call.submit("image.import", ImportArgs(project=call.project, name=call.name, **given))


@routes.add("PUT", IMAGE + "/content", action="image.send", answer=Operation, status=202, takes=BYTES)
async def send(call: Call, query: SendQuery) -> Reply:
    """Import the image that the body is: qcow2, raw, ISO, or a root file system as tar or squashfs; maybe
    compressed by gzip, xz or zstd."""
    by, images = call.by, call.services.images
    await images.check_free(call.project, call.name, replace=query.replace)  # before gigabytes are sent
    upload = await images.receive(_patient(call), _length(call))
    try:
        given = {name: getattr(query, name) for name in query.__struct_fields__}
        args = ImportArgs(project=call.project, name=call.name, upload=upload.name, sent=upload.digest, **given)
        sent = f"PUT {call.request.url.path}?{call.request.url.query} {upload.digest}"
        by = msgspec.structs.replace(by, fingerprint=hashlib.sha256(sent.encode()).hexdigest())
        subject = Subject("image", call.project, call.name)
        operation = await call.services.operations.submit("image.import", args, subject, by)
    except BaseException:
        images.drop(upload)
        raise
    if operation.request and msgspec.json.decode(operation.request, type=ImportArgs).upload != upload.name:
        images.drop(upload)  # sent twice: the first one is at work
    return accepted(operation)


@routes.add("GET", IMAGE + "/content", action="image.export", answer=bytes, media=BYTES)
async def content(call: Call, query: ContentQuery) -> Reply:
    """A file of an image, as it is kept. `ETag` is its digest."""
    file, chunks = await call.services.images.content(call.project, call.name, query.role)
    headers = {"Content-Length": str(file.size), "ETag": f'"{file.digest}"', "Cache-Control": "no-store"}
    return Stream(chunks, media_type=BYTES, headers=headers)


def _length(call: Call) -> int | None:
    told = call.request.headers.get("content-length")
    if told is None:
        return None
    if not (told.isascii() and told.isdigit()):
        raise Invalid("this is no length", field="Content-Length")
    return int(told)


async def _patient(call: Call) -> AsyncIterator[bytes]:
    stream = aiter(call.request.stream())
    while True:
        try:
            async with asyncio.timeout(SILENCE):
                chunk = await anext(stream, None)
        except TimeoutError as error:
            raise Unreachable("the sender fell silent", hint="send it again") from error
        except InternalServerException as error:  # what Litestar calls a client that hung up
            raise Unreachable("the sender hung up before all was sent", hint="send it again") from error
        if chunk is None:
            return
        if chunk:
            yield chunk
