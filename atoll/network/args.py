"""What each network and group verb takes: the API's request bodies with the project and name of their path."""

from typing import Annotated

import msgspec
from msgspec import Meta

from atoll.network.groups import Rules
from atoll.network.model import Mode, Rate

Mtu = Annotated[int, Meta(ge=1280, le=9216, description="bytes of a frame's content; IPv6 needs 1280")]
LinkName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.@:-]{1,15}$", description="a link of the host")]
Subnets = Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=8)]


class NetworkSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`subnets` none: chosen, IPv4 and IPv6. `uplink`: the link of the host that a bridged network is on.
    `bandwidth`: what its limited ports share each way."""

    mode: Mode = Mode.NAT
    subnets: Subnets | None = None
    mtu: Mtu = 1500
    uplink: LinkName | None = None
    bandwidth: Rate | None = None
    description: Annotated[str, Meta(max_length=4096)] = ""


class CreateNetworkArgs(msgspec.Struct, frozen=True, kw_only=True):
    project: str
    name: str
    spec: NetworkSpec


class NetworkArgs(msgspec.Struct, frozen=True, kw_only=True):
    """delete."""

    project: str
    name: str


class CreateGroupArgs(msgspec.Struct, frozen=True, kw_only=True):
    """`rules` none: outwards everything, inwards nothing."""

    project: str
    name: str
    rules: Rules | None = None
    description: str = ""


class ChangeGroupArgs(msgspec.Struct, frozen=True, kw_only=True):
    project: str
    name: str
    add: Rules = ()
    remove: Rules = ()


class GroupArgs(msgspec.Struct, frozen=True, kw_only=True):
    """delete."""

    project: str
    name: str
