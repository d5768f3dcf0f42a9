"""A guest's serial console for any number of people, over the one connection that QEMU takes.

It is connected while somebody looks. What was said before comes from the serial log, which QEMU itself keeps.
Nobody can hold the guest up: who reads too slowly is dropped.
"""

import asyncio
import collections
import contextlib
from pathlib import Path

from atoll.base.errors import Broken, Unreachable
from atoll.base.units import MiB
from atoll.host import sockets
from atoll.instance.engines.kept import tail

RECENT = 16 << 10
"""Bytes that a new reader sees of what went before."""
BEHIND = 1 * MiB
"""Bytes a reader may be behind before it is dropped."""
_WRITE_IN = 10.0  # seconds for the guest to take what was typed


class Console:
    """The connection to one guest's console, and who looks."""

    def __init__(self, path: Path, log: Path, name: str) -> None:
        self._path, self._log, self._name = path, log, name
        self._readers: set[Reader] = set()
        self._recent = bytearray()
        self._writer: asyncio.StreamWriter | None = None
        self._pump: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> "Reader":
        """Raises Absent (QEMU is gone), Unreachable, Broken."""
        async with self._opening:
            if self._pump is None or self._pump.done():
                await self._connect()
            reader = Reader(self)
            reader.feed(bytes(self._recent))
            self._readers.add(reader)
            return reader

    async def _connect(self) -> None:
        sock = await sockets.connect(self._path)
        try:
            source, self._writer = await asyncio.open_unix_connection(sock=sock)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise Broken(f"the console of {self._name} hung up: {error}") from error
            raise
        self._recent = bytearray(tail(self._log, RECENT))
        self._pump = asyncio.create_task(self._follow(source), name=f"console of {self._name}")

    async def _follow(self, source: asyncio.StreamReader) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await source.read(RECENT):
                    self._recent += data
                    del self._recent[:-RECENT]
                    for reader in tuple(self._readers):
                        reader.feed(data)
        finally:
            for reader in tuple(self._readers):
                reader.end()
            self._readers.clear()
            self._hang_up()

    async def write(self, data: bytes) -> None:
        writer = self._writer
        if writer is None:
            raise Unreachable(f"the console of {self._name} is closed")
        writer.write(data)
        try:
            async with asyncio.timeout(_WRITE_IN):
                await writer.drain()
        except TimeoutError as error:
            raise Unreachable(f"{self._name} does not read its console") from error
        except OSError as error:
            raise Unreachable(f"the console of {self._name} hung up") from error

    async def leave(self, reader: "Reader") -> None:
        self._readers.discard(reader)
        if not self._readers:
            await self.close()

    async def close(self) -> None:
        """Hang up on everybody."""
        pump, self._pump = self._pump, None
        if pump is not None:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
        self._hang_up()  # a task cancelled before its first step runs no `finally`

    def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Reader:
    """One who looks: the `Stream` of the engine's contract."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._waiting: collections.deque[bytes] = collections.deque()
        self._behind = 0
        self._more = asyncio.Event()
        self._ended = False

    def feed(self, data: bytes) -> None:
        if self._ended or not data:
            return
        self._behind += len(data)
        if self._behind > BEHIND:
            self.end()
            return
        self._waiting.append(data)
        self._more.set()

    def end(self) -> None:
        self._ended = True
        self._more.set()

    async def read(self) -> bytes:
        while not self._waiting:
            if self._ended:
                return b""
            self._more.clear()
            await self._more.wait()
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._behind = 0
        return data

    async def write(self, data: bytes) -> None:
        if self._ended:
            raise Unreachable("this console is closed")
        await self._console.write(data)

    async def close(self) -> None:
        self.end()
        await self._console.leave(self)
