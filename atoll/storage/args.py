"""What the verbs of volumes and pools take: request bodies with the project and name of their path."""

from typing import Annotated

import msgspec
from msgspec import Meta

from atoll.base.ids import Bytes
from atoll.base.names import LABEL
from atoll.storage.model import DiskFormat

Label = Annotated[str, Meta(pattern=LABEL, description="An RFC 1123 label in lower case")]
VolumeSize = Annotated[Bytes, Meta(ge=1 << 20, le=1 << 60, multiple_of=512, description="bytes, whole sectors")]
PoolPath = Annotated[str, Meta(pattern="^/[^\\x00]*$", max_length=1024, description="a directory of the host")]


class CreateVolumeArgs(msgspec.Struct, frozen=True, kw_only=True):
    project: str
    name: str
    size: VolumeSize
    pool: str = "default"
    format: DiskFormat = "thin"


class VolumeArgs(msgspec.Struct, frozen=True, kw_only=True):
    """delete, detach. `force`: detach it although the guest has it mounted."""

    project: str
    name: str
    force: bool = False


class GrowVolumeArgs(msgspec.Struct, frozen=True, kw_only=True):
    """`size`: what it shall have, bytes."""

    project: str
    name: str
    size: VolumeSize


class RenameVolumeArgs(msgspec.Struct, frozen=True, kw_only=True):
    project: str
    name: str
    to: Label


class CreatePoolArgs(msgspec.Struct, frozen=True, kw_only=True):
    """`path`: of this host, where the pool shall be. It needs the host-administrator right."""

    project: str
    name: str
    driver: str
    path: str
    description: str = ""


class PoolArgs(msgspec.Struct, frozen=True, kw_only=True):
    """delete. `force`: also where this host cannot reach it: what is in its directory stays there."""

    project: str
    name: str
    force: bool = False
