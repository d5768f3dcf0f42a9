"""One GET of a URL that somebody gave: redirects followed by hand, every address checked before it is connected to.

The check sits where the socket is made, with the very address that it will connect to: a name that leads elsewhere
a moment later (DNS rebinding) gains nothing. Proxies of the environment are not used: behind one there would be
nothing to check.
"""

import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from atoll.base.errors import Broken, Invalid, Refused, Unreachable
from atoll.host.outward import Networks, may_reach

if TYPE_CHECKING:  # aiohttp costs 150 ms to import, and few daemons fetch
    import aiohttp

REDIRECTS = 5
CONNECT, SILENCE = 15.0, 60.0
"""Seconds to reach a server, and without a byte from it."""
LONGEST = 4096
_MOVED = frozenset({301, 302, 303, 307, 308})


def check_url(url: str) -> str:
    """Its host. Raises Invalid."""
    if len(url) > LONGEST or not url.isascii() or not url.isprintable() or " " in url:
        raise Invalid("this is no URL", hint="printable ASCII, percent-encoded where needed", field="url")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise Invalid(f"this is no URL: {error}", field="url") from error
    if parts.scheme not in ("http", "https") or not host:
        raise Invalid(f"{url[:80]} is not a web address", hint="http://... or https://...", field="url")
    if parts.username is not None or parts.password is not None:
        raise Invalid(
            "a URL with a password would be kept in the audit", hint="import the file instead", field="url"
        )
    return host


@contextlib.asynccontextmanager
async def get(url: str, headers: Mapping[str, str], allowed: Networks) -> AsyncIterator["aiohttp.ClientResponse"]:
    """The answer after at most REDIRECTS redirects, of whatever status. `allowed`: networks that may be reached
    though they are not the internet.

    Raises Refused (it leads inward, to an unencrypted place, or around), Unreachable, Broken.
    """
    import aiohttp

    doors = _Doors(allowed)
    connector = aiohttp.TCPConnector(socket_factory=doors.make, use_dns_cache=False, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)
    async with contextlib.AsyncExitStack() as held:
        session = await held.enter_async_context(
            aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
        )
        for _ in range(REDIRECTS + 1):
            host = check_url(url)
            with translated(host, doors):
                answer = await session.get(
                    url,
                    headers={"Accept-Encoding": "identity", "User-Agent": "atoll", **headers},
                    allow_redirects=False,
                )
            if answer.status not in _MOVED or "Location" not in answer.headers:
                held.callback(answer.close)
                with translated(host, doors):
                    yield answer
                return
            answer.close()
            url = _next(url, answer.headers["Location"])
    raise Refused(f"{host} redirects more than {REDIRECTS} times", hint="give the address it leads to", field="url")


def _next(url: str, location: str) -> str:
    there = urljoin(url, location)
    try:
        host = check_url(there)
    except Invalid as error:
        raise Refused(
            f"it redirects to {there[:80]!r}, which is not followed: {error.message}",
            hint="is this the address of the file itself?",
            field="url",
        ) from error
    if url.startswith("https:") and not there.startswith("https:"):
        raise Refused(f"it redirects from https to plain http at {host}", hint="give that address", field="url")
    return there


class _Doors:
    """Makes sockets, for addresses that may be reached only. `shut`: those that may not."""

    def __init__(self, allowed: Networks) -> None:
        self._allowed = allowed
        self.shut: list[str] = []

    def make(self, address: Any) -> socket.socket:
        family, kind, proto, _, where = address
        if not may_reach(where[0], self._allowed):
            self.shut.append(where[0])
            raise PermissionError(f"{where[0]} is not on the internet")
        made = socket.socket(family=family, type=kind, proto=proto)
        made.setblocking(False)
        return made


@contextlib.contextmanager
def translated(host: str, doors: _Doors | None = None) -> Any:
    """The only place that knows aiohttp's errors here."""
    import aiohttp

    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise Broken(f"{host} shows a certificate that is not trusted: {error}"[:300]) from error
    except aiohttp.ClientConnectorError as error:
        if doors is not None and doors.shut:
            raise Refused(
                f"{host} leads to {doors.shut[-1]}, inside this host or its network",
                hint="images.private in atoll.toml allows addresses that are not the internet's",
                field="url",
            ) from error
        raise Unreachable(f"{host} cannot be reached: {error.os_error or error}", hint="try again later") from error
    except TimeoutError as error:
        raise Unreachable(f"{host} does not answer in time", hint="try again later") from error
    except (aiohttp.ClientPayloadError, aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise Unreachable(f"the connection to {host} broke: {error}"[:300], hint="try again") from error
    except aiohttp.ClientError as error:
        raise Broken(f"{host} does not answer as a web server does: {error}"[:300]) from error
