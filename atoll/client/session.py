"""A program in a guest, talked to over a WebSocket while it runs."""

import json
from typing import TYPE_CHECKING, Any

import msgspec

from atoll.base.errors import Unreachable
from atoll.client.problems import from_close
from atoll.instance.engine import Ended

if TYPE_CHECKING:
    import aiohttp


class ExecSession:
    """`read` gives (1 for output, 2 for errors; bytes), no bytes at its end: then `ended` says how."""

    def __init__(self, socket: "aiohttp.ClientWebSocketResponse") -> None:
        self._socket = socket
        self.ended: Ended | None = None

    async def read(self) -> tuple[int, bytes]:
        """Raises what ended it otherwise, Unreachable where the connection broke."""
        message = await self._socket.receive()
        if isinstance(message.data, bytes):
            return message.data[0], message.data[1:]
        if isinstance(message.data, str):
            self.ended = msgspec.json.decode(message.data, type=Ended)
            return 1, b""
        if error := from_close(self._socket.close_code, str(message.extra or "")):
            raise error
        raise Unreachable("the connection broke before the program ended")

    async def write(self, data: bytes) -> None:
        try:
            await self._socket.send_bytes(data)
        except ConnectionError as error:
            raise Unreachable("the connection broke") from error

    async def eof(self) -> None:
        await self._say(eof=True)

    async def signal(self, number: int) -> None:
        await self._say(signal=number)

    async def resize(self, columns: int, rows: int) -> None:
        await self._say(columns=columns, rows=rows)

    async def _say(self, **word: Any) -> None:
        try:
            await self._socket.send_str(json.dumps(word))
        except ConnectionError as error:
            raise Unreachable("the connection broke") from error
