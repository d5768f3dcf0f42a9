"""What a network is on a host: names, numbers, rules, dnsmasq's command line and lease file."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from atoll.base.clock import now
from atoll.base.errors import Invalid
from atoll.base.ids import NetworkId, PortId, new_uuid
from atoll.network import naming, registry
from atoll.network.dnsmasq import arguments
from atoll.network.drivers.user import UserNetwork
from atoll.network.index import claim_index, indexes, release_index
from atoll.network.leases import Lease, keep_leases, read_leases, release_message
from atoll.network.model import Network, Port
from atoll.network.network import Warns
from atoll.network.rules import host_rules
from atoll.store.api import Key, read_all
from atoll.store.memory import MemoryStore

LEASES = """1795264661 02:00:00:00:00:05 10.7.8.10 web 01:02:00:00:00:00:05
1795264662 02:00:00:00:00:06 10.7.8.11 * *
duid 00:01:00:01:2f:3a
1795264661 12345 fd00::5 web 00:01
"""


def record(**changes: object) -> Network:
    about = {"subnets": ("10.7.8.0/24", "fd00::/64"), "gateways": ("10.7.8.1", "fd00::1"), **changes}
    return Network(
        id=NetworkId("n1"),
        project="default",
        name="blue",
        driver="bridge",
        domain="blue.default.internal",
        created=now(),
        **about,  # type: ignore[arg-type]
    )


def test_names_fit_and_tell_two_atolls_apart() -> None:
    ports = [PortId(new_uuid()) for _ in range(2000)]
    for tag in ("000000", "ffffff"):
        names = {naming.tap_name(tag, port) for port in ports} | {naming.bridge_name(tag, 99999)}
        assert len(names) == 2001
        assert max(map(len, names)) <= 15
        assert all(name.startswith(f"at{tag}") for name in names)
    assert naming.link_group("ffffff") < 1 << 31
    assert naming.tap_name("0", ports[0], 0) != naming.tap_name("0", ports[0], 1)
    alias = naming.port_alias(NetworkId("n"), ports[0])
    assert naming.port_of(alias, NetworkId("n")) == ports[0]
    assert naming.port_of(alias, NetworkId("m")) is None
    assert naming.port_of(naming.bridge_alias(NetworkId("n")), NetworkId("n")) is None


async def test_numbers_are_claimed_once_and_reused() -> None:
    local = MemoryStore()
    ids = [NetworkId(f"n{number}") for number in range(10)]
    claimed = await asyncio.gather(*(claim_index(local, id) for id in [*ids, *ids]))
    assert claimed[:10] == claimed[10:]
    assert sorted(claimed[:10]) == list(range(1, 11))
    await release_index(local, ids[0])
    await release_index(local, ids[0])
    assert await claim_index(local, NetworkId("new")) == claimed[0]
    assert await indexes(local) == {**dict(zip(ids[1:], claimed[1:10], strict=True)), NetworkId("new"): claimed[0]}
    for id in await indexes(local):
        await release_index(local, id)
    assert (await read_all(local, Key("/"))).entries == {}


def test_the_mark_changes_with_the_rules() -> None:
    first, marks = host_rules("t", "br", ["10.7.8.0/24"], ["10.7.8.1"])
    again, same = host_rules("t", "br", ["10.7.8.0/24"], ["10.7.8.1"])
    other, different = host_rules("t", "br", ["10.7.8.0/24"], ["10.7.8.1"], [80])
    assert first == again
    assert marks == same
    assert set(marks).isdisjoint(different)
    assert len(marks) == sum("rule" in command["add"] for command in first)
    assert first != other


def test_dnsmasq_serves_its_own_link_and_planned_guests_only() -> None:
    argv = arguments(record(), link="at0-b1", directory=Path("/run/x"), user="dnsmasq", ipv6=True)
    assert "--interface=at0-b1" in argv
    assert "--dhcp-range=10.7.8.0,static,255.255.255.0,12h" in argv
    assert "--dhcp-range=fd00::,ra-only,64,12h" in argv
    assert not any("mtu" in word for word in argv)
    plain = arguments(record(mtu=1400), link="at0-b1", directory=Path("/run/x"), user="dnsmasq", ipv6=False)
    assert "--enable-ra" not in plain
    assert not any("fd00" in word for word in plain)
    assert "--dhcp-option=option:mtu,1400" in plain


def test_leases_are_read_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "leases"
    assert read_leases(file) == []
    keep_leases(file, lambda _: True)
    assert not file.exists()
    file.write_text(LEASES)
    assert read_leases(file) == [Lease("02:00:00:00:00:05", "10.7.8.10"), Lease("02:00:00:00:00:06", "10.7.8.11")]
    keep_leases(file, lambda lease: lease.mac.endswith("06"))
    assert file.read_text() == "".join(LEASES.splitlines(keepends=True)[1:])


def test_a_release_message_is_what_rfc_2131_says() -> None:
    message = release_message(Lease("02:00:00:00:00:05", "10.7.8.10"), "10.7.8.1")
    assert len(message) == 300
    assert message[:4] == bytes([1, 1, 6, 0])
    assert message[12:16] == bytes([10, 7, 8, 10])
    assert message[28:34] == bytes([2, 0, 0, 0, 0, 5])
    assert message[236:250] == bytes.fromhex("63825363 350107 3604 0a070801 ff")


async def test_drivers_by_name(tmp_path: Path) -> None:
    site = registry.Site(tag="0a0b0c", directory=tmp_path, local=MemoryStore())
    bridge = await registry.realise(record(), site)
    assert bridge.traits == registry.traits("bridge")
    assert bridge.traits.plans_addresses
    assert await indexes(site.local) == {NetworkId("n1"): 1}
    user = await registry.realise(_named(record(), "user"), site)
    assert not user.traits.plans_addresses
    with pytest.raises(Invalid) as told:
        registry.traits("brigde")
    assert "bridge" in told.value.hint
    with pytest.raises(Invalid):
        await registry.realise(_named(record(), "none"), site)


def _named(network: Network, driver: str) -> Network:
    return msgspec.structs.replace(network, driver=driver)


async def test_user_mode_says_what_slirp_says_where_nothing_is_planned() -> None:
    port = Port(id=PortId("p"), network=NetworkId("n1"), instance="i", mac="02:00:00:00:00:01")
    plugged = await UserNetwork(record(subnets=(), gateways=())).plug(port)
    assert (plugged.backend, plugged.subnet, plugged.address) == ("user", "10.0.2.0/24", "10.0.2.15")


async def test_what_user_mode_networking_lacks_is_said() -> None:
    driver = UserNetwork(record())
    assert isinstance(driver, Warns)
    assert "do not reach each other" in (await driver.warnings())[0]
