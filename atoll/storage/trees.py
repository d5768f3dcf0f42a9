"""The trees of this host: root file systems unpacked once, for every container that runs on one.

ROOT/sha256-HEX/tree         the tree that the blob of that digest holds; its files belong to the FOREIGN ids
ROOT/sha256-HEX/facts.json   what was found in it; written last
ROOT/.new-HEX/               one being made, swept by `open`

Nobody writes to a tree: containers stand on it by an overlay, or on a snapshot of it, and copy nothing. On btrfs
each is a subvolume, so that it can be snapshotted.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from atoll.base.errors import AtollError
from atoll.base.ids import Bytes, Digest
from atoll.host import files, filesystems, rootfs
from atoll.host.rootfs import Facts
from atoll.storage.model import FOREIGN_BASE, FOREIGN_IDS
from atoll.storage.treestore import Fresh

log = logging.getLogger(__name__)

_NEW = ".new-"
_NAME = re.compile(r"sha256-[0-9a-f]{64}\Z")


class Trees:
    """See storage.treestore.TreeStore. `largest`: bytes that a tree may have."""

    def __init__(self, root: Path, *, largest: int = rootfs.LARGEST) -> None:
        self._root, self._largest = root.absolute(), largest
        self._making: dict[Digest, asyncio.Lock] = {}

    async def open(self) -> None:
        with files.translated(f"open the trees in {self._root}"):
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for entry in self._root.iterdir():
                if entry.name.startswith(_NEW) or (_NAME.match(entry.name) and not _facts(entry).exists()):
                    await rootfs.remove(entry)

    def path(self, digest: Digest) -> Path:
        return self._home(digest) / "tree"

    def present(self, digest: Digest) -> bool:
        return _facts(self._home(digest)).exists()

    async def lower(self, digest: Digest, source: Path, format: str) -> Path:
        async with self._making.setdefault(digest, asyncio.Lock()):
            if not self.present(digest):
                await self.keep(await self.make(source, format), digest)
        return self.path(digest)

    async def make(self, source: Path, format: str) -> Fresh:
        home = self._root / f"{_NEW}{secrets.token_hex(8)}"
        try:
            with files.translated(f"make a tree in {self._root}"):
                home.mkdir(mode=0o700)
            tree = home / "tree"
            if await filesystems.magic(home) == filesystems.BTRFS:
                await filesystems.make_subvolume(tree)
            with files.translated(f"make a tree in {self._root}"):
                tree.mkdir(mode=0o755, exist_ok=True)
            facts = await rootfs.unpack(
                source, format, tree, first=FOREIGN_BASE, count=FOREIGN_IDS, largest=self._largest
            )
            with files.translated(f"make a tree in {self._root}"):
                await files.in_thread(files.write_whole, _facts(home), msgspec.json.encode(facts))
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(rootfs.remove(home)))
            raise
        return Fresh(home, facts)

    async def keep(self, fresh: Fresh, digest: Digest) -> None:
        if self.present(digest):
            await self.drop(fresh)
            return
        with files.translated(f"keep the tree of {digest}"):
            fresh.path.rename(self._home(digest))
            await files.in_thread(files.sync, self._root)

    async def drop(self, fresh: Fresh) -> None:
        await rootfs.remove(fresh.path)

    async def remove(self, digest: Digest) -> None:
        home, gone = self._home(digest), self._root / f"{_NEW}{secrets.token_hex(8)}"
        with files.translated(f"remove the tree of {digest}"):
            try:
                home.rename(gone)
            except FileNotFoundError:
                return
        await rootfs.remove(gone)

    def facts(self, digest: Digest) -> Facts | None:
        try:
            return msgspec.json.decode(_facts(self._home(digest)).read_bytes(), type=Facts)
        except (OSError, msgspec.MsgspecError):
            return None

    async def usage(self) -> Mapping[Digest, Bytes]:
        with files.translated("list the trees"):
            return await files.in_thread(self._look)

    async def prune(self, unneeded: Iterable[Digest]) -> Bytes:
        sizes, freed = await self.usage(), 0
        for digest in unneeded:
            try:
                await self.remove(digest)
            except AtollError as error:
                log.warning("the tree of %s cannot be removed: %s", digest, error)
                continue
            freed += sizes.get(digest, 0)
        return Bytes(freed)

    def _look(self) -> dict[Digest, Bytes]:
        found = {}
        for entry in self._root.iterdir() if self._root.exists() else ():
            if _NAME.match(entry.name):
                digest = Digest(entry.name.replace("-", ":", 1))
                facts = self.facts(digest)
                found[digest] = Bytes(facts.bytes if facts else 0)
        return found

    def _home(self, digest: Digest) -> Path:
        return self._root / digest.replace(":", "-")


def _facts(home: Path) -> Path:
    return home / "facts.json"
