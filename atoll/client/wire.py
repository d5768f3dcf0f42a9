"""What only the wire has: request bodies, and answers that join several records. One struct for API and client."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from atoll.base.clock import Timestamp
from atoll.base.ids import HostId
from atoll.base.names import RECIPE
from atoll.image.imports import Arch, Format, Sha256
from atoll.instance.model import CloudInit, Disk, DiskUse, InstanceSpec, Label, Text
from atoll.instance.verbs.args import GRACE, Grace
from atoll.network.args import NetworkSpec
from atoll.network.groups import Group, Rules
from atoll.network.model import Network, Port
from atoll.storage.args import PoolPath, VolumeSize
from atoll.storage.model import Bus, Cache, Capacity, DiskFormat, Pool, Usage, Volume, VolumeAttachment

MAX_BODY = 1 << 20
"""Bytes of a JSON body at most."""
Base64 = Annotated[
    bytes,
    Meta(extra_json_schema={"pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"}),
]
MAX_WAIT = 60.0
"""Seconds a request may wait for an operation at most: then ask again."""


class LaunchBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`name`: one is made up where none is given. `start` false: create it, leave it stopped. `cloud_init` is kept
    as a secret: no answer shows it. `volumes`: attached from the beginning, beside its own disk."""

    name: Label | None = None
    start: bool = True
    spec: InstanceSpec
    cloud_init: CloudInit | None = None
    volumes: Annotated[tuple[DiskUse, ...], Meta(max_length=8)] = ()


class RestartBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`grace` 0: at once."""

    grace: Grace = GRACE


class StopBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`grace` 0: at once. `keep_wanted`: the host goes down, the instance stays wanted on and starts with it."""

    grace: Grace = GRACE
    keep_wanted: bool = False


class RenameBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    to: Label


class ExecBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`argv`: the program and its arguments, no shell. `stdin`: base64. `timeout`: seconds, none: 1 hour."""

    argv: Annotated[tuple[Annotated[str, Meta(pattern=r"^[^\x00]*$")], ...], Meta(min_length=1, max_length=4096)]
    stdin: Base64 = b""
    env: dict[Annotated[str, Meta(pattern=r"^[^=\x00]+$")], Annotated[str, Meta(pattern=r"^[^\x00]*$")]] = {}
    timeout: Annotated[float, Meta(gt=0, le=86400)] | None = None


class BuildBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`name`: of the image; the recipe's own where none is given."""

    recipe: Annotated[str, Meta(pattern=RECIPE, description="a recipe's name, as in debian/12")]
    name: Label | None = None


class ImportBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`sha256`: of the file at `url`. `replace`: take the name though another image has it."""

    url: Annotated[str, Meta(min_length=1, max_length=4096)]
    sha256: Sha256 = ""
    format: Format = ""
    arch: Arch = ""
    agent: bool = False
    replace: bool = False


class TokenBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`days`: until it expires; none: never."""

    name: Label
    days: Annotated[int, Meta(ge=1, le=36500)] | None = None


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """What may be known of a token. `used`: the day (UTC) it was last used, "" if never."""

    name: str
    created: Timestamp
    used: str = ""
    expires: Timestamp | None = None


class NewToken(msgspec.Struct, frozen=True, kw_only=True):
    """`secret` is shown here and never again."""

    token: Token
    secret: str


class Greeting(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything is. `host`: this daemon's."""

    version: str
    host: HostId
    links: dict[str, str]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`ready` false: it answers, but has not yet read its records and found its guests."""

    ready: bool


class HostMemoryView(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes: what the host has, what it may promise to instances, what it has promised to those that run."""

    total: int
    promisable: int
    promised: int


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """`facts`: what was found on the host without trying anything out."""

    id: HostId
    version: str
    instances: int
    memory: HostMemoryView
    facts: dict[str, Any]


class NetworkView(msgspec.Struct, frozen=True, kw_only=True):
    """`warnings`: what of the host keeps it from working wholly; told of one network, not in lists."""

    network: Network
    ports: tuple[Port, ...] = ()
    warnings: tuple[str, ...] = ()


class NetworkBody(NetworkSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Label


class GroupBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`rules` none: outwards everything, inwards nothing."""

    name: Label
    rules: Rules | None = None
    description: Annotated[str, Meta(max_length=4096)] = ""


class GroupChangeBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules to add and to remove."""

    add: Rules = ()
    remove: Rules = ()


class GroupView(msgspec.Struct, frozen=True, kw_only=True):
    """`users`: names of the instances in it."""

    group: Group
    users: tuple[str, ...] = ()


class PoolView(msgspec.Struct, frozen=True, kw_only=True):
    """`capacity`: none where this host cannot reach the pool now: `state` is "unavailable" then, and `reason` says
    why. `path`: its directory on this host. `filled`: the highest threshold (percent) that its use has passed, 0
    for none. `volumes`, `provisioned`: how many there are in it, and what their guests see, bytes.
    """

    pool: Pool
    capacity: Capacity | None = None
    state: str = "ready"
    reason: str = ""
    path: str = ""
    filled: int = 0
    volumes: int = 0
    provisioned: int = 0


class PoolBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Label
    driver: Annotated[str, Meta(min_length=1, max_length=63)]
    path: PoolPath
    description: Text = ""


class VolumeView(msgspec.Struct, frozen=True, kw_only=True):
    """`pool`: its name. `usage`: none where that cannot be told now. `instance`: the name of who has it, `disk` its
    place there."""

    volume: Volume
    pool: str = ""
    usage: Usage | None = None
    instance: str = ""
    held: VolumeAttachment | None = None
    disk: Disk | None = None


class VolumeBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Label
    size: VolumeSize
    pool: Label = "default"
    format: DiskFormat = "thin"


class AttachBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    instance: Label
    bus: Bus = "virtio"
    cache: Cache = "writeback"


class DetachBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`force`: also while the guest has it mounted."""

    force: bool = False


class GrowBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`size`: what it shall have."""

    size: VolumeSize


class RecipeView(msgspec.Struct, frozen=True, kw_only=True):
    """An image that Atoll can build itself."""

    name: str
    description: str = ""


class Screen(msgspec.Struct, frozen=True, kw_only=True):
    """`vnc`: path of the unix socket on the instance's host that speaks RFB."""

    vnc: str


class Pushed(msgspec.Struct, frozen=True, kw_only=True):
    """A file written in a guest: `size` in bytes."""

    path: str
    size: int
    mode: int


class ProblemDetails(msgspec.Struct, frozen=True, kw_only=True):
    """An error on the wire (RFC 9457, application/problem+json). `code`: Atoll's own, one per class of error.

    `instance` names the failed request: `urn:atoll:request:` and its X-Request-Id.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str = ""
    field: str = ""
    instance: str = ""
