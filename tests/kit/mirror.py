"""A web server for images that behaves well at /file and badly elsewhere. What it was asked is kept."""

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from tests.kit.netns import Namespace

BLOCK = 1 << 16


class Mirror:
    """`content`: what it has. `asked`: path and Range of every request. `cut`: bytes sent before it breaks off at
    /cut, /grows and /undated. `gate`: /slow stops in the middle until it is set."""

    def __init__(self, content: bytes) -> None:
        self.content, self.etag = content, '"one"'
        self.asked: list[tuple[str, str]] = []
        self.cut = len(content) // 3
        self.gate = threading.Event()
        self.url = ""

    def ranges(self, path: str) -> list[str]:
        return [range for at, range in self.asked if at == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mirror: Mirror

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        range = self.headers.get("Range", "")
        self.mirror.asked.append((self.path, range))
        with contextlib.suppress(ConnectionError, TimeoutError):
            if self.path.startswith("/to/"):
                self._redirect(unquote(self.path.removeprefix("/to/")))
            elif self.path.startswith("/status/"):
                self._answer(int(self.path.removeprefix("/status/")))
            else:
                self._file(self.path.strip("/"), range)

    def _redirect(self, where: str) -> None:
        self._answer(302, Location=where)

    def _answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _file(self, how: str, range: str) -> None:
        mirror, whole = self.mirror, self.mirror.content
        begin = int(found[1]) if (found := re.fullmatch(r"bytes=(\d+)-", range)) else 0
        if how == "undated" or self.headers.get("If-Range", mirror.etag) != mirror.etag:
            begin = 0
        total = len(whole) + (len(mirror.asked) if how == "grows" else 0)
        self.send_response(206 if begin else 200)
        if begin:
            at = begin + 1 if how == "shifted" else begin
            self.send_header("Content-Range", f"bytes {at}-{total - 1}/{total}")
        if how != "undated":
            self.send_header("ETag", mirror.etag)
        if how == "encoded":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(total - begin))
        self.end_headers()
        breaks = begin + mirror.cut if how in ("cut", "grows", "undated", "shifted") else len(whole)
        self._send(how, whole[begin:breaks])
        if breaks < len(whole):
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(2)

    def _send(self, how: str, content: bytes) -> None:
        for at in range(0, len(content), BLOCK):
            if how == "slow" and at >= len(content) // 2:
                self.wfile.flush()
                while not self.mirror.gate.wait(0.02):
                    if self.connection.fileno() < 0:
                        return
            self.wfile.write(content[at : at + BLOCK])


@contextlib.contextmanager
def mirror(content: bytes, net: Namespace | None = None) -> Iterator[Mirror]:
    """On loopback, of `net` where given."""
    made = Mirror(content)
    handler = type("Handler", (_Handler,), {"mirror": made})
    with net.entered() if net else contextlib.nullcontext():
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        made.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()
