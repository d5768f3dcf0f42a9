"""A bridge network as guests meet it. The host, each guest and the outside are network namespaces (as root)."""

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from atoll.base.errors import Broken, Lacking
from atoll.host import nft
from atoll.network import naming
from atoll.network.drivers.bridge import BridgeNetwork
from atoll.network.index import indexes
from atoll.network.model import Mode, Port
from atoll.network.naming import run_directory
from atoll.network.registry import Site, realise, withdraw
from atoll.store.memory import MemoryStore
from tests.kit.lab import Guest, Lab


async def until(fact: Callable[[], bool], *, timeout: float = 10) -> bool:
    async with asyncio.timeout(timeout):
        while not fact():
            await asyncio.sleep(0.02)
    return True


async def test_guests_get_what_was_planned_and_find_each_other(lab: Lab) -> None:
    # The harder case, where there is a choice: frames between guests pass the packet filter too.
    lab.host.run("sysctl", "-q", "net.bridge.bridge-nf-call-iptables=1", check=False)
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    one = await lab.guest(driver, await lab.port(record, "one"))
    two = await lab.guest(driver, await lab.port(record, "two"))
    assert one.dhcp()
    assert two.dhcp()
    address, planned = two.port.addresses
    assert f"{address}/24" in two.run("ip", "-4", "addr", "show", "eth0")
    assert one.resolv.read_text().split() == ["nameserver", record.gateways[0], "search", record.domain]
    for name in ("two", f"two.{record.domain}", record.gateways[0], address):
        assert one.pings(name), name
    assert await until(lambda: one.has_made(one.port.addresses[1]) and two.has_made(planned))
    assert one.pings(planned)
    assert one.pings(record.gateways[1])
    assert set(one.resolve("two")) == {address, planned}
    assert one.resolve(address) == [f"two.{record.domain}"]
    assert one.resolve(planned) == [f"two.{record.domain}"]
    assert one.resolve("liar") == []
    assert lab.host.run("stat", "-c", "%U", f"/proc/{lab.dnsmasq_pid(record)}").strip() in ("dnsmasq", "nobody")
    await driver.down()
    assert lab.left() == []


async def test_a_guest_without_a_plan_gets_nothing(lab: Lab) -> None:
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    port = await lab.port(record, "one")
    stranger = lab.attach(driver, port)
    assert not stranger.dhcp(tries=2)
    await driver.plug(port)
    assert stranger.dhcp()
    await driver.down()


async def test_a_name_and_address_go_with_their_port(lab: Lab) -> None:
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    one = await lab.guest(driver, await lab.port(record, "one"))
    old = await lab.guest(driver, await lab.port(record, "old"))
    assert one.dhcp()
    assert old.dhcp()
    address = old.port.addresses[0]
    assert address in one.resolve("old")
    await driver.unplug(old.port.id)
    await lab.store.commit(await lab.book.release_port(record.id, old.port.id))
    assert await until(lambda: not one.resolve("old") and not one.resolve(address))
    assert not old.dhcp(tries=2)
    new = await lab.guest(driver, await lab.port(record, "new"))
    assert new.port.addresses[0] == address
    assert new.dhcp()
    assert one.pings("new")
    assert one.resolve(address) == [f"new.{record.domain}"]
    await driver.down()


async def test_an_address_whose_former_port_was_never_unplugged_here(lab: Lab) -> None:
    """Its lease is in dnsmasq's memory and file; a killed dnsmasq, or a new one, must not hold on to it."""
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    former = await lab.guest(driver, await lab.port(record, "former"))
    assert former.dhcp()
    os.kill(lab.dnsmasq_pid(record), signal.SIGKILL)
    await driver.unplug(former.port.id)
    await driver.up()
    heir = Port(
        id=(await lab.port(record, "heir")).id,
        network=record.id,
        instance="heir",
        mac="02:00:00:00:00:77",
        addresses=former.port.addresses[:1],
        name="heir",
    )
    guest = await lab.guest(driver, heir)
    assert guest.dhcp()
    assert guest.resolve("former") == []
    await driver.down()


async def test_two_networks_do_not_leak(lab: Lab) -> None:
    red, blue = await lab.network("red"), await lab.network("blue")
    drivers = lab.driver(red, 1), lab.driver(blue, 2)
    for driver in drivers:
        await driver.up()
    one = await lab.guest(drivers[0], await lab.port(red, "one"))
    two = await lab.guest(drivers[1], await lab.port(blue, "two"))
    assert one.dhcp()
    assert two.dhcp()
    assert one.pings(red.gateways[0])
    assert not one.pings(two.port.addresses[0], tries=2)
    assert not two.pings(one.port.addresses[0], tries=2)
    assert one.resolve("two") == one.resolve(f"two.{blue.domain}") == []
    assert one.resolve("two", blue.gateways[0]) == []
    await drivers[0].down()
    assert two.pings(blue.gateways[0])
    assert two.resolve("two") != []
    await drivers[1].down()
    assert lab.left() == []


async def test_the_outside_sees_the_host_only(lab: Lab) -> None:
    outside = lab.outside()
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    one = await lab.guest(driver, await lab.port(record, "one"))
    assert one.dhcp()
    assert one.pings("198.51.100.2")
    assert await until(lambda: one.has_made(one.port.addresses[1]))
    assert one.pings("2001:db8::2")
    outside.run("ip", "route", "add", record.subnets[0], "via", "198.51.100.1")
    intruder = Guest(outside, one.port, Path("/dev/null"))
    assert not intruder.pings(one.port.addresses[0], tries=2)
    await driver.down()


async def test_services_of_the_host_are_not_for_guests(lab: Lab) -> None:
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    one = await lab.guest(driver, await lab.port(record, "one"))
    assert one.dhcp()
    gateway = record.gateways[0]
    with socket.create_server(("", 0)) as service:
        port = service.getsockname()[1]
        assert not one.connects(gateway, port)
        allowing = lab.driver(record, host_ports=(port,))
        await allowing.up()
        assert one.connects(gateway, port)
    await driver.down()


async def test_up_mends_what_others_broke(lab: Lab) -> None:
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    one = await lab.guest(driver, await lab.port(record, "one"))
    bridge, table = driver._bridge, driver._table

    os.kill(lab.dnsmasq_pid(record), signal.SIGKILL)
    assert not one.dhcp(tries=1)
    await lab.driver(record).up()
    assert one.dhcp()

    lab.host.run("nft", "flush", "ruleset")
    await driver.up()
    assert table in lab.host.run("nft", "list", "tables")

    lab.host.run("ip", "addr", "flush", "dev", bridge)
    lab.host.run("ip", "link", "set", bridge, "down")
    await driver.up()
    assert one.pings(record.gateways[0])

    lab.host.run("ip", "link", "del", bridge)
    before = lab.dnsmasq_pid(record)
    await driver.up()
    assert lab.dnsmasq_pid(record) != before
    assert one.port.id in await driver.ports()
    lab.wire(one.wire, "eth1", one.port.mac, driver)
    one.run("ip", "link", "del", "eth0")
    one.run("ip", "link", "set", "eth1", "down")
    one.run("ip", "link", "set", "eth1", "name", "eth0", "up")
    assert one.dhcp()
    assert one.pings("one")

    (run_directory(lab.tag) / record.id / "pid").unlink()
    await driver.up()
    assert one.dhcp()
    await driver.down()
    assert lab.left() == []


async def test_nothing_changes_where_nothing_is_wrong(lab: Lab) -> None:
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    port = await lab.port(record, "one")
    await driver.plug(port, owner=1234)
    facts: list[Callable[[], str]] = [
        lambda: lab.host.run("ip", "-d", "addr").replace("sec", ""),
        lambda: lab.host.run("nft", "-a", "list", "ruleset"),
        lambda: str(lab.dnsmasq_pid(record)),
    ]
    before = [_still(fact()) for fact in facts]
    again = lab.driver(record)
    await again.up()
    await again.plug(port, owner=1234)
    assert [_still(fact()) for fact in facts] == before
    await driver.down()


def _still(text: str) -> list[str]:
    """Without the bridge's running timers."""
    return [line for line in text.splitlines() if "timer" not in line]


async def test_a_new_name_while_the_guest_runs(lab: Lab) -> None:
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    one = await lab.guest(driver, await lab.port(record, "one"))
    assert one.dhcp()
    assert one.resolve("one")
    await driver.plug(msgspec.structs.replace(one.port, name="uno"))
    assert await until(lambda: bool(one.resolve("uno")) and not one.resolve("one"))
    assert one.dhcp()
    assert one.resolve(one.port.addresses[0]) == [f"uno.{record.domain}"]
    await driver.down()


async def test_withdrawn_without_its_record(lab: Lab) -> None:
    site = Site(tag=lab.tag, directory=run_directory(lab.tag), local=MemoryStore())
    record = await lab.network("blue")
    driver = await realise(record, site)
    await driver.up()
    await driver.plug(await lab.port(record, "one"))
    assert await indexes(site.local) == {record.id: 1}
    await withdraw(record.id, site)
    await withdraw(record.id, site)
    assert await indexes(site.local) == {}
    assert lab.left() == []
    assert not site.directory.parent.exists()


async def test_a_taken_port_is_told(lab: Lab) -> None:
    record = await lab.network("blue")
    driver = lab.driver(record)
    with socket.create_server(("0.0.0.0", 53)), pytest.raises(Broken, match="port 53"):
        await driver.up()
    await driver.up()
    await driver.down()
    assert lab.left() == []


async def test_a_directory_that_dnsmasq_cannot_reach_is_told(lab: Lab, tmp_path: Path) -> None:
    record = await lab.network("blue")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    driver = BridgeNetwork(record, tag=lab.tag, index=1, directory=closed / "blue")
    with pytest.raises(Lacking, match="cannot pass"):
        await driver.up()
    await driver.down()
    assert lab.left() == []


async def test_without_dnsmasq_its_package_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    record = await lab.network("blue")
    driver = lab.driver(record)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        with pytest.raises(Lacking) as told:
            await driver.up()
    assert "dnsmasq-base" in told.value.hint
    await driver.down()
    assert lab.left() == []


async def test_a_foreign_drop_is_reported(lab: Lab) -> None:
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    assert await driver.warnings() == []
    lab.host.run(
        "nft",
        "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
    )
    assert any("ip filter FORWARD" in warning for warning in await driver.warnings())
    await driver.down()


async def test_a_drop_of_what_is_forwarded_matters_on_a_bridge_too(lab: Lab) -> None:
    """Where bridged frames pass the packet filter, an isolated network's guests do not reach each other."""
    record = await lab.network("blue", mode=Mode.ISOLATED)
    driver = lab.driver(record)
    await driver.up()
    lab.host.run(
        "nft", "add table inet fw; add chain inet fw f { type filter hook forward priority 0; policy drop; }"
    )
    setting = "/proc/sys/net/bridge/bridge-nf-call-iptables"
    for value, told in (("1", True), ("0", False)):
        lab.host.run("sh", "-c", f"echo {value} > {setting}; echo {value} > {setting.replace('ip', 'ip6')}")
        found = await driver.warnings()
        assert any("bridge-nf-call-iptables=0" in warning for warning in found) == told
    await driver.down()


async def test_firewalld_is_known_by_its_table(lab: Lab) -> None:
    driver = lab.driver(await lab.network("blue"))
    await driver.up()
    lab.host.run("nft", "add", "table", "inet", "firewalld")
    assert any(f"--add-interface={driver._bridge}" in warning for warning in await driver.warnings())
    await driver.down()


async def test_a_tap_is_its_owners(lab: Lab) -> None:
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    plugged = await driver.plug(await lab.port(record, "one"), owner=65534)
    assert _can_open(plugged.link, 65534)
    assert not _can_open(plugged.link, 65533)
    await driver.down()


def _can_open(link: str, uid: int) -> bool:
    take = "fcntl.ioctl(0, 0x400454CA, struct.pack('16sH22x', sys.argv[1].encode(), 0x1002))"
    to = ["setpriv", f"--reuid={uid}", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
    argv = [*to, "/usr/bin/python3", "-c", f"import fcntl, struct, sys; {take}", link]
    with open("/dev/net/tun", "r+b", buffering=0) as tun:  # some hosts keep the device node to root
        return subprocess.run(argv, stdin=tun, capture_output=True).returncode == 0


async def test_two_ports_whose_names_hash_alike(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    monkeypatch.setattr(naming, "tap_name", lambda tag, port, attempt=0: f"at{tag}same{attempt}")
    ports = [await lab.port(record, name) for name in ("one", "two")]
    links = {(await driver.plug(port)).link for port in ports}
    assert len(links) == 2
    await driver.unplug(ports[0].id)
    assert list(await driver.ports()) == [ports[1].id]
    await driver.unplug(ports[1].id)
    assert await driver.ports() == {}
    await driver.down()


async def test_two_atolls_on_one_host(lab: Lab) -> None:
    """Same index, other tag: neither touches the other's."""
    ours, theirs = await lab.network("blue"), await lab.network("red")
    other = secrets.token_hex(3)
    first = lab.driver(ours)
    second = BridgeNetwork(theirs, tag=other, index=1, directory=run_directory(other) / theirs.id)
    await first.up()
    await second.up()
    await first.down()
    assert len(lab.left()) == 1  # the other's dnsmasq
    assert sorted(await nft.tables()) == [("bridge", second._table), ("inet", second._table)]
    await second.down()
    assert lab.left() == []
    shutil.rmtree(run_directory(other).parent)
