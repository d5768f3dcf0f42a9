"""Names of what a network is on a host, as pure functions of the host's tag (6 hexadecimal digits of the state
directory's id): two Atolls on one machine never meet, and everything of one is found by its tag."""

import base64
import hashlib
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from atoll.base.ids import NetworkId, PortId
from atoll.network.model import Mode, Network, Port

ATTEMPTS = 4
"""Names a port may take where two hash alike. With 35 bits hardly one port in a million needs the second."""


def link_group(tag: str) -> int:
    """The group number of all our links; 0x41 keeps it clear of the small numbers that people use."""
    return 0x41000000 | int(tag, 16)


def bridge_name(tag: str, index: int) -> str:
    return f"at{tag}-b{index}"


def meter_name(tag: str, index: int, way: str) -> str:
    """The link through which a network's limited traffic passes, one `way`: "u" from guests, "d" to guests."""
    return f"at{tag}-{way}{index}"


def tap_name(tag: str, port: PortId, attempt: int = 0) -> str:
    digest = hashlib.sha256(f"{port}/{attempt}".encode()).digest()
    return f"at{tag}{base64.b32encode(digest).decode().lower()[:7]}"


def peer_name(tag: str, port: PortId, attempt: int = 0) -> str:
    """The end of a veth pair that a guest will take in; the other is named as a tap is. Two ports may hash alike
    (one pair in 33 million): whoever makes it tries the next attempt."""
    digest = hashlib.sha256(f"{port}/peer/{attempt}".encode()).digest()
    return f"at{tag}-v{base64.b32encode(digest).decode().lower()[:5]}"


def is_tap(tag: str, name: str) -> bool:
    return name.startswith(f"at{tag}") and not name.startswith(f"at{tag}-")


def table_name(tag: str, index: int) -> str:
    return f"atoll_{tag}_{index}"


def bridge_alias(network: NetworkId) -> str:
    return f"atoll:{network}"


def port_alias(network: NetworkId, port: PortId) -> str:
    return f"atoll:{network}:{port}"


def port_of(alias: str, network: NetworkId) -> PortId | None:
    """Which port of this network a link serves, by its alias."""
    prefix = f"atoll:{network}:"
    return PortId(alias.removeprefix(prefix)) if alias.startswith(prefix) else None


def given(record: Network, port: Port) -> dict[str, Any]:
    """What the network's DHCP would tell this port, in the words of Plugged."""
    lengths = {ip_network(subnet).version: ip_network(subnet).prefixlen for subnet in record.subnets}
    planned = [(each, lengths.get(ip_address(each).version)) for each in port.addresses]
    return {
        "addresses": tuple(f"{each}/{length}" for each, length in planned if length is not None),
        "gateways": tuple(record.gateways) if record.mode is not Mode.ISOLATED else (),
        "domain": record.domain,
    }


def run_directory(tag: str) -> Path:
    """Where networks keep what lives no longer than the host's uptime. dnsmasq reads it without privileges,
    which it could not below a private state directory."""
    return Path("/run/atoll") / tag / "networks"
