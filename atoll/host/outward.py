"""Which addresses a URL that somebody gave may lead to: the internet, and what the administrator allows."""

import ipaddress
from collections.abc import Iterable

from atoll.base.errors import Invalid

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def parse_networks(texts: Iterable[str], *, field: str = "") -> Networks:
    """`10.0.0.0/8`, `192.168.1.7`, `fd00::/8`. Raises Invalid."""
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise Invalid(f"{error}", hint="write networks as 10.0.0.0/8", field=field) from error


def real(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, where it stands for one."""
    if isinstance(address, ipaddress.IPv6Address):
        if inner := address.ipv4_mapped or address.sixtofour:
            return inner
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def may_reach(text: str, allowed: Networks) -> bool:
    """`text`: an address, as the kernel has it (a zone is left out)."""
    address = real(ipaddress.ip_address(text.partition("%")[0]))
    if any(address.version == network.version and address in network for network in allowed):
        return True
    return address.is_global and not address.is_multicast and not address.is_reserved
