"""Bounded reads of a file that nobody trusts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from atoll.base.clock import monotonic
from atoll.base.errors import Invalid, Unreachable
from atoll.base.units import MiB
from atoll.host import files

LARGEST_READ = 32 * MiB
PATIENCE = 60.0
"""Seconds one inspection may take: an honest 2 TiB image needs a few."""


def bad(what: str, hint: str = "") -> Invalid:
    """An image that is not taken."""
    return Invalid(what, hint=hint or "fetch it again, and compare its checksum with the publisher's", field="file")


class Window:
    """Reads of exactly what is asked for, or Invalid: it is truncated, or lies about where its parts are."""

    def __init__(self, file: BinaryIO) -> None:
        self._fd = file.fileno()
        self.size = os.fstat(self._fd).st_size
        self._until = monotonic() + PATIENCE

    def read(self, at: int, length: int, what: str) -> bytes:
        """`what` is read: "its L1 table"."""
        if monotonic() > self._until:
            raise Unreachable(f"the image could not be inspected in {PATIENCE:.0f} s", hint="flatten it first")
        if length > LARGEST_READ:
            raise bad(f"the image is made to do harm: {what} has {length} bytes")
        if at < 0 or length < 0 or at + length > self.size:
            raise bad(
                f"the image is truncated or damaged: {what} lies at {at} to {at + length}, and the file"
                f" has {self.size} bytes"
            )
        found = os.pread(self._fd, length, at)
        if len(found) != length:
            raise bad(f"the image is truncated: {what} ends early")
        return found

    def peek(self, at: int, length: int) -> bytes:
        """What is there of it, maybe nothing; a negative `at` counts from the end."""
        at = at if at >= 0 else max(0, self.size + at)
        return os.pread(self._fd, length, at)


@contextmanager
def window(path: Path) -> Iterator[Window]:
    """Never through a symlink. Raises Absent, Lacking, Broken."""
    with files.translated(f"read {path.name}"):
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb", buffering=0)
    with file:
        yield Window(file)
