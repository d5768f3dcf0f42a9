"""Forwarded ports on this host's loopback, by a proxy of the daemon's: packets to 127.0.0.1 cannot be led elsewhere
without route_localnet, which would open every service on loopback to the network."""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from atoll.base.clock import monotonic
from atoll.base.errors import AtollError, Broken, Lacking, Refused
from atoll.host.sysctl import has_ipv6
from atoll.network.model import Forward

log = logging.getLogger(__name__)

_CHUNK = 256 << 10
_CONNECT = 10.0  # seconds for a guest to take a connection
_SILENCE = 60.0  # seconds after which a UDP client without traffic is forgotten
_CLIENTS = 1024
"""UDP clients remembered at the same time: a flood from the host itself must not take all descriptors."""


@dataclass(slots=True)
class _Served:
    wanted: tuple[tuple[Forward, ...], str]
    servers: list[Any] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Proxies:
    """By port: what listens for it. Whoever had a connection keeps it only as long as its forward is there."""

    def __init__(self) -> None:
        self._served: dict[str, _Served] = {}
        self._turn = asyncio.Lock()

    async def set(self, port: str, forwards: Sequence[Forward], address: str) -> None:
        """Lead exactly these forwards to `address`. Raises Refused (a port is in use), Lacking, Broken."""
        async with self._turn:
            served, wanted = self._served.get(port), (tuple(forwards), address)
            if served and served.wanted == wanted:
                return
            await self._end(port)
            if not forwards:
                return
            served = self._served[port] = _Served(wanted)
            try:
                for forward in forwards:
                    check_unused(forward)
                    for host in ("127.0.0.1", *(["::1"] if has_ipv6() else [])):
                        served.servers.append(await self._listen(served, host, forward, address))
            except BaseException:
                await self._end(port)
                raise

    async def close(self) -> None:
        for port in list(self._served):
            await self._end(port)

    async def _end(self, port: str) -> None:
        served = self._served.pop(port, None)
        if served is None:
            return
        for server in served.servers:
            server.close()
        for task in served.tasks:
            task.cancel()
        await asyncio.gather(*served.tasks, return_exceptions=True)

    async def _listen(self, served: _Served, host: str, forward: Forward, address: str) -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            served.tasks.add(task)
            try:
                await _connected(reader, writer, address, forward.to)
            finally:
                served.tasks.discard(task)

        with translated(forward):
            if forward.protocol == "tcp":
                return await asyncio.start_server(serve, host, forward.port)
            loop = asyncio.get_running_loop()
            made = loop.create_datagram_endpoint(lambda: _Udp(address, forward.to), local_addr=(host, forward.port))
            return (await made)[0]


def check_unused(forward: Forward) -> None:
    """Raises Refused where anybody listens on that port at any address of this host: packets would be led away
    from whoever does."""
    six = has_ipv6()
    kind = socket.SOCK_STREAM if forward.protocol == "tcp" else socket.SOCK_DGRAM
    with translated(forward), socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind) as probe:
        if forward.protocol == "tcp":  # connections that ended lately are no reason
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", forward.port))


@contextlib.contextmanager
def translated(forward: Forward) -> Iterator[None]:
    """Errors of a socket as ours."""
    try:
        yield
    except OSError as error:
        what = f"port {forward.port}/{forward.protocol} of this host"
        if error.errno == errno.EADDRINUSE:
            hint = f"ss -lnp 'sport = :{forward.port}' tells by whom; choose another"
            raise Refused(f"{what} is in use", hint=hint, field="port") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise Lacking(
                f"{what} may not be used by this user", hint="choose one above 1023", field="port"
            ) from error
        raise Broken(f"{what} cannot be listened on: {error.strerror}", field="port") from error


async def _connected(near: asyncio.StreamReader, out: asyncio.StreamWriter, address: str, port: int) -> None:
    """Both directions until both have ended; one that ends closes its half."""
    back: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_CONNECT):
            far, back = await asyncio.open_connection(address, port)
        await asyncio.gather(_pump(near, back), _pump(far, out))
    except (OSError, TimeoutError, AtollError):
        pass  # the client sees its connection end, as it would if the guest itself had ended it
    finally:
        for writer in (out, back):
            if writer is not None:
                writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(_CHUNK):
        sink.write(data)
        await sink.drain()
    with contextlib.suppress(OSError):
        sink.write_eof()


class _Udp(asyncio.DatagramProtocol):
    """A socket towards the guest for each client, so that answers find their way back."""

    def __init__(self, address: str, port: int) -> None:
        self._to = (address, port)
        self._clients: dict[Any, tuple[asyncio.Future[asyncio.DatagramTransport], list[float]]] = {}
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._forget()
        if addr not in self._clients:
            if len(self._clients) >= _CLIENTS:
                return
            self._clients[addr] = (asyncio.ensure_future(self._open(addr)), [monotonic()])
        opening, seen = self._clients[addr]
        seen[0] = monotonic()
        opening.add_done_callback(lambda done: self._send(done, data))

    async def _open(self, client: Any) -> asyncio.DatagramTransport:
        loop = asyncio.get_running_loop()
        made: Awaitable[Any] = loop.create_datagram_endpoint(
            lambda: _Answers(self._transport, client), remote_addr=self._to
        )
        transport: asyncio.DatagramTransport = (await made)[0]
        return transport

    def _send(self, done: asyncio.Future[asyncio.DatagramTransport], data: bytes) -> None:
        if not done.cancelled() and done.exception() is None:
            done.result().sendto(data)

    def _forget(self, everybody: bool = False) -> None:
        before = monotonic() - _SILENCE
        for addr, (opening, seen) in list(self._clients.items()):
            if everybody or seen[0] < before:
                del self._clients[addr]
                if opening.done() and not opening.cancelled() and opening.exception() is None:
                    opening.result().close()
                else:
                    opening.cancel()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._forget(everybody=True)


class _Answers(asyncio.DatagramProtocol):
    def __init__(self, back: Any, client: Any) -> None:
        self._back, self._client = back, client

    def datagram_received(self, data: bytes, addr: Any) -> None:  # noqa: ARG002
        self._back.sendto(data, self._client)

    def error_received(self, exc: Exception) -> None:  # a closed port of the guest: nothing to answer
        log.debug("a guest refused a datagram: %s", exc)
