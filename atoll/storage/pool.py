"""The contract of a storage pool driver. tests/contract/test_pool.py checks it."""

from collections.abc import Mapping
from typing import Protocol

from atoll.base.ids import Bytes, VolumeId
from atoll.storage.model import Attachment, Capacity, PoolTraits, Usage, VolumeSpec


class PoolDriver(Protocol):
    """Holds volumes of one pool on this host. Knows nothing of instances, hosts or the store."""

    name: str
    traits: PoolTraits

    async def open(self) -> None:
        """Make the pool ready (idempotent). Raises Lacking, Broken."""

    async def create(self, spec: VolumeSpec) -> None:
        """Make a volume, a thin clone where `spec.base` has layers. Raises Exists, Exhausted, Broken.

        A failed create leaves nothing; `delete` of it succeeds all the same.
        """

    async def delete(self, volume: VolumeId) -> None:
        """Absent is success."""

    async def grow(self, volume: VolumeId, size: Bytes) -> None:
        """Raises Absent, Refused (smaller than it is), Exhausted. Only while no engine has it open."""

    async def attach(self, volume: VolumeId) -> Attachment:
        """What an engine on this host may open. Raises Absent."""

    async def detach(self, volume: VolumeId) -> None:
        """Absent is success."""

    async def volumes(self) -> Mapping[VolumeId, Usage]:
        """What is there by looking, whatever the records say."""

    async def capacity(self) -> Capacity: ...
