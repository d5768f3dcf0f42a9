"""Networks and ports as plain values."""

import msgspec

from atoll.base.clock import Timestamp
from atoll.base.ids import NetworkId, PortId


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A network's definition. Links, tables and daemons that realise it are each host's own affair.

    `subnets`: CIDRs, IPv4 and IPv6. `gateways`: this network's own address in each subnet, in their order.
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


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """One guest interface on a network: its identity, drawn once and recorded.

    `addresses`: planned, without prefix length; the network's DHCP gives them out. `name`: the host name
    under which the network's DNS answers.
    """

    id: PortId
    network: NetworkId
    instance: str
    mac: str
    addresses: tuple[str, ...] = ()
    name: str = ""


class Plugged(msgspec.Struct, frozen=True):
    """A port as an engine on this host may open it.

    `backend` "tap": open the tap device called `link`. "user": the engine's own user-mode networking,
    with `subnet` as its guest network and `address` for the guest.
    """

    backend: str
    link: str = ""
    subnet: str = ""
    address: str = ""
    mtu: int = 1500


class NetworkTraits(msgspec.Struct, frozen=True):
    """What callers may rely on. Ask this, never the driver's name.

    `plans_addresses`: the network gives each port the address that its record plans (and no two alike).
    `resolves_names`: guests find each other by name.
    """

    spans_hosts: bool = False
    serves_dhcp: bool = False
    plans_addresses: bool = False
    resolves_names: bool = False
