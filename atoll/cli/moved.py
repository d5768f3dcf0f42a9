"""Files that pass through the terminal's side: opened, read, counted and told."""

import hashlib
import os
import sys
from collections.abc import AsyncIterator
from typing import BinaryIO

from atoll.base import clock
from atoll.base.errors import Absent, Invalid
from atoll.base.units import MiB, show_size
from atoll.cli.files import REDRAW
from atoll.cli.progress import Line
from atoll.cli.settings import Settings

CHUNK = 4 * MiB


def opened(source: str, what: str, hint: str) -> tuple[BinaryIO, int | None]:
    """A file, and its bytes where that can be told; `-`: standard input. `what` it is, and what to do where there
    is none, for people. Raises Absent, Invalid."""
    if source == "-":
        return sys.stdin.buffer, None
    try:
        file = open(source, "rb", buffering=0)  # noqa: SIM115  # closed by the caller
    except FileNotFoundError as error:
        raise Absent(f"there is no file {source}", hint=hint, field="FILE") from error
    except IsADirectoryError as error:
        raise Invalid(f"{source} is a directory", hint=f"{what} is one file", field="FILE") from error
    length = os.fstat(file.fileno()).st_size if os.path.isfile(source) else None
    return file, length


async def read(file: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


class Moved:
    """Counts and hashes what passes, and tells it on a terminal. `all`: bytes that will pass, None: unknown."""

    def __init__(self, settings: Settings, what: str, all: int | None, *, hashing: bool = False) -> None:
        self.size = 0
        self.hash = hashlib.sha256() if hashing else None
        self._what, self._all = what, all
        self._line = Line() if sys.stderr.isatty() and not settings.quiet else None

    async def through(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        shown = clock.monotonic()
        try:
            async for chunk in chunks:
                self.size += len(chunk)
                if self.hash is not None:
                    self.hash.update(chunk)
                if self._line and clock.monotonic() - shown > REDRAW:
                    shown = clock.monotonic()
                    of = f" of {show_size(self._all)}" if self._all else ""
                    self._line.show(f"{self._what} {show_size(self.size)}{of}")
                yield chunk
        finally:
            if self._line:
                self._line.clear()
