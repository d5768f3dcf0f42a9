"""Instances as plain values: what is wanted, what is fixed at birth, what is so, what may follow what."""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from atoll.base.clock import Timestamp
from atoll.base.errors import Refused
from atoll.base.ids import Bytes, Digest, Generation, HostId, InstanceId, OperationId, PortId, VolumeId
from atoll.base.names import LABEL
from atoll.base.units import KiB, MiB
from atoll.network.model import Bandwidth, Forward, Plugged
from atoll.storage.model import Attachment, Bus, Cache

Label = Annotated[str, Meta(pattern=LABEL, description="An RFC 1123 label in lower case")]
Size = Annotated[Bytes, Meta(ge=0, le=1 << 60, description="bytes")]
Text = Annotated[str, Meta(max_length=4096)]


class Kind(StrEnum):
    VM = "vm"
    CONTAINER = "container"


class State(StrEnum):
    """`gone` is the tombstone while a deletion runs; after it there is no record."""

    CREATING = "creating"
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    MIGRATING = "migrating"
    BROKEN = "broken"
    GONE = "gone"


MAY_FOLLOW: dict[State, frozenset[State]] = {
    State.CREATING: frozenset({State.STOPPED, State.STARTING, State.RUNNING, State.BROKEN, State.GONE}),
    State.STOPPED: frozenset({State.STARTING, State.BROKEN, State.GONE}),
    State.STARTING: frozenset({State.RUNNING, State.PAUSED, State.STOPPED, State.BROKEN}),
    State.RUNNING: frozenset({State.PAUSED, State.STOPPING, State.STOPPED, State.MIGRATING, State.BROKEN}),
    State.PAUSED: frozenset({State.RUNNING, State.STOPPING, State.STOPPED, State.MIGRATING, State.BROKEN}),
    State.STOPPING: frozenset({State.STOPPED, State.RUNNING, State.PAUSED, State.BROKEN}),
    State.MIGRATING: frozenset({State.RUNNING, State.PAUSED, State.STOPPED, State.BROKEN}),
    State.BROKEN: frozenset({State.STOPPED, State.STARTING, State.RUNNING, State.PAUSED, State.GONE}),
    State.GONE: frozenset(),
}


class Power(StrEnum):
    ON = "on"
    OFF = "off"


class Restart(StrEnum):
    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


Rate = Annotated[int, Meta(ge=4096, le=1 << 50, description="bytes a second")]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Upper bounds and shares. `cpu`: host cores' worth of time (1.5); `cpu_weight`: 1 to 10000, 100 is usual.

    The others are a container's (`CONTAINER_ONLY`). `memory_soft`: bytes it is pressed down to where the host runs
    short; `swap`: bytes beside its memory, none given: none; `processes`: how many at once; `disk_read`,
    `disk_write`: of the device below its root.
    """

    cpu: Annotated[float, Meta(gt=0, le=4096)] | None = None
    cpu_weight: Annotated[int, Meta(ge=1, le=10000)] | None = None
    memory_soft: Size | None = None
    swap: Size | None = None
    processes: Annotated[int, Meta(ge=1, le=4_000_000)] | None = None
    disk_read: Rate | None = None
    disk_write: Rate | None = None


CONTAINER_ONLY = ("memory_soft", "swap", "processes", "disk_read", "disk_write")


class Autostart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At host boot, of instances wanted on: lower `order` first; wait `delay` seconds after starting it."""

    enabled: bool = True
    order: Annotated[int, Meta(ge=0, le=10000)] = 100
    delay: Annotated[float, Meta(ge=0, le=3600)] = 0.0


class DiskSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`size` 0: as large as the image's disk."""

    size: Size = Bytes(0)
    pool: Label = "default"


class NicSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`address`, `mac`: fixed ones; "": as planned and drawn. `link` false: its cable is out. `guard`: it sends
    under its own MAC and addresses only. `groups`: names of security groups; none: whatever its network lets
    pass does.
    `down`, `up`: bandwidth to and from the guest. `forwards`: ports of the host that lead to it."""

    network: Label = "default"
    address: Annotated[str, Meta(max_length=64)] = ""
    mac: Annotated[str, Meta(max_length=32)] = ""
    link: bool = True
    guard: bool = True
    groups: Annotated[tuple[Label, ...], Meta(max_length=8)] = ()
    down: Bandwidth = Bandwidth()
    up: Bandwidth = Bandwidth()
    forwards: Annotated[tuple[Forward, ...], Meta(max_length=64)] = ()


MAX_NICS = 8
Cpus = Annotated[int, Meta(ge=1, le=1024)]
Machine = Literal["auto", "q35", "pc", "microvm"]
Accel = Literal["auto", "kvm", "tcg"]
Firmware = Literal["auto", "bios", "uefi", "direct"]
"""What starts a guest: firmware and the bootloader of its own disk, or its kernel directly (`auto`: the quickest
that its image can)."""
Style = Literal["virtio", "compatible"]
"""`compatible`: AHCI disks and an e1000 NIC, for systems without virtio drivers."""
SshKey = Annotated[
    str,
    Meta(
        pattern=r"^(ssh-|ecdsa-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,3}( [^\x00-\x1f]*)?$",
        max_length=8192,
        description="a public key, as in authorized_keys",
    ),
]


CLOUD_INIT_MAX = 48 * KiB
"""Bytes of all that a user gives for cloud-init: it is one record of the store."""
Part = Annotated[str, Meta(max_length=CLOUD_INIT_MAX)]


class CloudInit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user gives for cloud-init. It may hold passwords: a secret record, never shown again."""

    user_data: Part = ""
    vendor_data: Part = ""
    network_config: Part = ""

    def __bool__(self) -> bool:
        return bool(self.user_data or self.vendor_data or self.network_config)


MountPath = Annotated[str, Meta(pattern=r"^/[^\x00-\x1f]*$", max_length=4096, description="an absolute path")]


class MountSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A directory of the host in a container: the host-administrator right. Its ids are the container's, shifted:
    what root has there, the container's root has."""

    source: MountPath
    path: MountPath
    read_only: bool = False


class ContainerSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What only a container has. `privileged`: its root is the host's root, held back by capabilities and seccomp
    alone. `nesting`: it may run containers itself. `command`: its first program; none: its image's init. `hold`:
    its first program only waits for those that are run in it (`atoll run`)."""

    privileged: bool = False
    nesting: bool = False
    hold: bool = False
    mounts: Annotated[tuple[MountSpec, ...], Meta(max_length=32)] = ()
    command: Annotated[tuple[Annotated[str, Meta(max_length=4096)], ...], Meta(max_length=256)] = ()


class InstanceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What its user wants. Written by users, read by the owning host.

    `image` "": an empty disk. `cdrom`: an image with an ISO file, in its drive; `boot_cdrom`: it comes first, else
    it is booted where the disk cannot be. `ssh_keys`: for its first user, by cloud-init.
    """

    image: Annotated[str, Meta(max_length=255)]
    kind: Kind = Kind.VM
    cpus: Cpus = 1
    memory: Size = Bytes(512 * MiB)
    machine: Machine = "auto"
    accel: Accel = "auto"
    root: DiskSpec = DiskSpec()
    nics: Annotated[tuple[NicSpec, ...], Meta(max_length=MAX_NICS)] = (NicSpec(),)
    forkable: bool = False
    firmware: Firmware = "auto"
    hardware: Style = "virtio"
    cdrom: Annotated[str, Meta(max_length=255)] = ""
    boot_cdrom: bool = False
    ssh_keys: Annotated[tuple[SshKey, ...], Meta(max_length=32)] = ()
    limits: Limits = Limits()
    container: ContainerSpec = ContainerSpec()
    restart: Restart = Restart.NO
    autostart: Autostart = Autostart()
    power: Power = Power.ON
    host: str | None = None
    description: Text = ""
    labels: dict[Annotated[str, Meta(max_length=63)], Annotated[str, Meta(max_length=255)]] = {}


class DiskUse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A volume by its name, and how an instance shall have it."""

    volume: Label
    bus: Bus = "virtio"
    cache: Cache = "writeback"


class Disk(msgspec.Struct, frozen=True):
    """A virtual disk's fixed place: its volume, the serial the guest reads and the slot it sits in.

    `named`: the volume has a life of its own and stays when the instance goes.
    """

    volume: VolumeId
    serial: str
    slot: int
    bus: Bus = "virtio"
    cache: Cache = "writeback"
    named: bool = False


class Nic(msgspec.Struct, frozen=True):
    """A virtual NIC's fixed place: its port, MAC, planned addresses and slot."""

    port: PortId
    network: str
    mac: str
    slot: int
    addresses: tuple[str, ...] = ()


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """Resolved and recorded at birth: neither an upgrade of QEMU nor another host ever changes it.

    `machine`: the versioned type ("pc-q35-7.2"). `cpu`: model and flags as QEMU takes them. `max_memory`,
    `max_cpus`: how far it can grow while it runs. `uefi`: the firmware build that its variable store belongs to.
    `cdrom`: it has a drive. `seed`: it has a disk that tells its cloud-init who it is.
    """

    arch: str
    machine: str
    accel: Literal["kvm", "tcg", "none"]
    cpu: str
    max_cpus: int
    max_memory: Bytes
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    firmware: Literal["bios", "uefi", "direct"] = "direct"
    uefi: str = ""
    style: Style = "virtio"
    cdrom: bool = False
    seed: bool = False


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """The definition record: the cluster's, without a path, link or pid. `image` "": it began with an empty disk.

    `seed`: the secret record of what its user gave for cloud-init, "" where nothing was given. `cdrom`: the digest
    of what is in its drive, "" where that is empty.
    """

    id: InstanceId
    project: str
    name: str
    spec: InstanceSpec
    hardware: Hardware
    image: Digest
    created: Timestamp
    seed: str = ""
    cdrom: Digest = Digest("")


class Exit(msgspec.Struct, frozen=True):
    """How a guest ended. `clean`: the guest or its user ended it. `lines`: the last of its log. `code`: the exit
    status of a container's first program, 128 and more for a signal; None where unknown."""

    reason: str
    clean: bool
    at: Timestamp
    lines: tuple[str, ...] = ()
    code: int | None = None


class InstanceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is so: written by the owning host only.

    `operation`: the one at work on it, which alone may move it on. `memory`: what its present generation was
    promised, bytes. `restart_for`: settings that wait for the next start. `held`: a stop ended it, so that no
    restart policy starts it again.
    """

    host: HostId
    state: State
    generation: Generation = Generation(0)
    reason: str = ""
    since: Timestamp
    operation: OperationId | None = None
    exit: Exit | None = None
    restarts: int = 0
    memory: Bytes = Bytes(0)
    restart_for: tuple[str, ...] = ()
    held: bool = False

    def moved(self, name: str, state: State) -> None:
        """Raises Refused where MAY_FOLLOW does not lead from the present state to `state`."""
        if state is not self.state and state not in MAY_FOLLOW[self.state]:
            raise Refused(f"{name} is {self.state} and cannot become {state}")


class DirectBoot(msgspec.Struct, frozen=True):
    """Paths of the kernel and initial RAM disk on this host, and the image's part of the kernel line."""

    kernel: str
    initrd: str
    cmdline: str


class UefiPlan(msgspec.Struct, frozen=True):
    """Paths on this host: the shared code, and the guest's own variable store."""

    code: str
    variables: str


class CdromPlan(msgspec.Struct, frozen=True):
    """`iso`: path of what is in the drive, "" for an empty one. `first`: booted before the disk."""

    iso: str = ""
    first: bool = False


class DiskPlan(msgspec.Struct, frozen=True):
    serial: str
    slot: int
    attachment: Attachment
    bus: Bus = "virtio"
    cache: Cache = "writeback"


class NicPlan(msgspec.Struct, frozen=True):
    """`link` false: its cable is out."""

    mac: str
    slot: int
    plugged: Plugged
    link: bool = True


class ContainerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`ids`: the first of the host's ids that its own 65536 are; 0: privileged."""

    ids: int
    spec: ContainerSpec


class BootPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an engine needs, already resolved: no names left to look up. It can be encoded and sent.

    `cpus` and `memory` are what it starts with (limits in `limits`); `uid`: the unprivileged user it runs as,
    None for our own. `boot` None: its firmware finds a bootloader; `uefi` None: that is the BIOS. `seed`: path of
    the cloud-init disk, "" for none. `container`: what a VM has not.
    """

    id: InstanceId
    project: str
    name: str
    generation: Generation
    hardware: Hardware
    cpus: int
    memory: Bytes
    limits: Limits
    disks: tuple[DiskPlan, ...]
    nics: tuple[NicPlan, ...]
    boot: DirectBoot | None
    agent: bool
    forkable: bool
    uid: int | None
    uefi: UefiPlan | None = None
    cdrom: CdromPlan | None = None
    seed: str = ""
    container: ContainerPlan | None = None
