"""The protocol of the QEMU guest agent: JSON lines over a virtio-serial port.

The other end belongs to the guest and is hostile until proven otherwise: every answer is bounded, awaited under a
deadline and checked for its type. Reference: QEMU's qga/qapi-schema.json.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from atoll.base.errors import Absent, AtollError, Broken, Unreachable
from atoll.base.units import MiB, show_size
from atoll.host import sockets

TIMEOUT = 10.0
"""Seconds for an answer. A guest under TCG that swaps needs seconds for what takes a millisecond."""
LIMIT = 1 * MiB
EXEC_LIMIT = 46 * MiB
"""Bytes of an answer. The agent keeps up to 16 MiB each of a program's two outputs, and base64 adds a third."""
_CHUNK = 64 << 10
_SENTINEL = b"\xff"
Kind = TypeVar("Kind")


class Agent:
    """One guest's agent. One message is under way at a time; a program's run is many, so none waits for it."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._turn = asyncio.Lock()
        self._channel: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._read = bytearray()

    async def call(
        self,
        command: str,
        kind: type[Kind],
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float = TIMEOUT,
        limit: int = LIMIT,
    ) -> Kind:
        """Its answer as a `kind`. `timeout`: seconds, waiting for one's turn not counted.

        Raises Absent (no such file or program), Broken (it said no, or nonsense), Unreachable (no answer).
        """
        message = {"execute": command, **({"arguments": dict(arguments)} if arguments else {})}
        async with self._turn:
            try:
                async with asyncio.timeout(timeout):
                    reader, writer = self._channel or await self._open()
                    await self._send(writer, msgspec.json.encode(message) + b"\n")
                    line = await self._until(b"\n", reader, limit)
            except TimeoutError as error:
                self._drop()
                raise Unreachable(f"the agent of {self._name} did not answer within {timeout:g} s") from error
            except OSError as error:
                self._drop()
                raise Unreachable(f"the agent of {self._name} hung up: {error}") from error
            except BaseException:  # also cancellation: an answer that comes later must not be taken for another's
                self._drop()
                raise
            return self._understood(line, command, kind)

    async def tell(self, command: str, arguments: Mapping[str, object]) -> None:
        """A command that is not answered when it works (guest-shutdown)."""
        with contextlib.suppress(AtollError):
            await self.call(command, dict, arguments, timeout=1.0)

    def close(self) -> None:
        self._drop()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, and agree on a fresh beginning: what was left in the line is skipped (0xFF, then our number)."""
        sock = await sockets.connect(self._path)
        try:
            reader, writer = await asyncio.open_unix_connection(sock=sock)
        except BaseException:
            sock.close()
            raise
        self._channel = reader, writer
        self._read.clear()
        number = secrets.randbelow(1 << 30)
        sync = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        await self._send(writer, _SENTINEL + msgspec.json.encode(sync) + b"\n")
        while True:
            await self._until(_SENTINEL, reader, EXEC_LIMIT)
            line = await self._until(b"\n", reader, LIMIT)
            with contextlib.suppress(msgspec.DecodeError):
                if msgspec.json.decode(line) == {"return": number}:
                    return reader, writer

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    async def _until(self, mark: bytes, reader: asyncio.StreamReader, limit: int) -> bytes:
        """What comes before the next `mark`, which is taken too."""
        searched = 0
        while (found := self._read.find(mark, searched)) < 0:
            searched = len(self._read)
            if searched > limit:
                raise Broken(f"the agent of {self._name} answered with more than {show_size(limit)}")
            more = await reader.read(_CHUNK)
            if not more:
                raise ConnectionResetError("end of file")
            self._read += more
        line = bytes(self._read[:found])
        del self._read[: found + 1]
        return line

    def _understood(self, line: bytes, command: str, kind: type[Kind]) -> Kind:
        try:
            answer = msgspec.json.decode(line, type=_Answer)
            if answer.error is None:
                return msgspec.convert(answer.value, kind)
        except (msgspec.MsgspecError, RecursionError) as error:
            self._drop()
            raise Broken(f"the agent of {self._name} answered {command} with nonsense") from error
        said = answer.error.desc[:500]
        error_kind: type[AtollError] = Absent if "No such file" in said else Broken
        raise error_kind(f"the agent of {self._name}: {said}")

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel[1].close()
            self._channel = None
        self._read.clear()


class _Said(msgspec.Struct, frozen=True):
    desc: str = ""


class _Answer(msgspec.Struct, frozen=True):
    value: Any = msgspec.field(name="return", default=None)
    error: _Said | None = None
