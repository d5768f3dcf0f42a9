"""Images as plain values. An image is its content: the digest of its manifest names it everywhere."""

from enum import StrEnum

import msgspec

from atoll.base.clock import Timestamp
from atoll.base.ids import Bytes, Digest, VolumeId


class ImageState(StrEnum):
    READY = "ready"
    DELETING = "deleting"


class File(msgspec.Struct, frozen=True):
    """A blob of the content store. `size` in bytes as stored; `virtual_size` of a disk as a guest sees it, of a
    root file system all its files together.

    `format`: of a disk raw or qcow2; of a root file system tar, tar.gz, tar.xz, tar.zst or squashfs.
    """

    digest: Digest
    size: Bytes
    format: str = "raw"
    virtual_size: Bytes = Bytes(0)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an image is. Its canonical JSON's sha256 is the image's digest.

    `kind`: "disk", "iso": a disc to install from, which no instance's disk can be a clone of, or "rootfs": nothing
    but a root file system. `files`: by role: `disk` or `iso`; `kernel` and `initrd` where it boots directly;
    `rootfs` where containers run on it, beside a disk or alone. `system`: what it calls itself ("Debian GNU/Linux
    12 (bookworm)"). `firmware`: what its own bootloader needs,
    "bios", "uefi" or "any"; "" where it boots directly. `cmdline`: the image's own part of the kernel line.
    `agent`: whether a QEMU guest agent answers in it.
    """

    arch: str
    files: dict[str, File]
    kind: str = "disk"
    firmware: str = ""
    cmdline: str = ""
    machine: str = "auto"
    agent: bool = False
    min_memory: Bytes = Bytes(0)
    source: str = ""
    system: str = ""


ROOTFS = "rootfs"
"""Role of a root file system, and kind of an image that is nothing else."""
_SERVED = {"disk": "vm", ROOTFS: "container"}


def serves(manifest: Manifest) -> tuple[str, ...]:
    """The kinds of instances that can be made of it, in their names; () of a disc."""
    return tuple(kind for role, kind in _SERVED.items() if role in manifest.files)


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A name in a project for a manifest. Several names may share one digest."""

    digest: Digest
    project: str
    name: str
    manifest: Manifest
    state: ImageState = ImageState.READY
    created: Timestamp


class ImageUse(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that is a thin clone of an image. `user`: the name of whose it is, to tell people."""

    volume: VolumeId
    project: str
    user: str
