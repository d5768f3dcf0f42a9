"""The `btrfs` pool: a `dir` pool whose volumes are in a subvolume of their own, and whose clones are reflinks.

A clone of a file on the pool's own file system is that file's copy at once, sharing its blocks, and stands on
nothing. Of a file elsewhere no block can be shared: such a clone has it as its backing file, as in a dir pool.
Files keep btrfs's copy on write and its checksums.
"""

from collections.abc import Mapping
from pathlib import Path

from atoll.base.errors import Refused
from atoll.host import disks, files, filesystems
from atoll.storage.drivers.dir import DirPool
from atoll.storage.model import Layer, PoolTraits, VolumeFormat, VolumeSpec

_FORMATS: Mapping[str, VolumeFormat] = {"qcow2": "thin", "raw": "raw"}
"""What a copy of a file of that format is."""


class BtrfsPool(DirPool):
    """See storage.pool.PoolDriver and DirPool."""

    traits = PoolTraits(clones=True, reflinks=True)

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
