"""What each instance verb takes: the API's request bodies with the project and name of their path."""

from typing import Annotated

import msgspec
from msgspec import Meta

from atoll.base.ids import Generation
from atoll.instance.model import (
    Autostart,
    Cpus,
    DiskUse,
    InstanceSpec,
    Label,
    Limits,
    MountSpec,
    NicSpec,
    Restart,
    Size,
    Text,
)
from atoll.network.model import Bandwidth, Forward, PortNumber, Protocol
from atoll.storage.model import Bus, Cache

GRACE = 30.0
"""Seconds a guest has to shut down before it is ended by force."""

Grace = Annotated[float, Meta(ge=0, le=3600, description="seconds before it is ended by force")]


class LaunchArgs(msgspec.Struct, frozen=True, kw_only=True):
    """`start` false: create it, leave it stopped. `seed`: the secret record of what was given for cloud-init.
    `volumes`: attached from the beginning."""

    project: str
    name: str
    spec: InstanceSpec
    start: bool = True
    seed: str = ""
    volumes: tuple[DiskUse, ...] = ()


class AttachVolumeArgs(msgspec.Struct, frozen=True, kw_only=True):
    """`name`: the volume's."""

    project: str
    name: str
    instance: str
    bus: Bus = "virtio"
    cache: Cache = "writeback"


class NamedArgs(msgspec.Struct, frozen=True, kw_only=True):
    """start, pause, resume."""

    project: str
    name: str


class InsertArgs(msgspec.Struct, frozen=True, kw_only=True):
    """`image`: the name or digest of one that is a disc."""

    project: str
    name: str
    image: Annotated[str, Meta(min_length=1, max_length=255)]


class StopArgs(msgspec.Struct, frozen=True, kw_only=True):
    """stop, restart. `keep_wanted`: the host goes down, the instance is still wanted on."""

    project: str
    name: str
    grace: float = GRACE
    keep_wanted: bool = False


class DeleteArgs(msgspec.Struct, frozen=True, kw_only=True):
    """`force`: also while it runs."""

    project: str
    name: str
    force: bool = False


class ExportArgs(msgspec.Struct, frozen=True, kw_only=True):
    """`compress`: its disks, by zstd. `volumes` false: those with a life of their own are left out."""

    project: str
    name: str
    compress: bool = False
    volumes: bool = True


class Fitting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an instance that comes is fitted in here. `name` "": as it is called in its file. `pool` "": the pools
    of the names that its disks had. `network`: `NEW`, for every NIC, or `OLD=NEW`. `new_identity`: another id,
    other MACs and addresses, even where its own are free. `groups` false: its NICs are in no security group."""

    name: Annotated[str, Meta(pattern="^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$")] = ""
    pool: Annotated[str, Meta(max_length=63)] = ""
    network: Annotated[tuple[Annotated[str, Meta(max_length=127)], ...], Meta(max_length=32)] = ()
    new_identity: bool = False
    groups: bool = True


class ImportInstanceArgs(msgspec.Struct, frozen=True, kw_only=True):
    """The parcel that was sent as `upload`. `seed`: the secret record of what it brings for cloud-init."""

    project: str
    name: str
    upload: str
    fitting: Fitting = Fitting()
    seed: str = ""


class RenameArgs(msgspec.Struct, frozen=True, kw_only=True):
    project: str
    name: str
    to: Label


class Changes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of the spec: what is not given stays. Labels given are merged; an empty value removes one."""

    cpus: Cpus | msgspec.UnsetType = msgspec.UNSET
    memory: Size | msgspec.UnsetType = msgspec.UNSET
    limits: Limits | msgspec.UnsetType = msgspec.UNSET
    restart: Restart | msgspec.UnsetType = msgspec.UNSET
    autostart: Autostart | msgspec.UnsetType = msgspec.UNSET
    description: Text | msgspec.UnsetType = msgspec.UNSET
    labels: dict[Annotated[str, Meta(max_length=63)], Annotated[str, Meta(max_length=255)]] | msgspec.UnsetType = (
        msgspec.UNSET
    )


class SetArgs(msgspec.Struct, frozen=True, kw_only=True):
    """`revision`: of the definition as the caller read it (0: whatever it is now). A stale one is a Conflict."""

    project: str
    name: str
    changes: Changes
    revision: int = 0


class DiedArgs(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon's own: start again what died, by its restart policy, unless it moved on since `generation`."""

    project: str
    name: str
    generation: Generation


class ExecArgs(msgspec.Struct, frozen=True, kw_only=True):
    """For the audit: the program, not its arguments (they may hold secrets)."""

    project: str
    name: str
    program: str


class PushArgs(msgspec.Struct, frozen=True, kw_only=True):
    project: str
    name: str
    path: str
    mode: int = 0o644


class AddNicArgs(msgspec.Struct, frozen=True, kw_only=True):
    project: str
    name: str
    nic: NicSpec


class RemoveNicArgs(msgspec.Struct, frozen=True, kw_only=True):
    project: str
    name: str
    mac: str


class AddMountArgs(msgspec.Struct, frozen=True, kw_only=True):
    project: str
    name: str
    mount: MountSpec


class RemoveMountArgs(msgspec.Struct, frozen=True, kw_only=True):
    """`path`: where it is in the container."""

    project: str
    name: str
    path: str


class HostPort(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    port: PortNumber
    protocol: Protocol = "tcp"


class NicChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of a NIC's settings: what is not given stays."""

    link: bool | msgspec.UnsetType = msgspec.UNSET
    guard: bool | msgspec.UnsetType = msgspec.UNSET
    groups: Annotated[tuple[Label, ...], Meta(max_length=8)] | msgspec.UnsetType = msgspec.UNSET
    down: Bandwidth | msgspec.UnsetType = msgspec.UNSET
    up: Bandwidth | msgspec.UnsetType = msgspec.UNSET
    add_forwards: Annotated[tuple[Forward, ...], Meta(max_length=64)] = ()
    remove_forwards: Annotated[tuple[HostPort, ...], Meta(max_length=64)] = ()


class SetNicArgs(msgspec.Struct, frozen=True, kw_only=True):
    project: str
    name: str
    mac: str
    changes: NicChanges
