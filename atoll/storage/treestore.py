"""The contract of a store of trees: root file systems unpacked once. tests/contract/test_trees.py checks it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from atoll.base.ids import Bytes, Digest
from atoll.host.rootfs import Facts


class Fresh(msgspec.Struct, frozen=True):
    """A tree that has no name yet. `path` is the store's own."""

    path: Path
    facts: Facts


class TreeStore(Protocol):
    async def open(self) -> None:
        """Idempotent; before anything is made. What a crash left half made is gone. Raises Lacking, Broken."""

    def path(self, digest: Digest) -> Path:
        """Where it is, made or not."""

    def present(self, digest: Digest) -> bool: ...

    async def lower(self, digest: Digest, source: Path, format: str) -> Path:
        """The tree of a blob: made of `source` at its first need. Many may ask at once, and one makes it.

        Raises Invalid (made to do harm, no root file system), Exhausted, Lacking, Absent, Broken; nothing is left
        then.
        """

    async def make(self, source: Path, format: str) -> Fresh:
        """Unpack a file. Raises as `lower`, and leaves nothing then. It is to be kept, or dropped."""

    async def keep(self, fresh: Fresh, digest: Digest) -> None:
        """It is that blob's tree now. One that is there already stays: their content is the same."""

    async def drop(self, fresh: Fresh) -> None:
        """Absent is success, and so is one that is kept."""

    async def remove(self, digest: Digest) -> None:
        """Absent is success. At once it is there no more; what it takes of the disk is given back after that."""

    def facts(self, digest: Digest) -> Facts | None:
        """What it is; None where it is not made."""

    async def usage(self) -> Mapping[Digest, Bytes]:
        """Every tree and the bytes of its files."""

    async def prune(self, unneeded: Iterable[Digest]) -> Bytes:
        """Remove those. Returns the bytes that this freed; one that cannot be removed now is tried again."""
