"""A pool in memory."""

from collections.abc import Mapping

import msgspec

from atoll.base.errors import Absent, Exhausted, Exists, Refused
from atoll.base.ids import Bytes, VolumeId
from atoll.base.units import GiB, MiB
from atoll.storage.model import Attachment, Capacity, Layer, PoolTraits, Usage, VolumeSpec
from tests.kit.faults import Faults


class FakePool(Faults):
    """`held` outlives the object when given, as a disk outlives a daemon. A volume takes 1 MiB of `total`."""

    traits = PoolTraits(clones=True)

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
        self._check_room()
        self.held[spec.id] = spec

    async def delete(self, volume: VolumeId) -> None:
        self.maybe("delete")
        self.held.pop(volume, None)

    async def grow(self, volume: VolumeId, size: Bytes) -> None:
        self.maybe("grow")
        spec = self._present(volume)
        if size < spec.size:
            raise Refused(f"volume {volume} cannot become smaller")
        if size > spec.size:
            self._check_room()
        self.held[volume] = msgspec.structs.replace(spec, size=size)

    async def attach(self, volume: VolumeId) -> Attachment:
        self.maybe("attach")
        spec = self._present(volume)
        self.attached.add(volume)
        below = (msgspec.structs.replace(layer, read_only=True) for layer in spec.base)
        return Attachment((Layer(f"/fake/{volume}", "raw"), *below))

    async def detach(self, volume: VolumeId) -> None:
        self.maybe("detach")
        self.attached.discard(volume)

    async def volumes(self) -> Mapping[VolumeId, Usage]:
        return {id: Usage(spec.size, Bytes(MiB)) for id, spec in self.held.items()}

    async def capacity(self) -> Capacity:
        self.maybe("capacity")
        used = len(self.held) * MiB
        return Capacity(Bytes(self.total), Bytes(used), Bytes(max(0, self.total - used)))

    def _present(self, volume: VolumeId) -> VolumeSpec:
        if volume not in self.held:
            raise Absent(f"there is no volume {volume}")
        return self.held[volume]

    def _check_room(self) -> None:
        if (len(self.held) + 1) * MiB > self.total:
            raise Exhausted(f"pool {self.name} is full")
