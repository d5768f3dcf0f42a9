"""Listening: a unix socket for this host's users, HTTPS for everybody with a token. uvicorn in the running loop."""

import asyncio
import errno
import grp
import os
import socket
import stat
import struct
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from atoll.api.door import PEER, Door
from atoll.base.errors import Broken, Invalid, Lacking, Refused

DEFAULT_PORT = 8443
PORTS_TRIED = 20
GRACE = 3
"""Seconds that answers under way get when we close; streams and consoles end then."""
MAX_FRAME = 1 << 20
MAX_HEAD = 1 << 20
BACKLOG = 1024
_PEER = struct.Struct("3i")


class BoundedProtocol(HttpToolsProtocol):
    """HTTP that hangs up on who sends more than MAX_HEAD bytes before a request's headers end: uvicorn would keep
    them all, and nobody has shown a token by then."""

    _head = 0
    _in_head = True

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._head += len(data)
        if self._in_head and self._head > MAX_HEAD:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._head = True, 0
        super().on_message_complete()


class UnixPeerProtocol(BoundedProtocol):
    """HTTP whose scope's state has the uid at the other end, from the kernel; WebSockets inherit it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        _, uid, _ = _PEER.unpack(peer)
        self.app_state = {**self.app_state, PEER: uid}


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the daemon has its own."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Serving:
    """What listens. `address`: host and port of HTTPS, none where it was not asked for."""

    def __init__(self, app: Door, unix: Path, address: tuple[str, int] | None) -> None:
        self.unix, self.address = unix, address
        self._app = app
        self._identity = _identity(unix)
        self._servers: list[tuple[_Server, asyncio.Task[None]]] = []

    async def add(self, server: _Server, listener: socket.socket) -> None:
        task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
        self._servers.append((server, task))
        while not server.started and not task.done():
            await asyncio.sleep(0.002)
        if task.done():
            task.result()
            raise Broken("the HTTP server ended at its start", hint="see the daemon's log")

    async def close(self) -> None:
        """Stop listening, end what is under way, remove the socket if it is still ours."""
        self._app.closing.set()
        for server, _ in self._servers:
            server.should_exit = True
        await asyncio.gather(*(task for _, task in self._servers), return_exceptions=True)
        with suppress(FileNotFoundError):
            if _identity(self.unix) == self._identity:
                self.unix.unlink()


async def serve(
    app: Door,
    *,
    unix: Path,
    group: str | None = None,
    tcp: tuple[str, int | None] | None = None,
    tls: tuple[Path, Path] | None = None,
) -> Serving:
    """Serve `app` until `close`. `tcp`: host and port (None: 8443 or the next free one). `tls`: certificate, key.

    Raises Refused (a port or the socket is in use), Invalid, Lacking.
    """
    local = listen_unix(unix, group)
    try:
        remote = listen_tcp(*tcp) if tcp is not None else None
    except BaseException:
        local.close()
        _remove(unix)
        raise
    serving = Serving(app, unix, remote.getsockname()[:2] if remote is not None else None)
    try:
        await serving.add(_Server(_config(app, http=UnixPeerProtocol)), local)
        if remote is not None:
            assert tls is not None, "nothing is served in the clear"
            config = _config(app, ssl_certfile=str(tls[0]), ssl_keyfile=str(tls[1]))
            await serving.add(_Server(config), remote)
    except BaseException:
        await serving.close()
        raise
    return serving


def _config(app: Door, **more: Any) -> uvicorn.Config:
    options: dict[str, Any] = {
        "http": BoundedProtocol,
        "ws": "websockets-sansio",
        "ws_max_size": MAX_FRAME,
        "lifespan": "off",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,  # nobody may say that he is somebody else
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": GRACE,
        "backlog": BACKLOG,
    }
    return uvicorn.Config(app, **{**options, **more})


def listen_unix(path: Path, group: str | None) -> socket.socket:
    """Made with its final mode (0600, with a group 0660): at no moment may anybody else connect.

    A socket that nobody answers is replaced. Raises Refused where somebody does.
    """
    if len(str(path).encode()) > 107:
        raise Invalid(f"the socket's path is too long: {path}", hint="use a shorter state directory (ATOLL_STATE)")
    gid = _gid(group) if group is not None else None
    if path.is_socket() and _answers(path):
        raise Refused(f"another daemon answers at {path}", hint="atoll down stops it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        listener.bind(str(path))
        if gid is not None:
            os.chown(path, -1, gid)
            os.chmod(path, stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise Invalid(f"cannot make the socket {path}: {error.strerror or error}") from error
    finally:
        os.umask(old)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # busy or forbidden: somebody is there
        return True


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise Invalid(f"there is no group {group}", hint=f"groupadd {group}", field="group") from error


def listen_tcp(host: str, port: int | None) -> socket.socket:
    """On `port`; None: the first free one from 8443 on. Raises Refused, Invalid, Lacking."""
    for candidate in range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED + 1) if port is None else [port]:
        try:
            return _bind(host, candidate)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise Lacking(f"no right to listen on port {candidate}", hint="use one above 1023") from error
            if error.errno != errno.EADDRINUSE:
                raise Invalid(f"cannot listen on {host}: {error.strerror or error}", field="listen") from error
    if port is None:
        raise Refused(f"ports {DEFAULT_PORT} to {DEFAULT_PORT + PORTS_TRIED} are all in use", hint="--port PORT")
    raise Refused(
        f"port {port} on {host} is in use", hint=f"choose another, or see who has it: ss -ltnp sport = :{port}"
    )


def _bind(host: str, port: int) -> socket.socket:
    family, kind, proto, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
