"""Subnets, addresses and MACs, as pure functions of what is taken already."""

import hashlib
import re
import secrets
from collections.abc import Container, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from atoll.base.errors import Exhausted, Invalid

IpNetwork = IPv4Network | IPv6Network

FIRST = 10
"""Guests' addresses begin at this one of a subnet; those before it are for gateways and people."""
_DRAWS = 512
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def choose_subnet(seed: str, taken: Iterable[str]) -> str:
    """A private /24 that meets none of `taken` (CIDRs): the same seed asks for the same ones in the same order.

    Raises Exhausted where all that were tried are taken.
    """
    used = [net for net in map(_network, taken) if isinstance(net, IPv4Network)]
    for candidate in _candidates(seed):
        if not any(candidate.overlaps(net) for net in used):
            return str(candidate)
    raise Exhausted("no private IPv4 subnet is free", hint="name one that this host does not route")


def choose_prefix(seed: str) -> str:
    """A unique local IPv6 /64 (RFC 4193): 40 bits of global id and 16 of subnet id from the seed."""
    digest = _digest(f"{seed}/6")
    return str(IPv6Network(((0xFD << 120) | (int.from_bytes(digest[:7], "big") << 64), 64)))


def parse_subnets(subnets: Iterable[str], *, field: str = "subnets") -> tuple[str, ...]:
    """CIDRs in their usual form. Raises Invalid where one is not a subnet that guests can live in."""
    found: list[IpNetwork] = []
    for text in subnets:
        try:
            subnet = ip_network(text)
        except ValueError as error:
            raise Invalid(
                f"{text[:80]!r} is not a subnet: {error}", hint="as in 10.20.30.0/24", field=field
            ) from None
        if isinstance(subnet, IPv6Network) and subnet.prefixlen != 64:
            raise Invalid(f"{subnet} is not a /64", hint="guests make their IPv6 address in a /64", field=field)
        if isinstance(subnet, IPv4Network) and not 8 <= subnet.prefixlen <= 29:
            raise Invalid(f"{subnet} is too large or too small", hint="from /8 to /29", field=field)
        if subnet.is_multicast or subnet.is_loopback or subnet.is_link_local or subnet.is_unspecified:
            raise Invalid(f"{subnet} cannot hold guests", hint="as in 10.20.30.0/24", field=field)
        if clash := overlapping(str(subnet), map(str, found)):
            raise Invalid(f"{subnet} and {clash} overlap", field=field)
        found.append(subnet)
    return tuple(map(str, found))


def overlapping(subnet: str, others: Iterable[str]) -> str:
    """The first of `others` that shares an address with `subnet`, or ""."""
    mine = _network(subnet)
    for text in others:
        other = _network(text)
        if mine.version == other.version and mine.overlaps(other):
            return text
    return ""


def gateway(subnet: str) -> str:
    """The network's own address: the first of the subnet."""
    return str(_network(subnet)[1])


def next_address(subnet: str, taken: Container[str]) -> str:
    """The lowest free address for a guest. Raises Exhausted where there is none."""
    net = _network(subnet)
    first = FIRST if net.num_addresses > 2 * FIRST else 2
    for number in range(first, net.num_addresses - 1):
        address = str(net[number])
        if address not in taken:
            return address
    raise Exhausted(
        f"every address of {subnet} is taken", hint="delete an instance, or use a network with a larger subnet"
    )


def check_address(address: str, subnets: Iterable[str], gateways: Container[str], *, name: str) -> str:
    """An IPv4 address that a guest of network `name` may have, in its usual form. Raises Invalid."""
    field, fours = "address", [net for net in map(_network, subnets) if isinstance(net, IPv4Network)]
    try:
        found = ip_address(address)
    except ValueError:
        raise Invalid(f"{address[:80]!r} is not an address", hint="as in 10.20.30.40", field=field) from None
    if not isinstance(found, IPv4Address):
        hint = "its IPv6 address follows from its MAC (EUI-64): choose that"
        raise Invalid(f"{address} cannot be chosen", hint=hint, field=field)
    if not fours:
        raise Invalid(f"network {name} plans no IPv4 addresses", hint="leave the address out", field=field)
    net = next((net for net in fours if found in net), None)
    if net is None:
        inside = ", ".join(map(str, fours))
        raise Invalid(f"{address} is outside network {name}", hint=f"one of {inside}", field=field)
    if found in (net.network_address, net.broadcast_address) or str(found) in gateways:
        raise Invalid(f"{address} is the network's own", hint=f"another one of {net}", field=field)
    return str(found)


def check_mac(mac: str) -> str:
    """A unicast MAC in its usual form. Raises Invalid."""
    text = mac.lower().replace("-", ":")
    if not _MAC.fullmatch(text) or int(text[:2], 16) & 1 or text == "00:00:00:00:00:00":
        hint = "six pairs of hexadecimal digits, the first an even number: 02:00:00:00:00:01"
        raise Invalid(f"{mac[:40]!r} cannot be the MAC of a guest", hint=hint, field="mac")
    return text


def link_local(mac: str) -> str:
    """The link-local address that a guest with this MAC makes itself (EUI-64)."""
    return eui64("fe80::/64", mac)


def draw_mac() -> str:
    """A random locally administered unicast address: 40 bits, so that whoever shares a wire hardly ever meets."""
    return "02:" + secrets.token_bytes(5).hex(":")


def fixed_mac(seed: str) -> str:
    """As `draw_mac`, always the same for the same seed."""
    return "02:" + _digest(seed)[:5].hex(":")


def eui64(prefix: str, mac: str) -> str:
    """The address that a guest with this MAC makes itself in a /64 (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 0x02]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(IPv6Address(int(_network(prefix).network_address) | int.from_bytes(identifier, "big")))


def _network(text: str) -> IpNetwork:
    return ip_network(text, strict=False)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _candidates(seed: str) -> Iterator[IPv4Network]:
    """/24s of 10.0.0.0/8 first (but of 10.0.0.0/16, which everybody uses), then of the smaller private ranges."""
    for draw in range(_DRAWS):
        one, two = _digest(f"{seed}/4/{draw}")[:2]
        if one:
            yield IPv4Network(f"10.{one}.{two}.0/24")
    for draw in range(_DRAWS):
        one, two = _digest(f"{seed}/4b/{draw}")[:2]
        yield IPv4Network(f"172.{16 + one % 16}.{two}.0/24")
    start = _digest(f"{seed}/4c")[0]
    for number in range(256):
        yield IPv4Network(f"192.168.{(start + number) % 256}.0/24")
