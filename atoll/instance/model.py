"""Instances as plain values: what is wanted, what is fixed at birth, what is so, what may follow what."""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from atoll.base.clock import Timestamp
from atoll.base.errors import Refused
from atoll.base.ids import Bytes, Digest, Generation, HostId, InstanceId, OperationId, PortId, VolumeId
from atoll.base.names import LABEL
from atoll.base.units import MiB
from atoll.network.model import Bandwidth, Forward, Plugged
from atoll.storage.model import Attachment

Label = Annotated[str, Meta(pattern=LABEL, description="An RFC 1123 label in lower case")]
Size = Annotated[Bytes, Meta(ge=0, le=1 << 60, description="bytes")]
Text = Annotated[str, Meta(max_length=4096)]


class Kind(StrEnum):
    VM = "vm"


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


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Upper bounds and shares. `cpu`: host cores' worth of time (1.5); `cpu_weight`: 1 to 10000, 100 is usual."""

    cpu: Annotated[float, Meta(gt=0, le=4096)] | None = None
    cpu_weight: Annotated[int, Meta(ge=1, le=10000)] | None = None


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


class InstanceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What its user wants. Written by users, read by the owning host."""

    image: Annotated[str, Meta(min_length=1, max_length=255)]
    kind: Kind = Kind.VM
    cpus: Cpus = 1
    memory: Size = Bytes(512 * MiB)
    machine: Machine = "auto"
    accel: Accel = "auto"
    root: DiskSpec = DiskSpec()
    nics: Annotated[tuple[NicSpec, ...], Meta(max_length=MAX_NICS)] = (NicSpec(),)
    forkable: bool = False
    limits: Limits = Limits()
    restart: Restart = Restart.NO
    autostart: Autostart = Autostart()
    power: Power = Power.ON
    host: str | None = None
    description: Text = ""
    labels: dict[Annotated[str, Meta(max_length=63)], Annotated[str, Meta(max_length=255)]] = {}


class Disk(msgspec.Struct, frozen=True):
    """A virtual disk's fixed place: its volume, the serial the guest reads and the slot it sits in."""

    volume: VolumeId
    serial: str
    slot: int


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
    `max_cpus`: how far it can grow while it runs.
    """

    arch: str
    machine: str
    accel: Literal["kvm", "tcg"]
    cpu: str
    max_cpus: int
    max_memory: Bytes
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """The definition record: the cluster's, without a path, link or pid."""

    id: InstanceId
    project: str
    name: str
    spec: InstanceSpec
    hardware: Hardware
    image: Digest
    created: Timestamp


class Exit(msgspec.Struct, frozen=True):
    """How a guest ended. `clean`: the guest or its user ended it. `lines`: the last of its log."""

    reason: str
    clean: bool
    at: Timestamp
    lines: tuple[str, ...] = ()


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


class DiskPlan(msgspec.Struct, frozen=True):
    serial: str
    slot: int
    attachment: Attachment


class NicPlan(msgspec.Struct, frozen=True):
    """`link` false: its cable is out."""

    mac: str
    slot: int
    plugged: Plugged
    link: bool = True


class BootPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an engine needs, already resolved: no names left to look up. It can be encoded and sent.

    `cpus` and `memory` are what it starts with (limits in `limits`); `uid`: the unprivileged user it runs as,
    None for our own.
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
    boot: DirectBoot
    agent: bool
    forkable: bool
    uid: int | None
