"""The `dir` pool: one file a volume in a directory, thin clones by backing file.

ROOT/.atoll-pool             the pool's id: a directory without it is not the pool (its disk is not mounted)
ROOT/volumes/ID.qcow2        a thin volume; ID.raw a raw one, ID.full a full one: the name says how it is opened,
                             never the content, which is a guest's
ROOT/volumes/ID.tree/        a tree: drivers/treevolume.py
ROOT/volumes/.ID.new         one being made, swept by `open`
"""

import asyncio
import contextlib
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

from atoll.base.errors import Absent, Broken, Exhausted, Exists, Invalid, Refused
from atoll.base.ids import Bytes, PoolId, VolumeId
from atoll.base.units import MiB, show_size
from atoll.host import copies, disks, files, rootfs
from atoll.storage.drivers import diskfile, treevolume
from atoll.storage.layers import read_layers
from atoll.storage.model import Attachment, Capacity, Layer, PoolTraits, Usage, VolumeFormat, VolumeSpec

MARKER = ".atoll-pool"
RESERVE = Bytes(64 * MiB)
"""Nothing is made or grown when less than this is available: running guests' writes come first."""

_VOLUMES = "volumes"
_TREE = ".tree"
_SUFFIXES: Mapping[VolumeFormat, str] = {"thin": diskfile.THIN, "full": diskfile.FULL, "raw": ".raw", "tree": _TREE}
_FORMATS = {suffix: format for format, suffix in _SUFFIXES.items()}
_DRIVERS: Mapping[VolumeFormat, str] = {"thin": "qcow2", "full": "raw", "raw": "raw"}
_NEW = re.compile(r"\..*\.new\Z")
SECTOR = 512
_IMAGES = "images"
"""Of the state directory: what volumes are clones of."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\Z")
Pour = Callable[[Path, VolumeFormat], Awaitable[None]]
"""Writes the content into a volume's new file, whose format it is told."""


class DirPool:
    """See storage.pool.PoolDriver.

    `fresh`: this host has not laid the pool out yet, so `open` may; otherwise a missing marker is Broken. Bases
    inside `home` (the state directory) are named relative to a pool inside it, so that it can be moved as a whole.
    """

    traits = PoolTraits(clones=True, trees=True)

    def __init__(
        self,
        id: PoolId,
        name: str,
        root: Path,
        *,
        home: Path | None = None,
        fresh: bool = False,
        reserve: Bytes = RESERVE,
    ) -> None:
        self.name = name
        self._id, self._root, self._home = id, root.absolute(), home
        self._fresh, self._reserve = fresh, reserve
        self._making: set[VolumeId] = set()
        self._known: dict[VolumeId, Attachment] = {}
        """Layers of volumes made or attached before: saves a launch the 8 ms of asking qemu-img."""

    async def open(self) -> None:
        with files.translated(f"open pool {self.name} in {self._root}"):
            await files.in_thread(self._claim)
            await self._lay_folder()
            await self._sweep()
        self._fresh = False

    async def create(self, spec: VolumeSpec) -> None:
        await self._create(spec)

    async def copy_in(self, spec: VolumeSpec, source: Path, *, told: copies.Told) -> None:
        """See storage.pool.Streams."""

        async def pour(fresh: Path, format: VolumeFormat) -> None:
            await copies.copy([(source, "qcow2")], (fresh, _DRIVERS[format]), told=told)

        await self._create(spec, pour)

    async def copy_out(self, volume: VolumeId, target: Path, *, compress: bool, told: copies.Told) -> None:
        """See storage.pool.Streams."""
        layers = (await self.attach(volume)).layers
        await copies.create(target, (await self.usage(volume)).provisioned, zstd=compress)
        chain = [(Path(layer.uri), layer.format) for layer in layers]
        await copies.copy(chain, (target, "qcow2"), compress=compress, told=told)

    async def _create(self, spec: VolumeSpec, pour: Pour | None = None) -> None:
        self._check_there()
        if spec.id in self._making or self._find(spec.id):
            raise Exists(f"volume {spec.id} is already in pool {self.name}")
        if spec.size % SECTOR:
            raise Invalid(f"{spec.size} bytes are no whole sectors", hint=f"a multiple of {SECTOR}", field="size")
        if spec.base and spec.format not in ("thin", "tree"):
            raise Invalid(f"a clone cannot be {spec.format}", hint="--format thin", field="format")
        # A clone is as large as what it is one of: that it holds nothing of its own may be all that makes it fit.
        self._check_fits(0 if spec.base else spec.size, new=spec.size if spec.format == "full" else 0)
        self._making.add(spec.id)
        try:
            made = self._make_tree(spec) if spec.format == "tree" else self._make(spec, pour)
            self._known[spec.id] = await made
        finally:
            self._making.discard(spec.id)

    async def delete(self, volume: VolumeId) -> None:
        tree = self._path(volume, "tree")
        paths = [self._path(volume, format) for format in _SUFFIXES if format != "tree"]
        self._check_there()
        self._known.pop(volume, None)
        with files.translated(f"delete volume {volume}"):
            await treevolume.remove(tree, self._fresh_name(volume))
            await files.in_thread(_discard, *paths)
            await files.in_thread(files.sync, self._folder)

    async def grow(self, volume: VolumeId, size: Bytes) -> None:
        path = self._present(volume)
        if await self._judge(volume, path, size):
            await self._reserve_full(volume, path, size)
            await disks.resize(path, diskfile.driver(path), size)

    async def make_room(self, volume: VolumeId, size: Bytes) -> None:
        path = self._present(volume)
        if await self._judge(volume, path, size):
            await self._reserve_full(volume, path, size)

    async def _judge(self, volume: VolumeId, path: Path, size: Bytes) -> bool:
        """Whether it becomes larger. Raises Refused, Exhausted, Broken."""
        if path.suffix == _TREE:
            raise Refused(f"volume {volume} is a tree, and grows by itself", hint="it ends where its pool does")
        with files.translated(f"grow volume {volume}"), path.open("rb") as file:
            now = diskfile.virtual_size(file, path)
        if now is None:
            raise Broken(f"{path} is damaged: it has no qcow2 header")
        if size < now:
            raise Refused(
                f"volume {volume} has {show_size(now)} and cannot become smaller",
                hint="a disk can only grow",
                field="size",
            )
        if size > now:
            self._check_fits(size, new=size - now if path.suffix == _SUFFIXES["full"] else 0)
        return size > now

    async def _reserve_full(self, volume: VolumeId, path: Path, size: Bytes) -> None:
        """Blocks of a full volume are taken before anybody sees them."""
        if path.suffix == _SUFFIXES["full"]:
            with files.translated(f"grow volume {volume}"):
                await files.in_thread(diskfile.allocate, path, size)

    async def attach(self, volume: VolumeId) -> Attachment:
        path = self._present(volume)
        found = self._known.get(volume) or await self._layers(volume, path)
        if lost := _absent(found.layers[1:]):
            raise Broken(f"volume {volume} of pool {self.name} lacks the layer {lost} below it")
        self._known[volume] = found
        return found

    async def detach(self, volume: VolumeId) -> None:
        """Nothing is held open here."""

    async def usage(self, volume: VolumeId) -> Usage:
        path = self._present(volume)
        if path.suffix == _TREE:
            return await treevolume.usage(path)
        with files.translated(f"measure volume {volume}"):
            return await files.in_thread(_usage, path)

    async def volumes(self) -> Mapping[VolumeId, Usage]:
        self._check_there()
        with files.translated(f"list pool {self.name}"):
            return await files.in_thread(self._look)

    async def capacity(self) -> Capacity:
        with files.translated(f"measure pool {self.name}"):
            return await files.in_thread(self._measure)

    def _measure(self) -> Capacity:
        """All of it in one thread: the file system of a server that is gone lets nobody come back."""
        self._check_there()
        space = os.statvfs(self._root)
        unit = space.f_frsize
        used = (space.f_blocks - space.f_bfree) * unit
        return Capacity(Bytes(space.f_blocks * unit), Bytes(used), Bytes(space.f_bavail * unit))

    async def withdraw(self) -> None:
        with files.translated(f"take pool {self.name} out of {self._root}"):
            if await files.in_thread(self._read_marker) == self._id:
                if self._folder.is_dir():
                    await self._sweep()
                await files.in_thread(self._withdraw)

    def _withdraw(self) -> None:
        if self._folder.is_dir():
            if strange := sorted(self._folder.iterdir()):
                raise Refused(f"{strange[0]} is still in pool {self.name}", hint="remove what is in it first")
            self._folder.rmdir()
        (self._root / MARKER).unlink()
        files.sync(self._root)

    def _claim(self) -> None:
        """The directory is the pool, or becomes it where it was never laid out."""
        if self._fresh and self._read_marker() is None:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o711)
            if strange := sorted({entry.name for entry in self._root.iterdir()} - {"lost+found", f".{MARKER}.new"}):
                raise Refused(
                    f"{self._root} is not empty ({strange[0]}) and not a pool",
                    hint="give the pool an empty directory of its own",
                )
            files.write_whole(self._root / MARKER, f"{self._id}\n".encode())
        self._check_there()

    async def _lay_folder(self) -> None:
        self._folder.mkdir(exist_ok=True, mode=0o711)

    async def _sweep(self) -> None:
        for entry in await files.in_thread(list, self._folder.iterdir()):
            if _NEW.match(entry.name):
                if entry.is_dir():
                    await rootfs.remove(entry)
                else:
                    entry.unlink(missing_ok=True)

    async def _make_tree(self, spec: VolumeSpec) -> Attachment:
        fresh, path = self._fresh_name(spec.id), self._path(spec.id, "tree")
        try:
            await treevolume.make(fresh, spec, home=self._home, clone=self._clone_tree)
            await self._bound_tree(fresh, spec.size)
            with files.translated(f"make volume {spec.id}"):
                fresh.rename(path)
                await files.in_thread(files.sync, path.parent)
        except BaseException as error:
            await asyncio.shield(asyncio.ensure_future(rootfs.remove(fresh)))
            if isinstance(error, Absent):
                raise Broken(f"cannot make volume {spec.id}: {error.message}") from error
            raise
        return await files.in_thread(treevolume.layers, path)

    async def _clone_tree(self, below: Path, fresh: Path) -> bool:  # noqa: ARG002 - only where files share blocks
        return False

    async def _bound_tree(self, tree: Path, size: Bytes) -> None:  # noqa: ARG002
        """Raises Invalid where this pool cannot bound what a tree takes."""
        if size:
            raise Invalid(
                f"pool {self.name} cannot bound the size of a tree",
                hint="leave the size out, or take a btrfs pool with quotas",
                field="size",
            )

    def _fresh_name(self, volume: VolumeId) -> Path:
        return self._folder / f".{volume}.new"

    async def _make(self, spec: VolumeSpec, pour: Pour | None) -> Attachment:
        """Under another name first, so that a crash leaves only what `open` sweeps."""
        fresh = path = self._fresh_name(spec.id)
        try:
            with files.translated(f"make volume {spec.id}"):
                format, below = await self._fill(fresh, spec)
                if pour is not None:
                    await pour(fresh, format)
                path = self._path(spec.id, format)
                fresh.chmod(0o600)
                await files.in_thread(files.sync, fresh)
                fresh.rename(path)  # not in a thread: a cancelled call must not see it happen later
                await files.in_thread(files.sync, path.parent)
        except BaseException as error:
            _discard(fresh, path)
            if isinstance(error, Absent):
                raise Broken(f"cannot make volume {spec.id}: {error.message}") from error
            raise
        return diskfile.attachment(diskfile.own_layer(path), *below)

    async def _fill(self, fresh: Path, spec: VolumeSpec) -> tuple[VolumeFormat, tuple[Layer, ...]]:
        """Make the file. Returns how it is to be opened, and the layers that it stands on."""
        if spec.format == "thin":
            backing, format = self._backing(spec)
            await disks.create_overlay(fresh, spec.size, backing=backing, backing_format=format)
        else:
            await files.in_thread(diskfile.create_raw, fresh, spec.size, spec.format == "full")
        return spec.format, spec.base

    async def _layers(self, volume: VolumeId, path: Path) -> Attachment:
        if path.suffix == _TREE:
            return await files.in_thread(treevolume.layers, path)
        if diskfile.driver(path) == "raw":  # whatever a guest wrote to its beginning
            return diskfile.attachment(diskfile.own_layer(path))
        try:
            layers = await files.in_thread(read_layers, path, "qcow2", self._grounds)
        except Absent as error:
            self._present(volume)  # otherwise what is absent is a layer below it
            raise Broken(f"volume {volume} of pool {self.name} lacks a layer below it: {error.message}") from error
        return diskfile.attachment(*layers)

    def _backing(self, spec: VolumeSpec) -> tuple[str, str]:
        """How the volume names the layer below it, and that layer's format."""
        if not spec.base:
            return "", ""
        base = Path(spec.base[0].uri)
        if not base.is_absolute():
            raise Invalid(f"{base} is not a file that a volume of a dir pool can be a clone of")
        if self._home is not None and base.is_relative_to(self._home) and self._root.is_relative_to(self._home):
            return os.path.relpath(base.resolve(), self._folder.resolve()), spec.base[0].format
        return str(base), spec.base[0].format

    @property
    def _grounds(self) -> tuple[Path, ...]:
        """Where the layers below a volume may lie."""
        return (self._folder, self._home / _IMAGES) if self._home is not None else ()

    @property
    def _folder(self) -> Path:
        return self._root / _VOLUMES

    def _path(self, volume: VolumeId, format: VolumeFormat) -> Path:
        if not _ID.match(volume):
            raise Invalid(f"{volume[:120]!r} cannot be the id of a volume", hint="letters, digits, - and _")
        return self._folder / f"{volume}{_SUFFIXES[format]}"

    def _find(self, volume: VolumeId) -> Path | None:
        return next((path for format in _SUFFIXES if (path := self._path(volume, format)).exists()), None)

    def _present(self, volume: VolumeId) -> Path:
        self._check_there()
        path = self._find(volume)
        if path is None:
            raise Absent(f"there is no volume {volume} in pool {self.name}")
        return path

    def _read_marker(self) -> str | None:
        try:
            return (self._root / MARKER).read_text().strip()
        except FileNotFoundError:
            return None

    def _check_there(self) -> None:
        """An unmounted pool is an empty directory: never write into that."""
        with files.translated(f"read pool {self.name} in {self._root}"):
            found = self._read_marker()
        if found is None:
            raise Broken(
                f"pool {self.name} is not mounted or has vanished: {self._root / MARKER} is not there",
                hint=f"mount its disk at {self._root}",
            )
        if found != self._id:
            raise Broken(f"{self._root} holds another pool ({found[:40]}), not {self.name}")

    def _check_fits(self, size: int, *, new: int = 0) -> None:
        """`size`: of the whole volume; `new`: bytes that are taken at once."""
        space = os.statvfs(self._root)
        left, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
        if left - new < self._reserve:
            wanted = f" and {show_size(new)} are wanted" if new else ""
            raise Exhausted(
                f"no space in pool {self.name}: {show_size(left)} left{wanted}, with a reserve"
                f" of {show_size(self._reserve)}",
                hint="make room on its disk, or choose another pool",
                field="size" if new else "",
            )
        if size > total:
            raise Exhausted(
                f"{show_size(size)} are more than the whole pool {self.name}, which has {show_size(total)}",
                hint="choose a smaller size, or another pool",
                field="size",
            )

    def _look(self) -> dict[VolumeId, Usage]:
        found: dict[VolumeId, Usage] = {}
        for entry in self._folder.iterdir():
            if entry.suffix in _FORMATS and _ID.match(entry.stem):
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    found[VolumeId(entry.stem)] = _usage(entry)
        return found


def _usage(path: Path) -> Usage:
    """Without a walk through trees, whose files their containers change meanwhile."""
    if path.suffix == _TREE:
        return Usage(Bytes(0), Bytes(0))
    return diskfile.usage(path)


def _absent(layers: Iterable[Layer]) -> str:
    return next((layer.uri for layer in layers if not os.path.exists(layer.uri)), "")


def _discard(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
