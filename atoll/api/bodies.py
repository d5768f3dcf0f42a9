"""Bodies that are read as they come."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import msgspec
from litestar.exceptions import InternalServerException

from atoll.api.route import Call
from atoll.base.errors import Invalid, Unreachable
from atoll.operation import runner

SILENCE = 120.0
"""Seconds without a byte after which a sender is given up."""


def fingerprinted(call: Call, by: runner.Request, content: str) -> runner.Request:
    """The request with what tells it from another under the same key; `content`: what its body was."""
    sent = f"{call.request.method} {call.request.url.path}?{call.request.url.query} {content}"
    return msgspec.structs.replace(by, fingerprint=hashlib.sha256(sent.encode()).hexdigest())


def length_of(call: Call) -> int | None:
    """As it was announced, None: it was not. Raises Invalid."""
    told = call.request.headers.get("content-length")
    if told is None:
        return None
    if not (told.isascii() and told.isdigit()):
        raise Invalid("this is no length", field="Content-Length")
    return int(told)


async def patient(call: Call) -> AsyncIterator[bytes]:
    """Raises Unreachable where the sender falls silent or hangs up."""
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
