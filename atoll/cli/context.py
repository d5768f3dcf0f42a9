"""From a command to the daemon and back."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from atoll.base.errors import Invalid
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client

T = TypeVar("T")
SOCKET_PATH_MAX = 107
"""Bytes that a unix socket's address holds (unix(7))."""


@asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator["Client"]:
    """A client of the daemon that the settings name, in their project."""
    from atoll.client import Client, Endpoint

    with ExitStack() as stack:
        if settings.server:
            endpoint = Endpoint(
                url=settings.server,
                token=settings.token,
                fingerprint=settings.fingerprint,
                ca=Path(settings.ca) if settings.ca else None,
            )
        else:
            endpoint = Endpoint(socket=_short(settings.socket, stack))
        async with Client(endpoint, project=settings.project) as client:
            yield client


def _short(path: str, stack: ExitStack) -> Path:
    """A path too long for a socket's address is reached through its open directory."""
    folder = os.path.dirname(path)
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX or not os.path.isdir(folder):
        return Path(path)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return Path(f"/proc/self/fd/{fd}/{os.path.basename(path)}")


def run(settings: Settings, work: Callable[["Client"], Awaitable[T]]) -> T:
    """Carry out `work` with a client. Ctrl-C cancels it, then shows as KeyboardInterrupt."""

    async def connected() -> T:
        async with connect(settings) as client:
            return await work(client)

    if settings.output not in ("table", "json", "yaml"):
        raise Invalid(f"ATOLL_OUTPUT is {settings.output!r}", hint="it may be table, json or yaml")
    return asyncio.run(connected())
