"""The contract of a storage pool driver. tests/contract/test_pool.py checks it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from atoll.base.ids import Bytes, VolumeId
from atoll.storage.model import Attachment, Capacity, PoolTraits, Usage, VolumeSpec


class PoolDriver(Protocol):
    """Holds volumes of one pool on this host. Knows nothing of instances, hosts or the store."""

    name: str
    traits: PoolTraits

    async def open(self) -> None:
        """Make the pool ready (idempotent). Raises Lacking, Refused (this place cannot be it), Broken."""

    async def withdraw(self) -> None:
        """Take away what `open` laid out, and nothing else. Raises Refused while volumes are in it. Absent is
        success."""

    async def create(self, spec: VolumeSpec) -> None:
        """Make a volume, a thin clone where `spec.base` has layers. Raises Exists, Invalid (it cannot be a clone),
        Exhausted (also: larger than the whole pool), Broken.

        A failed create leaves nothing; `delete` of it succeeds all the same.
        """

    async def delete(self, volume: VolumeId) -> None:
        """Absent is success."""

    async def grow(self, volume: VolumeId, size: Bytes) -> None:
        """Raises Absent, Refused (smaller than it is), Exhausted. Only while no engine has it open."""

    async def make_room(self, volume: VolumeId, size: Bytes) -> None:
        """What only the pool can do before an engine grows a volume that it has open: check that it may become so
        large, and reserve what a full one will take. May be repeated. Raises as `grow`."""

    async def attach(self, volume: VolumeId) -> Attachment:
        """What an engine on this host may open. Raises Absent."""

    async def detach(self, volume: VolumeId) -> None:
        """Absent is success."""

    async def volumes(self) -> Mapping[VolumeId, Usage]:
        """What is there by looking, whatever the records say. Trees are not walked: `usage` says what one takes."""

    async def usage(self, volume: VolumeId) -> Usage:
        """Of one, also while an engine has it open. Raises Absent."""

    async def capacity(self) -> Capacity: ...


Told = Callable[[int], None]
"""Told now and then how many bytes have been written."""


@runtime_checkable
class Streams(Protocol):
    """A pool whose volumes leave and come as whole files."""

    async def copy_out(self, volume: VolumeId, target: Path, *, compress: bool, told: Told) -> None:
        """Make the file `target`: qcow2 with all that a guest sees of the volume, standing on nothing. Only while
        no engine has it open.

        Raises Absent, Refused (it is open), Exhausted, Broken. What a failure leaves of it is the caller's.
        """

    async def copy_in(self, spec: VolumeSpec, source: Path, *, told: Told) -> None:
        """As PoolDriver.create, with the content of `source`: an inspected qcow2 file that stands on nothing, of a
        disk of `spec.size` bytes."""
