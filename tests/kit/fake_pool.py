"""A pool in memory."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from atoll.base.errors import Absent, Exhausted, Exists, Refused
from atoll.base.ids import Bytes, VolumeId
from atoll.base.units import GiB, MiB
from atoll.host import copies, disks
from atoll.storage.model import Attachment, Capacity, Layer, PoolTraits, Usage, VolumeSpec
from atoll.storage.pool import Told
from tests.kit.faults import Faults


class FakePool(Faults):
    """`held` outlives the object when given, as a disk outlives a daemon. A volume takes 1 MiB of `total`."""

    traits = PoolTraits(clones=True, trees=True)

    def __init__(
        self, name: str = "default", *, held: dict[VolumeId, VolumeSpec] | None = None, total: int = 1024 * GiB
    ) -> None:
        super().__init__()
        self.name = name
        self.held = {} if held is None else held
        self.total = total
        self.attached: set[VolumeId] = set()

    async def open(self) -> None:
        self.maybe("open")

    async def create(self, spec: VolumeSpec) -> None:
        self.maybe("create")
        if spec.id in self.held:
            raise Exists(f"volume {spec.id} already exists")
        self._check_room(0 if spec.base else spec.size)
        self.held[spec.id] = spec

    async def copy_out(self, volume: VolumeId, target: Path, *, compress: bool, told: Told) -> None:
        self.maybe("copy_out")
        await copies.create(target, self._present(volume).size, zstd=compress)
        told(0)

    async def copy_in(self, spec: VolumeSpec, source: Path, *, told: Told) -> None:
        self.maybe("copy_in")
        assert (await disks.info(source, "qcow2")).virtual_size == spec.size
        await self.create(spec)
        told(0)

    async def delete(self, volume: VolumeId) -> None:
        self.maybe("delete")
        self.held.pop(volume, None)

    async def grow(self, volume: VolumeId, size: Bytes) -> None:
        self.maybe("grow")
        self._judge(volume, size)
        self.held[volume] = msgspec.structs.replace(self._present(volume), size=size)

    async def make_room(self, volume: VolumeId, size: Bytes) -> None:
        self.maybe("make_room")
        self._judge(volume, size)

    def _judge(self, volume: VolumeId, size: int) -> None:
        spec = self._present(volume)
        if spec.format == "tree":
            raise Refused(f"volume {volume} is a tree")
        if size < spec.size:
            raise Refused(f"volume {volume} cannot become smaller")
        if size > spec.size:
            self._check_room(size)

    async def withdraw(self) -> None:
        self.maybe("withdraw")
        if self.held:
            raise Refused("there are volumes in it")

    async def attach(self, volume: VolumeId) -> Attachment:
        self.maybe("attach")
        spec = self._present(volume)
        self.attached.add(volume)
        below = (msgspec.structs.replace(layer, read_only=True) for layer in spec.base)
        format = {"thin": "qcow2", "tree": "tree"}.get(spec.format, "raw")
        discard = spec.format != "full"
        return Attachment((Layer(f"/fake/{volume}", format, discard=discard), *below))

    async def detach(self, volume: VolumeId) -> None:
        self.maybe("detach")
        self.attached.discard(volume)

    async def volumes(self) -> Mapping[VolumeId, Usage]:
        return {id: self._usage(spec) for id, spec in self.held.items()}

    async def usage(self, volume: VolumeId) -> Usage:
        self.maybe("usage")
        return self._usage(self._present(volume))

    def _usage(self, spec: VolumeSpec) -> Usage:
        return Usage(spec.size, spec.size if spec.format == "full" else Bytes(MiB), Bytes(0))

    async def capacity(self) -> Capacity:
        self.maybe("capacity")
        used = len(self.held) * MiB
        return Capacity(Bytes(self.total), Bytes(used), Bytes(max(0, self.total - used)))

    def _present(self, volume: VolumeId) -> VolumeSpec:
        if volume not in self.held:
            raise Absent(f"there is no volume {volume}")
        return self.held[volume]

    def _check_room(self, size: int) -> None:
        if size > self.total or (len(self.held) + 1) * MiB > self.total:
            raise Exhausted(f"pool {self.name} is full")
