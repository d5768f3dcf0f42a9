"""What a recipe is: a function that makes an image's files on this host."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from atoll.base.ids import Bytes

Progress = Callable[[str, int | None], None]
"""Called with what is being done and its percent, None where that is not known."""


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """An image's files by role (`disk`; `kernel` and `initrd` where it boots directly), all in the output
    directory, and what else its manifest says. `cmdline`: the image's own part of the kernel line;
    `disk_size`: the disk as a guest sees it; sizes in bytes. `firmware`: as in the manifest.
    """

    files: dict[str, Path]
    arch: str = "x86_64"
    cmdline: str = ""
    disk_format: str = "qcow2"
    disk_size: Bytes
    agent: bool = False
    min_memory: Bytes = Bytes(0)
    source: str = ""
    firmware: str = ""


class Recipe(Protocol):
    async def __call__(self, out: Path, cache: Path, progress: Progress, *, refresh: bool = False) -> Built:
        """Make the image in `out`, an empty directory. What is downloaded stays in `cache`, so that a second
        build needs no network; `refresh` looks for newer versions. The same versions give the same bytes.

        Raises `Lacking`, `Broken` or `Unreachable`; what is in `out` then is of no use.
        """
