"""The contract of a recipe: how an image is built on this host."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from atoll.base.ids import Bytes

Progress = Callable[[int | None, str], None]
"""Told percent (None: unknown) and what is being done. Cheap, never awaited."""


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """What a build made: everything of its manifest but the digests.

    `files`: by role (`disk`, `kernel`, `initrd`) the names of the files in the output directory; every file but
    the disk is raw. `source`: what it was made from, in words that are equal whenever the content is.
    """

    arch: str
    files: Mapping[str, str]
    disk_format: str = "raw"
    cmdline: str = ""
    machine: str = "auto"
    agent: bool = False
    min_memory: Bytes = Bytes(0)
    source: str = ""


class Recipe(Protocol):
    """Equal inputs give equal bytes, so that building the same twice gives the same digest."""

    name: str
    description: str

    async def build(self, out: Path, cache: Path, progress: Progress) -> Built:
        """Write the image's files into `out` (an empty directory); downloads may be kept in `cache`.

        Raises Lacking (a program is missing), Unreachable (a source does not answer), Exhausted, Broken.
        Cancelled, it leaves no process; the caller removes `out`.
        """
