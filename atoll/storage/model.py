"""Volumes and pools as plain values."""

import msgspec

from atoll.base.clock import Timestamp
from atoll.base.ids import Bytes, Digest, HostId, PoolId, VolumeId


class Layer(msgspec.Struct, frozen=True):
    """One file or device of a disk's backing chain. Who opens it is told the format, never left to guess."""

    uri: str
    format: str
    read_only: bool = False


class VolumeSpec(msgspec.Struct, frozen=True):
    """What a pool is asked for. `base`: the layers below a thin clone, top first, as this host sees them."""

    id: VolumeId
    size: Bytes
    base: tuple[Layer, ...] = ()


class Attachment(msgspec.Struct, frozen=True):
    """What an engine may open: the disk's layers, top first. Only the first may be writable."""

    layers: tuple[Layer, ...]


class Usage(msgspec.Struct, frozen=True):
    """Bytes. `provisioned`: what the guest sees; `allocated`: what the volume really takes of the pool."""

    provisioned: Bytes
    allocated: Bytes


class Capacity(msgspec.Struct, frozen=True):
    """Bytes of the whole pool; `available` is what a new volume could still fill."""

    total: Bytes
    used: Bytes
    available: Bytes


class PoolTraits(msgspec.Struct, frozen=True):
    """What callers may rely on. Ask this, never the driver's name."""

    shared: bool = False
    clones: bool = False
    grows_online: bool = False


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A pool's definition; its realisation (path, state) belongs to each host."""

    id: PoolId
    project: str
    name: str
    driver: str
    description: str = ""
    created: Timestamp


class PoolPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A pool's realisation on one host, recorded once it is laid out there. `path` "": the host's own choice."""

    pool: PoolId
    host: HostId
    path: str = ""


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A virtual disk. It belongs to a pool, not to a host. `base`: the image it is a thin clone of."""

    id: VolumeId
    project: str
    name: str
    pool: PoolId
    size: Bytes
    base: Digest | None = None
    created: Timestamp


class VolumeAttachment(msgspec.Struct, frozen=True, kw_only=True):
    """Who may open a volume, where, how; `generation` is the instance's, so that an old owner is told apart."""

    volume: VolumeId
    instance: str
    host: HostId
    mode: str = "rw"
    generation: int = 0
