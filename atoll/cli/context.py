"""From a command to the daemon and back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from atoll.base.errors import Invalid
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client

T = TypeVar("T")


@asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator["Client"]:
    """A client of the daemon that the settings name, in their project."""
    from atoll.client import Client, Endpoint

    if settings.server:
        endpoint = Endpoint(
            url=settings.server,
            token=settings.token,
            fingerprint=settings.fingerprint,
            ca=Path(settings.ca) if settings.ca else None,
        )
    else:
        endpoint = Endpoint(socket=Path(settings.socket))
    async with Client(endpoint, project=settings.project) as client:
        yield client


def run(settings: Settings, work: Callable[["Client"], Awaitable[T]]) -> T:
    """Carry out `work` with a client. Ctrl-C cancels it, then shows as KeyboardInterrupt."""

    async def connected() -> T:
        async with connect(settings) as client:
            return await work(client)

    if settings.output not in ("table", "json", "yaml"):
        raise Invalid(f"ATOLL_OUTPUT is {settings.output!r}", hint="it may be table, json or yaml")
    return asyncio.run(connected())
