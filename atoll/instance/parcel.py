"""A whole instance as one file: what it holds, as plain values. docs/instance.md describes it for others.

A tar file of plain members in this order: `atoll.json` (a Parcel: everything but content), then each file that it
lists, with the length and sha256 it lists. Nothing of it names the host it came from.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from atoll.base.errors import Invalid
from atoll.base.units import MiB, show_size
from atoll.instance.model import MAX_NICS, CloudInit, InstanceSpec, Kind, Label, NicSpec, Power
from atoll.storage.model import Bus, Cache, VolumeFormat

FORMAT: Literal["atoll-instance"] = "atoll-instance"
VERSION = 1
MANIFEST = "atoll.json"
LARGEST_MANIFEST = MiB
LARGEST_BOOT = 512 * MiB
"""Bytes of a kernel, an initial RAM disk or a UEFI variable store."""

Length = Annotated[int, Meta(ge=0, le=1 << 60)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Serial = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{0,20}$")]
Word = Annotated[str, Meta(pattern="^[a-zA-Z0-9._+-]{0,64}$")]
Line = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=2048)]
Uuid = Annotated[str, Meta(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Mac = Annotated[str, Meta(pattern="^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")]


class Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A member that the manifest lists: its bytes and their sha256."""

    length: Length
    sha256: Sha256


class DiskPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A disk, qcow2 that stands on nothing. `size`: bytes that a guest sees. `volume`: the name of one with a life
    of its own, "" for the disk that the instance was born with. `format`, `pool`: how and where it was kept."""

    content: Content
    size: Annotated[int, Meta(ge=512, le=1 << 60, multiple_of=512)]
    volume: Annotated[str, Meta(pattern="^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$")] = ""
    format: VolumeFormat = "thin"
    pool: Label = "default"
    serial: Serial = ""
    bus: Bus = "virtio"
    cache: Cache = "writeback"


class NicPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A NIC: what its user wanted, and the MAC and address that it had."""

    spec: NicSpec
    mac: Mac
    address: Annotated[str, Meta(max_length=64)] = ""


class BootPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The kernel that it boots directly."""

    kernel: Content
    initrd: Content
    cmdline: Line = ""


class Firmware(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the UEFI of that build remembers for this guest; none where it was never started."""

    build: Word
    variables: Content


class Parcel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`spec`: without host, NICs and image, which are told apart here. `image`: the name of what it began as, for
    people. `machine`: the versioned type."""

    format: Literal["atoll-instance"]
    version: Literal[1]
    id: Uuid
    name: Label
    image: Annotated[str, Meta(max_length=255)] = ""
    spec: InstanceSpec
    arch: Word
    machine: Word
    firmware: Literal["bios", "uefi", "direct"]
    agent: bool = True
    min_memory: Length = 0
    seed: bool = False
    cdrom: bool = False
    cloud_init: CloudInit = CloudInit()
    nics: Annotated[tuple[NicPart, ...], Meta(max_length=MAX_NICS)] = ()
    disks: Annotated[tuple[DiskPart, ...], Meta(min_length=1, max_length=16)]
    boot: BootPart | None = None
    uefi: Firmware | None = None

    def members(self) -> Iterator[tuple[str, Content]]:
        """Names of the files that follow the manifest, in order."""
        if self.boot is not None:
            yield "kernel", self.boot.kernel
            yield "initrd", self.boot.initrd
        if self.uefi is not None:
            yield "variables.fd", self.uefi.variables
        for number, disk in enumerate(self.disks):
            yield disk_name(number), disk.content


class _Head(msgspec.Struct, frozen=True):
    format: str = ""
    version: Any = 0


def disk_name(number: int) -> str:
    return f"disk-{number}.qcow2"


def travelling(spec: InstanceSpec) -> InstanceSpec:
    """Without what is its host's, and what a parcel tells elsewhere. What is in its drive stays behind."""
    return msgspec.structs.replace(
        spec,
        image="",
        cdrom="",
        boot_cdrom=False,
        host=None,
        nics=(),
        power=Power.OFF,
        accel="auto" if spec.accel == "kvm" else spec.accel,  # what its new host can do, is found out there
    )


def read(raw: bytes, *, largest: int) -> Parcel:
    """The manifest of a file that somebody brings. `largest`: bytes of a disk, as it comes and as its guest
    sees it.

    Raises Invalid.
    """
    parcel = _decoded(raw)
    if parcel.spec.kind is not Kind.VM:
        raise bad("it is no virtual machine, and nothing else travels")
    if (parcel.firmware == "direct") != (parcel.boot is not None):
        raise bad("its manifest says that it boots directly and has no kernel, or the other way round")
    if parcel.uefi is not None and parcel.firmware != "uefi":
        raise bad("its manifest has UEFI variables and says that it does not boot by UEFI")
    if parcel.disks[0].volume or not all(disk.volume for disk in parcel.disks[1:]):
        raise bad("its first disk, and no other, must be the one it was born with")
    names = [disk.volume for disk in parcel.disks[1:]]
    if len(set(names)) < len(names):
        raise bad("two of its volumes have one name")
    macs, serials = [nic.mac for nic in parcel.nics], [disk.serial for disk in parcel.disks if disk.serial]
    if len(set(macs)) < len(macs) or len(set(serials)) < len(serials):
        raise bad("two of its NICs have one MAC, or two of its disks one serial number")
    ports = [(each.protocol, each.port) for nic in parcel.nics for each in nic.spec.forwards]
    if len(set(ports)) < len(ports):
        raise bad("two of its forwards begin at one port")
    disks = {disk_name(number): disk for number, disk in enumerate(parcel.disks)}
    for name, content in parcel.members():
        most = largest if name in disks else LARGEST_BOOT
        told = max(content.length, disks[name].size if name in disks else 0)
        if told > most:
            raise Invalid(
                f"{name} has {show_size(told)}, and {show_size(most)} are taken",
                hint="images.max_size in atoll.toml allows more" if name in disks else "",
                field="file",
            )
    return parcel


def _decoded(raw: bytes) -> Parcel:
    try:
        head = msgspec.json.decode(raw, type=_Head)
        if head.format != FORMAT:
            raise bad("it is no instance that Atoll exported")
        if head.version != VERSION:
            raise Invalid(
                f"it has version {str(head.version)[:20]} of the format, and this Atoll reads version {VERSION}",
                hint="import it with an Atoll as new as the one that exported it",
                field="file",
            )
        return msgspec.json.decode(raw, type=Parcel)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise bad(f"its manifest cannot be read: {str(error)[:300]}") from error


def bad(what: str) -> Invalid:
    return Invalid(what, hint="atoll export NAME FILE makes such a file", field="file")
