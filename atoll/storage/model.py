"""Volumes and pools as plain values."""

from enum import StrEnum
from typing import Literal

import msgspec

from atoll.base.clock import Timestamp
from atoll.base.ids import Bytes, Digest, HostId, PoolId, VolumeId

DiskFormat = Literal["thin", "full", "raw"]
"""thin: qcow2, grows as it is written. full: raw with every byte of it taken from the pool at once, never given
back. raw: raw with holes."""
VolumeFormat = Literal["thin", "full", "raw", "tree"]
"""As DiskFormat, or a tree: a directory that is a container's root file system. Its owners are FOREIGN ids."""
FOREIGN_BASE, FOREIGN_IDS = 0x7FFE0000, 65536
"""On disk every tree belongs to these ids, whoever runs it: id N inside is FOREIGN_BASE + N. They are systemd's
"foreign" range, made for this (https://systemd.io/UIDS-GIDS): no host's own ids and no instance's. Who mounts a
tree maps them to the range of its instance, so that nothing is ever copied or chowned."""
Bus = Literal["virtio", "scsi", "ahci"]
Cache = Literal["writeback", "none", "writethrough", "directsync", "unsafe"]
"""As QEMU's cache= (qemu-system-x86_64(1), -drive): whether the host's memory keeps what is read and written, and
whether a write is on the disk before the guest hears that it is."""


class Layer(msgspec.Struct, frozen=True):
    """One file, device or tree (format "tree") of a backing chain. Who opens it is told the format, never left to
    guess.

    `discard`: whether what the guest discards is given back to the pool.
    """

    uri: str
    format: str
    read_only: bool = False
    discard: bool = True


class VolumeSpec(msgspec.Struct, frozen=True):
    """What a pool is asked for. `base`: the layers below a thin clone, top first, as this host sees them."""

    id: VolumeId
    size: Bytes
    base: tuple[Layer, ...] = ()
    format: VolumeFormat = "thin"


class Attachment(msgspec.Struct, frozen=True):
    """What an engine may open: the disk's layers, top first. Only the first may be writable."""

    layers: tuple[Layer, ...]


class Usage(msgspec.Struct, frozen=True):
    """Bytes. `provisioned`: what the guest sees; `used`: what of its files holds data, also where other volumes
    share it; `allocated`: what the pool would have back without the volume."""

    provisioned: Bytes
    allocated: Bytes
    used: Bytes = Bytes(0)


class Capacity(msgspec.Struct, frozen=True):
    """Bytes of the whole pool; `available` is what a new volume could still fill."""

    total: Bytes
    used: Bytes
    available: Bytes


class PoolTraits(msgspec.Struct, frozen=True):
    """What callers may rely on. Ask this, never the driver's name. `reflinks`: a clone of a file on the pool's own
    file system stands on nothing: it is a copy that shares its blocks. `trees`: volumes may be trees."""

    shared: bool = False
    clones: bool = False
    reflinks: bool = False
    trees: bool = False


class Life(StrEnum):
    """Of a pool's or volume's record. `creating` and `deleting` belong to the operation that is at it."""

    CREATING = "creating"
    READY = "ready"
    DELETING = "deleting"


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A pool's definition; its realisation (path, state) belongs to each host."""

    id: PoolId
    project: str
    name: str
    driver: str
    description: str = ""
    created: Timestamp
    state: Life = Life.READY


class PoolPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A pool's realisation on one host. `path` "": the host's own choice. `laid` false: it is not laid out there
    yet, so an empty directory may become it; afterwards an empty one is a disk that is not mounted."""

    pool: PoolId
    host: HostId
    path: str = ""
    laid: bool = True


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A virtual disk. It belongs to a pool, not to a host. `base`: the image it is a thin clone of.

    `named`: it has a life of its own under a name of its project's; otherwise it came with an instance and goes
    with it.
    """

    id: VolumeId
    project: str
    name: str
    pool: PoolId
    size: Bytes
    base: Digest | None = None
    created: Timestamp
    format: VolumeFormat = "thin"
    named: bool = False
    state: Life = Life.READY


class VolumeAttachment(msgspec.Struct, frozen=True, kw_only=True):
    """Who may open a volume, where, how; `generation` is the instance's, so that an old owner is told apart."""

    volume: VolumeId
    instance: str
    host: HostId
    mode: str = "rw"
    generation: int = 0
