"""Consoles and shells that echo."""

import asyncio

from atoll.base.errors import Refused
from atoll.instance.book import InstanceView


class FakeStream:
    """Says hello, then echoes; ends when told `bye`."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.queue.put_nowait(b"login: ")

    async def read(self) -> bytes:
        return await self.queue.get()

    async def write(self, data: bytes) -> None:
        await self.queue.put(b"" if data == b"bye" else data)

    async def close(self) -> None: ...


class Echo:
    """A login that says back what is typed, and its terminal's size when that changes."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self) -> bytes:
        return await self._said.get()

    async def write(self, data: bytes) -> None:
        self._said.put_nowait(b"" if data == b"exit\n" else data)

    def resize(self, columns: int, rows: int) -> None:
        self._said.put_nowait(f"{columns}x{rows}".encode())

    async def close(self) -> None: ...


class Echoing:
    async def open(self, view: InstanceView, *, user: str, columns: int, rows: int) -> Echo:
        if not view.instance.hardware.seed:
            raise Refused(f"{view.name} was not told the project's key")
        session = Echo()
        await session.write(f"{user} {columns}x{rows}\n".encode())
        return session
