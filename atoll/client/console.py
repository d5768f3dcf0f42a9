"""A guest's serial console over a WebSocket."""

import json
from contextlib import suppress
from typing import TYPE_CHECKING

from atoll.base.errors import Unreachable
from atoll.client.problems import from_close

if TYPE_CHECKING:
    import aiohttp


class Console:
    """Both directions. `read` returns b"" at the end, with `reason` saying why; raises the error that ended it."""

    def __init__(self, socket: "aiohttp.ClientWebSocketResponse") -> None:
        self._socket = socket
        self.reason = ""

    async def read(self) -> bytes:
        message = await self._socket.receive()
        if isinstance(message.data, bytes):
            return message.data
        if isinstance(message.data, int):  # a close frame: its code, and the reason beside it
            self.reason = str(message.extra or "")
        if error := from_close(self._socket.close_code, self.reason):
            raise error
        return b""

    async def write(self, data: bytes) -> None:
        try:
            await self._socket.send_bytes(data)
        except ConnectionError as error:
            raise Unreachable("the console's connection broke") from error

    async def resize(self, columns: int, rows: int) -> None:
        """Of a login over the network: its terminal has another size now."""
        with suppress(ConnectionError):
            await self._socket.send_str(json.dumps({"columns": columns, "rows": rows}))

    async def close(self) -> None:
        await self._socket.close()
