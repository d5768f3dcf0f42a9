"""Subnets, addresses and MACs."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.base.errors import Exhausted, Invalid
from atoll.network import addresses

SEEDS = st.text(max_size=40)


@given(SEEDS, st.lists(st.sampled_from([f"10.{n}.0.0/16" for n in range(256)]), max_size=200))
def test_a_chosen_subnet_is_private_and_meets_nothing(seed: str, taken: list[str]) -> None:
    subnet = IPv4Network(addresses.choose_subnet(seed, [*taken, "fd00::/8", "192.0.2.7/24"]))
    assert subnet.is_private
    assert subnet.prefixlen == 24
    assert not any(subnet.overlaps(IPv4Network(other)) for other in taken)
    assert addresses.choose_subnet(seed, taken) == addresses.choose_subnet(seed, taken)


def test_where_a_whole_range_is_routed_the_next_is_used() -> None:
    assert addresses.choose_subnet("x", ["10.0.0.0/8"]).startswith("172.")
    assert addresses.choose_subnet("x", ["10.0.0.0/8", "172.16.0.0/12"]).startswith("192.168.")
    with pytest.raises(Exhausted):
        addresses.choose_subnet("x", ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"])
    last = [f"192.168.{n}.0/24" for n in range(256) if n != 77]
    assert addresses.choose_subnet("x", ["10.0.0.0/8", "172.16.0.0/12", *last]) == "192.168.77.0/24"


@given(SEEDS)
def test_a_chosen_prefix_is_unique_local(seed: str) -> None:
    prefix = IPv6Network(addresses.choose_prefix(seed))
    assert prefix.prefixlen == 64
    assert prefix.subnet_of(IPv6Network("fd00::/8"))


def test_eui64_is_that_of_the_rfc() -> None:
    """RFC 4291, appendix A, and what Linux makes of 52:54:00:12:34:56."""
    assert addresses.eui64("fe80::/64", "52:54:00:12:34:56") == "fe80::5054:ff:fe12:3456"
    assert addresses.eui64("fd01:2:3:4::/64", "02:00:00:00:00:01") == "fd01:2:3:4:0:ff:fe00:1"


def test_addresses_begin_at_ten_and_end_before_the_broadcast() -> None:
    taken: set[str] = {"10.1.2.12"}
    given_out = []
    for _ in range(244):
        given_out.append(addresses.next_address("10.1.2.0/24", taken))
        taken.add(given_out[-1])
    with pytest.raises(Exhausted, match=r"10\.1\.2\.0/24"):
        addresses.next_address("10.1.2.0/24", taken)
    assert given_out[:3] == ["10.1.2.10", "10.1.2.11", "10.1.2.13"]
    assert given_out[-1] == "10.1.2.254"


def test_small_subnets_give_what_they_have() -> None:
    assert addresses.gateway("10.1.2.8/29") == "10.1.2.9"
    assert addresses.next_address("10.1.2.8/29", {"10.1.2.9"}) == "10.1.2.10"


@given(SEEDS)
def test_macs_are_local_unicast(seed: str) -> None:
    for mac in (addresses.draw_mac(), addresses.fixed_mac(seed)):
        first = int(mac[:2], 16)
        assert len(mac) == 17
        assert first & 0b11 == 0b10
    assert addresses.fixed_mac("a") == addresses.fixed_mac("a") != addresses.fixed_mac("b")


def test_subnets_are_checked() -> None:
    assert addresses.parse_subnets(["10.1.2.0/24", "FD00:0::/64"]) == ("10.1.2.0/24", "fd00::/64")
    for wrong in (
        "10.1.2.1/24",
        "ten",
        "",
        "10.0.0.0/30",
        "0.0.0.0/0",
        "127.0.0.0/24",
        "fd00::/48",
        "224.1.0.0/24",
    ):
        with pytest.raises(Invalid) as told:
            addresses.parse_subnets([wrong])
        assert told.value.field == "subnets"
    with pytest.raises(Invalid, match="overlap"):
        addresses.parse_subnets(["10.1.0.0/16", "10.1.2.0/24"])


@given(st.ip_addresses(v=4), st.integers(8, 29))
def test_next_address_is_always_inside(address: object, length: int) -> None:
    subnet = str(ip_network(f"{address}/{length}", strict=False))
    found = addresses.next_address(subnet, {addresses.gateway(subnet)})
    assert ip_address(found) in ip_network(subnet)
    assert found != addresses.gateway(subnet)
