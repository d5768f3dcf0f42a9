"""HTTP to a daemon's unix socket as any program would speak it, also what a well-behaved client never sends."""

import http.client
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec


class Answer(msgspec.Struct, frozen=True):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def request(
    sock: Path,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: Mapping[str, str] = {},
    timeout: float = 60,
) -> Answer:
    """`body`: bytes go as they are, anything else as JSON. Raises OSError, http.client.HTTPException."""
    data = body if isinstance(body, bytes | None) else msgspec.json.encode(body)
    connection = _Connection(sock, timeout)
    try:
        connection.request(method, path, data, {"Content-Type": "application/json", **headers})
        got = connection.getresponse()
        return Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())
    finally:
        connection.close()
