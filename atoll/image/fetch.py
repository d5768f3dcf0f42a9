"""Fetch a file that may be large, over connections that may break: go on by Range where what is there is the same.

What came lies in `part`, what is known of it in `note`; both outlive the daemon. Content is the same where the
server says so by a strong ETag, or by its date (If-Range); else it is fetched from the beginning.
"""

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from atoll.base.errors import Absent, Broken, Refused, Unreachable
from atoll.host import files, web
from atoll.host.outward import Networks
from atoll.image.sink import Sink, check_room

if TYPE_CHECKING:
    import aiohttp

ATTEMPTS = 6
"""Failures in a row, without a byte between them, until it is given up."""
_PAUSES = (0.5, 1, 2, 5, 10, 10)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})

Told = Callable[[int, int], None]
"""Called with the bytes here and those in all, 0 where that is not known."""


class Note(msgspec.Struct, frozen=True):
    """`boot`: after a crash of the host what is in the part is not sure."""

    url: str
    validator: str
    total: int
    boot: str = ""


class Fetch:
    """One file. `largest`: bytes it may have."""

    def __init__(self, url: str, part: Path, note: Path, *, largest: int, allowed: Networks, told: Told) -> None:
        self.host = web.check_url(url)
        self._url, self._part, self._note = url, part, note
        self._largest, self._allowed, self._told = largest, allowed, told

    async def run(self) -> Sink:
        """Until it is whole. Raises Refused, Absent, Unreachable, Broken, Exhausted, Invalid (too large)."""
        failures, here = 0, self._size()
        while True:
            try:
                return await self._go_on()
            except Unreachable:
                failures = 1 if self._size() > here else failures + 1
                here = self._size()
                if failures >= ATTEMPTS:
                    raise
                await asyncio.sleep(_PAUSES[failures - 1])

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    async def _go_on(self) -> Sink:
        known = self._known()
        here = self._size() if known is not None and known.validator else 0
        headers = {"Range": f"bytes={here}-", "If-Range": known.validator} if known and here else {}
        async with web.get(self._url, headers, self._allowed) as answer:
            self._check_status(answer.status)
            if (coding := answer.headers.get("Content-Encoding", "identity")) != "identity":
                raise Broken(f"{self.host} sends it encoded ({coding[:40]}), though it was asked not to")
            start, total = self._extent(answer, here)
            if known and here and start == here and total != known.total:
                raise Broken(
                    f"{self.host} says now {total} bytes and said {known.total}: the file changes its length",
                    hint="fetch it when it is whole, or from another mirror",
                )
            if answer.status == 416:  # it has become shorter than what is here
                files.write_whole(self._note, b"{}")
                raise Unreachable(f"{self.host} has another file by now", hint="try again")
            check_room(self._part.parent, max(0, total - start))
            if start == 0:
                await self._begin(answer, total)
            return await self._take(answer, start, total)

    def _known(self) -> Note | None:
        try:
            note = msgspec.json.decode(self._note.read_bytes(), type=Note)
        except (OSError, msgspec.MsgspecError):
            return None
        return note if note.url == self._url and note.boot == _boot() else None

    def _check_status(self, status: int) -> None:
        if status in (200, 206, 416):
            return
        if status in (404, 410):
            raise Absent(f"{self.host} has no such file ({status})", hint="look at the address", field="url")
        if status in _RETRIED:
            raise Unreachable(f"{self.host} answered {status}", hint="try again later")
        raise Refused(f"{self.host} answered {status}", hint="import a file that you fetched", field="url")

    def _extent(self, answer: "aiohttp.ClientResponse", here: int) -> tuple[int, int]:
        """The first byte that comes, and how many there are in all (0: not told)."""
        if answer.status == 416:
            return here, 0
        if answer.status == 206:
            told = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if told is None or int(told[1]) != here or not here:
                raise Broken(f"{self.host} sends another part of the file than was asked for")
            return here, int(told[3])
        return 0, answer.content_length or 0

    async def _begin(self, answer: "aiohttp.ClientResponse", total: int) -> None:
        etag = answer.headers.get("ETag", "")
        validator = etag if etag.startswith('"') else answer.headers.get("Last-Modified", "")
        note = Note(self._url, validator if validator.isprintable() else "", total, _boot())
        with files.translated("keep what is fetched"):
            self._part.unlink(missing_ok=True)
            await files.in_thread(files.write_whole, self._note, msgspec.json.encode(note))

    async def _take(self, answer: "aiohttp.ClientResponse", start: int, total: int) -> Sink:
        with files.translated("keep what is fetched"), _opened(self._part) as file:
            sink = await Sink.resumed(file, self._largest)
            if sink.size != start:
                raise Broken(f"the part that is here has {sink.size} bytes and not {start}")
            try:
                async for chunk in answer.content.iter_any():
                    await sink.feed(chunk)
                    self._told(sink.size, total)
            finally:
                await sink.finish()
        if total and sink.size != total:
            raise Broken(f"{self.host} sent {sink.size} bytes and had announced {total}")
        return sink


def _opened(path: Path) -> BinaryIO:
    """For reading and writing, made where it is not there."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b", buffering=0)


def _boot() -> str:
    return _BOOT.read_text().strip()
