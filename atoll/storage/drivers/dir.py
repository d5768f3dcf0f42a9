"""The `dir` pool: one qcow2 file a volume in a directory, thin clones by backing file.

ROOT/.atoll-pool             the pool's id: a directory without it is not the pool (its disk is not mounted)
ROOT/volumes/ID.qcow2        a volume
ROOT/volumes/.ID.qcow2.new   one being made, swept by `open`
"""

import os
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from atoll.base.errors import Absent, Broken, Exhausted, Exists, Invalid, Refused
from atoll.base.ids import Bytes, PoolId, VolumeId
from atoll.base.units import MiB, show_size
from atoll.host import disks, files
from atoll.storage.layers import read_layers
from atoll.storage.model import Attachment, Capacity, Layer, PoolTraits, Usage, VolumeSpec

MARKER = ".atoll-pool"
RESERVE = Bytes(64 * MiB)
"""Nothing is made or grown when less than this is available: running guests' writes come first."""

_VOLUMES = "volumes"
_IMAGES = "images"
"""Of the state directory: what volumes are clones of."""
_SUFFIX = ".qcow2"
_NEW = re.compile(r"\..*\.qcow2\.new\Z")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\Z")
_HEADER = struct.Struct(">4sIQIIQ")
"""qcow2: magic, version, backing file's offset and length, cluster bits, virtual size (docs/interop/qcow2.txt)."""


class DirPool:
    """See storage.pool.PoolDriver.

    `fresh`: this host has not laid the pool out yet, so `open` may; otherwise a missing marker is Broken. Bases
    inside `home` (the state directory) are named relative to a pool inside it, so that it can be moved as a whole.
    """

    traits = PoolTraits(clones=True)

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
            await files.in_thread(self._open)

    async def create(self, spec: VolumeSpec) -> None:
        path = self._path(spec.id)
        self._check_there()
        if spec.id in self._making or path.exists():
            raise Exists(f"volume {spec.id} is already in pool {self.name}")
        self._check_room()
        self._making.add(spec.id)
        try:
            await self._make(spec, path)
        finally:
            self._making.discard(spec.id)
        self._known[spec.id] = _attachment(Layer(str(path), "qcow2"), *spec.base)

    async def delete(self, volume: VolumeId) -> None:
        path = self._path(volume)
        self._check_there()
        self._known.pop(volume, None)
        with files.translated(f"delete volume {volume}"):
            await files.in_thread(_remove, path)

    async def grow(self, volume: VolumeId, size: Bytes) -> None:
        path = self._present(volume)
        with files.translated(f"grow volume {volume}"), path.open("rb") as file:
            now = _virtual_size(file)
        if now is None:
            raise Broken(f"{path} is damaged: it has no qcow2 header")
        if size < now:
            raise Refused(
                f"volume {volume} has {show_size(now)} and cannot become smaller", hint="a disk can only grow"
            )
        if size > now:
            self._check_room()
            await disks.resize(path, "qcow2", size)

    async def attach(self, volume: VolumeId) -> Attachment:
        path = self._present(volume)
        found = self._known.get(volume) or await self._layers(volume, path)
        if lost := _absent(found.layers[1:]):
            raise Broken(f"volume {volume} of pool {self.name} lacks the layer {lost} below it")
        self._known[volume] = found
        return found

    async def detach(self, volume: VolumeId) -> None:
        """Nothing is held open here."""

    async def volumes(self) -> Mapping[VolumeId, Usage]:
        self._check_there()
        with files.translated(f"list pool {self.name}"):
            return await files.in_thread(self._look)

    async def capacity(self) -> Capacity:
        self._check_there()
        with files.translated(f"measure pool {self.name}"):
            space = await files.in_thread(os.statvfs, self._root)
        unit = space.f_frsize
        used = (space.f_blocks - space.f_bfree) * unit
        return Capacity(Bytes(space.f_blocks * unit), Bytes(used), Bytes(space.f_bavail * unit))

    def _open(self) -> None:
        if self._fresh and self._read_marker() is None:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o711)
            if strange := sorted({entry.name for entry in self._root.iterdir()} - {"lost+found", f".{MARKER}.new"}):
                raise Refused(
                    f"{self._root} is not empty ({strange[0]}) and not a pool",
                    hint="give the pool an empty directory of its own",
                )
            files.write_whole(self._root / MARKER, f"{self._id}\n".encode())
        self._check_there()
        self._folder.mkdir(exist_ok=True, mode=0o711)
        for entry in self._folder.iterdir():
            if _NEW.match(entry.name):
                entry.unlink(missing_ok=True)
        self._fresh = False

    async def _make(self, spec: VolumeSpec, path: Path) -> None:
        """Under another name first, so that a crash leaves only what `open` sweeps."""
        fresh = path.with_name(f".{path.name}.new")
        backing, format = self._backing(spec)
        try:
            with files.translated(f"make volume {spec.id}"):
                await disks.create_overlay(fresh, spec.size, backing=backing, backing_format=format)
                fresh.chmod(0o600)
                await files.in_thread(files.sync, fresh)
                fresh.rename(path)  # not in a thread: a cancelled call must not see it happen later
                await files.in_thread(files.sync, path.parent)
        except BaseException as error:
            _discard(fresh, path)
            if isinstance(error, Absent):
                raise Broken(f"cannot make volume {spec.id}: {error.message}") from error
            raise

    async def _layers(self, volume: VolumeId, path: Path) -> Attachment:
        try:
            layers = await files.in_thread(read_layers, path, "qcow2", self._grounds)
        except Absent as error:
            self._present(volume)  # otherwise what is absent is a layer below it
            raise Broken(f"volume {volume} of pool {self.name} lacks a layer below it: {error.message}") from error
        return _attachment(*layers)

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

    def _path(self, volume: VolumeId) -> Path:
        if not _ID.match(volume):
            raise Invalid(f"{volume[:120]!r} cannot be the id of a volume", hint="letters, digits, - and _")
        return self._folder / f"{volume}{_SUFFIX}"

    def _present(self, volume: VolumeId) -> Path:
        path = self._path(volume)
        self._check_there()
        if not path.exists():
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

    def _check_room(self) -> None:
        space = os.statvfs(self._root)
        left = space.f_bavail * space.f_frsize
        if left < self._reserve:
            raise Exhausted(
                f"no space in pool {self.name}: {show_size(left)} left, less than its reserve"
                f" of {show_size(self._reserve)}",
                hint="make room on its disk, or choose another pool",
            )

    def _look(self) -> dict[VolumeId, Usage]:
        found: dict[VolumeId, Usage] = {}
        for entry in self._folder.iterdir():
            id = entry.name.removesuffix(_SUFFIX)
            if entry.suffix != _SUFFIX or not _ID.match(id):
                continue
            try:
                with entry.open("rb") as file:
                    allocated = os.fstat(file.fileno()).st_blocks * 512
                    found[VolumeId(id)] = Usage(Bytes(_virtual_size(file) or 0), Bytes(allocated))
            except FileNotFoundError:  # deleted meanwhile
                continue
        return found


def _attachment(own: Layer, *below: Layer) -> Attachment:
    return Attachment((own, *(Layer(os.path.normpath(layer.uri), layer.format, read_only=True) for layer in below)))


def _absent(layers: Iterable[Layer]) -> str:
    return next((layer.uri for layer in layers if not os.path.exists(layer.uri)), "")


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    files.sync(path.parent)


def _discard(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _virtual_size(file: BinaryIO) -> int | None:
    """None: damaged. Read here, for qemu-img takes 8 ms a volume and a pool has thousands."""
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(b"QFI\xfb"):
        return None
    return int(_HEADER.unpack(header)[5])
