"""The `btrfs` pool: a `dir` pool whose volumes are in a subvolume of their own, and whose clones are reflinks.

A clone of a file on the pool's own file system is that file's copy at once, sharing its blocks, and stands on
nothing. Of a file elsewhere no block can be shared: such a clone has it as its backing file, as in a dir pool.
A clone of a tree of the pool's own file system is its snapshot, of one elsewhere an overlay, as in a dir pool. What
a tree takes can be bounded where the file system has quotas.
Files keep btrfs's copy on write and its checksums.
"""

from collections.abc import Mapping
from pathlib import Path

from atoll.base.errors import Invalid, Refused
from atoll.base.ids import Bytes
from atoll.host import disks, files, filesystems
from atoll.storage.drivers import treevolume
from atoll.storage.drivers.dir import DirPool
from atoll.storage.model import Layer, PoolTraits, VolumeFormat, VolumeSpec

_FORMATS: Mapping[str, VolumeFormat] = {"qcow2": "thin", "raw": "raw"}
"""What a copy of a file of that format is."""


class BtrfsPool(DirPool):
    """See storage.pool.PoolDriver and DirPool."""

    traits = PoolTraits(clones=True, reflinks=True, trees=True)

    async def open(self) -> None:
        there = next(path for path in (self._root, *self._root.parents) if path.exists())
        if self._fresh and await filesystems.magic(there) != filesystems.BTRFS:
            raise Refused(
                f"{self._root} is on {await filesystems.kind(there)}, not on btrfs",
                hint="give a directory on a btrfs file system, or --driver dir",
                field="path",
            )
        await super().open()

    async def _lay_folder(self) -> None:
        if not self._folder.exists():
            await filesystems.make_subvolume(self._folder)
            self._folder.chmod(0o711)

    async def _fill(self, fresh: Path, spec: VolumeSpec) -> tuple[VolumeFormat, tuple[Layer, ...]]:
        format = _FORMATS.get(spec.base[0].format) if len(spec.base) == 1 else None
        if format is None or not await files.in_thread(filesystems.reflink, Path(spec.base[0].uri), fresh):
            return await super()._fill(fresh, spec)
        await disks.resize(fresh, spec.base[0].format, spec.size)
        return format, ()

    async def _clone_tree(self, below: Path, fresh: Path) -> bool:
        return await filesystems.snapshot(below, fresh)

    async def _bound_tree(self, tree: Path, size: Bytes) -> None:
        if not size:
            return
        own = tree / treevolume.UPPER
        if not await filesystems.bound_subvolume(own, size):
            raise Invalid(
                f"pool {self.name} cannot bound the size of this tree: its file system has no quotas, or the image"
                " lies on another one",
                hint=f"btrfs quota enable {self._root}, or leave the size out",
                field="size",
            )
