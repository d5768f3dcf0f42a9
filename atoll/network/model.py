"""Networks and ports as plain values."""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from atoll.base.clock import Timestamp
from atoll.base.ids import NetworkId, PortId

PortNumber = Annotated[int, Meta(ge=1, le=65535)]
Rate = Annotated[int, Meta(ge=8000, le=10**12, description="bits a second")]
Burst = Annotated[int, Meta(ge=1600, le=1 << 30, description="bytes")]
Protocol = Literal["tcp", "udp"]


class Mode(StrEnum):
    """What lies between a network's guests and the rest.

    `nat`: they reach everything, masqueraded; only forwards reach them. `routed`: they reach everything and are
    reached, under their own addresses. `isolated`: each other, beside this host's DHCP and DNS nobody.
    `bridged`: they are on a wire of the host, whose own DHCP and router serve them.
    """

    NAT = "nat"
    ROUTED = "routed"
    ISOLATED = "isolated"
    BRIDGED = "bridged"


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A network's definition. Links, tables and daemons that realise it are each host's own affair.

    `subnets`: CIDRs, IPv4 and IPv6. `gateways`: this network's own address in each subnet, in their order.
    `uplink`: the host's link that a bridged network is on. `bandwidth`: what its limited ports share each way,
    bits a second; 0: as much as the host moves.
    """

    id: NetworkId
    project: str
    name: str
    driver: str
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    domain: str = ""
    mtu: int = 1500
    description: str = ""
    created: Timestamp
    mode: Mode = Mode.NAT
    uplink: str = ""
    bandwidth: int = 0


class Bandwidth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a port, one way. `ceiling`: never more. `guaranteed`: never less, of its network's bandwidth, however busy
    the others are. `burst`: bytes that may pass at once after a pause."""

    ceiling: Rate | None = None
    guaranteed: Rate | None = None
    burst: Burst | None = None

    def __bool__(self) -> bool:
        return self.ceiling is not None or self.guaranteed is not None


class Forward(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A port of the host that leads to a port of a guest."""

    port: PortNumber
    to: PortNumber
    protocol: Protocol = "tcp"

    def __str__(self) -> str:
        return f"{self.port}:{self.to}/{self.protocol}"


class PortSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What its user may change of a port. `guard`: it may send under its own MAC and addresses only, and be neither
    DHCP server nor router. `groups`: ids of security groups; with none, everything that the network lets pass
    does. `down`, `up`: to and from the guest."""

    guard: bool = True
    groups: tuple[str, ...] = ()
    down: Bandwidth = Bandwidth()
    up: Bandwidth = Bandwidth()
    forwards: tuple[Forward, ...] = ()


End = Literal["tap", "veth"]


class PortWish(msgspec.Struct, frozen=True, kw_only=True):
    """What a port to be planned shall have; "": whatever is free. `end`: as Port."""

    address: str = ""
    mac: str = ""
    end: End = "tap"
    settings: PortSettings = PortSettings()


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """One guest interface on a network: its identity, drawn once and recorded.

    `addresses`: planned, without prefix length; the network's DHCP gives them out. `name`: the host name
    under which the network's DNS answers. `end`: what its guest takes hold of: a tap, or one end of a veth pair.
    """

    id: PortId
    network: NetworkId
    instance: str
    mac: str
    addresses: tuple[str, ...] = ()
    name: str = ""
    settings: PortSettings = PortSettings()
    end: End = "tap"


class Plugged(msgspec.Struct, frozen=True):
    """A port as an engine on this host may open it.

    `backend` "tap": open the tap device called `link`. "user": the engine's own user-mode networking,
    with `subnet` as its guest network and `address` for the guest. "macvtap": open the character device of the
    macvtap link called `link`. "veth": move the link called `peer` into the guest; `link` is its other end.
    `addresses` (with prefix length), `gateways`, `domain`: as planned, for a guest that is given them rather than
    asks. `forwards`: what the backend itself must lead to the guest.
    """

    backend: str
    link: str = ""
    peer: str = ""
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    domain: str = ""
    subnet: str = ""
    address: str = ""
    mtu: int = 1500
    forwards: tuple[Forward, ...] = ()


class NetworkTraits(msgspec.Struct, frozen=True):
    """What callers may rely on. Ask this, never the driver's name.

    `plans_addresses`: the network gives each port the address that its record plans (and no two alike).
    `resolves_names`: guests find each other by name. `forwards`: a port of the host can lead to a guest: at once
    ("live"), from its next start on ("start"), or never. `filters`: it guards ports, holds them to groups, and
    limits their bandwidth.
    """

    spans_hosts: bool = False
    serves_dhcp: bool = False
    plans_addresses: bool = False
    resolves_names: bool = False
    forwards: Literal["live", "start", "no"] = "no"
    filters: bool = False
