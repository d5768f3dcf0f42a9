"""HTTP and WebSocket to one daemon. The only file that knows aiohttp; its errors are translated here."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from atoll.base.errors import AtollError, Broken, Invalid, Lacking, Unauthenticated, Unreachable
from atoll.base.ids import new_uuid
from atoll.client.endpoint import Endpoint
from atoll.client.problems import NotRunning, from_body

if TYPE_CHECKING:  # aiohttp costs 150 ms to import: `atoll --help` must not pay for it
    import aiohttp

T = TypeVar("T")
Query = Mapping[str, str | int | float | bool | Sequence[str] | None]
NONE: Mapping[str, str] = MappingProxyType({})
CONNECT = 5.0
"""Seconds to reach the daemon."""
ANSWER = 30.0
"""Seconds an ordinary request may take."""
SILENCE = 45.0
"""Seconds without a byte on a stream: the daemon's heartbeats come every 15."""


def path_of(*segments: str) -> str:
    return "/v1/" + "/".join(quote(segment, safe="") for segment in segments)


def query_of(query: Query) -> str:
    pairs: list[tuple[str, str]] = []
    for key, value in query.items():
        if isinstance(value, bool):
            pairs.append((key, "true" if value else "false"))
        elif isinstance(value, str | int | float):
            pairs.append((key, str(value)))
        elif value is not None:
            pairs += [(key, each) for each in value]
    return "?" + urlencode(pairs) if pairs else ""


class Transport:
    """Connections are kept and shared; safe to use from many tasks of one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self,
        method: str,
        path: str,
        answer: type[T],
        *,
        query: Query = NONE,
        body: msgspec.Struct | None = None,
        headers: Mapping[str, str] = NONE,
        timeout: float = ANSWER,
    ) -> T:
        """The decoded answer (`bytes`: as it came; `None`: nothing). Raises the error the daemon names,
        NotRunning, Unreachable at the deadline, Broken where the answer makes no sense."""
        data = None if body is None else msgspec.json.encode(body)
        async with self.open(
            method, path, query=query, data=data, headers=_typed(headers, data), timeout=timeout
        ) as response:
            raw = await response.read()
        return decode(raw, answer, f"{method} {path}")

    async def change(
        self,
        method: str,
        path: str,
        answer: type[T],
        *,
        query: Query = NONE,
        body: msgspec.Struct | None = None,
        headers: Mapping[str, str] = NONE,
        key: str = "",
        timeout: float = ANSWER,
    ) -> T:
        """A request that changes something. Its Idempotency-Key makes sending it twice do it once, so it is sent
        again where the connection broke before the answer came."""
        keyed = {"Idempotency-Key": key or new_uuid(), **headers}
        try:
            return await self.request(method, path, answer, query=query, body=body, headers=keyed, timeout=timeout)
        except ConnectionLost:
            return await self.request(method, path, answer, query=query, body=body, headers=keyed, timeout=timeout)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        query: Query = NONE,
        data: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] = NONE,
        timeout: float | None = None,
    ) -> AsyncIterator["aiohttp.ClientResponse"]:
        """A response that is read as it comes. `timeout` None: as long as bytes keep coming."""
        session = self._connected()
        with self._translated(f"{method} {path}"):
            async with session.request(
                method,
                self._url(path, query),
                data=data,
                headers=headers,
                timeout=_timeout(timeout),
                allow_redirects=False,
            ) as response:
                if response.status >= 300:
                    raise from_body(response.status, await response.read())
                yield response

    @asynccontextmanager
    async def websocket(self, path: str, query: Query = NONE) -> AsyncIterator["aiohttp.ClientWebSocketResponse"]:
        import aiohttp

        session = self._connected()
        with self._translated(f"WebSocket {path}"):
            try:
                socket = await session.ws_connect(
                    self._url(path, query), heartbeat=20, timeout=aiohttp.ClientWSTimeout(ws_close=5)
                )
            except aiohttp.WSServerHandshakeError as error:
                raise from_body(error.status, b"") from error
            try:
                yield socket
            finally:
                await socket.close()

    def _url(self, path: str, query: Query) -> Any:
        from yarl import URL

        return URL(self.endpoint.base + path + query_of(query), encoded=True)

    def _connected(self) -> "aiohttp.ClientSession":
        if self._session is None:
            import aiohttp

            connector: aiohttp.BaseConnector
            if self.endpoint.socket is not None:
                if len(str(self.endpoint.socket).encode()) > 107:
                    raise Invalid(
                        f"the socket's path is too long: {self.endpoint.socket}", hint="108 bytes at most"
                    )
                connector = aiohttp.UnixConnector(str(self.endpoint.socket), keepalive_timeout=30)
            else:
                connector = aiohttp.TCPConnector(ssl=_trust(self.endpoint), keepalive_timeout=30)
            headers = {"User-Agent": "atoll"}
            if self.endpoint.token:
                if not (self.endpoint.token.isascii() and self.endpoint.token.isprintable()):
                    raise Unauthenticated("this is not a token", hint="atoll token create NAME makes one")
                headers["Authorization"] = f"Bearer {self.endpoint.token}"
            self._session = aiohttp.ClientSession(
                connector=connector, headers=headers, auto_decompress=False, read_bufsize=1 << 18
            )
        return self._session

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        import aiohttp

        where = self.endpoint.where
        try:
            yield
        except AtollError:
            raise
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch) as error:
            raise Unauthenticated(
                f"the daemon at {where} shows another certificate than the one trusted: {error}",
                hint="if it was made anew on purpose, trust its new fingerprint",
            ) from error
        except aiohttp.ClientConnectorSSLError as error:
            raise Broken(f"no secure connection to {where}: {error}") from error
        except aiohttp.ClientConnectorError as error:
            raise self._unconnected(error) from error
        except TimeoutError as error:
            raise Unreachable(
                f"no answer from {where} in time to {what}", hint="is the daemon busy? see its log"
            ) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError) as error:
            raise ConnectionLost(
                f"the connection to {where} broke during {what}", hint="did the daemon end?"
            ) from error
        except aiohttp.ClientPayloadError as error:
            raise Cut(f"the answer to {what} ended early", hint="see the daemon's log") from error
        except aiohttp.ClientError as error:
            raise Broken(f"{what} at {where}: {error}") from error

    def _unconnected(self, error: "aiohttp.ClientConnectorError") -> AtollError:
        if isinstance(error.os_error, PermissionError):
            return Lacking(
                f"no right to use the socket {self.endpoint.where}",
                hint="be root, the daemon's user or in its group, or use a token over https",
            )
        return NotRunning(self.endpoint.where)


def decode(raw: bytes, answer: type[T], what: str) -> T:
    if answer is bytes:
        return raw  # type: ignore[return-value]
    if answer is type(None):
        return None
    try:
        return msgspec.json.decode(raw, type=answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Broken(f"the daemon's answer to {what} makes no sense: {error}") from error


class Cut(Broken):
    """An answer that ended in its middle."""


class ConnectionLost(Unreachable):
    """Broken off between request and answer: whether it was carried out is unknown."""


def _typed(headers: Mapping[str, str], data: bytes | None) -> Mapping[str, str]:
    return headers if data is None else {"Content-Type": "application/json", **headers}


def _timeout(total: float | None) -> "aiohttp.ClientTimeout":
    import aiohttp

    silence = SILENCE if total is None else None
    return aiohttp.ClientTimeout(total=total, sock_connect=CONNECT, sock_read=silence)


def _trust(endpoint: Endpoint) -> "ssl.SSLContext | aiohttp.Fingerprint | bool":
    import aiohttp

    if endpoint.fingerprint:
        try:
            return aiohttp.Fingerprint(bytes.fromhex(endpoint.fingerprint.replace(":", "")))
        except ValueError as error:
            raise Invalid("the fingerprint is not 64 hexadecimal digits", field="fingerprint") from error
    if endpoint.ca is not None:
        try:
            return ssl.create_default_context(cafile=str(endpoint.ca))
        except OSError as error:
            raise Invalid(f"cannot use {endpoint.ca} as certificates: {error}", field="ca") from error
    return True


async def pause(attempt: int) -> None:
    """Before another attempt: 0.2, 0.4, 0.8, 1.6, then 2 seconds."""
    await asyncio.sleep(min(2.0, 0.2 * 2**attempt))
