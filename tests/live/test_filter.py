"""What a port may send and get: guards, security groups, modes. Guests are namespaces whose link is the port's, and
what does not pass is known by what was sent after it and came."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from atoll.network.addresses import link_local
from atoll.network.drivers.bridge import BridgeNetwork
from atoll.network.groups import GroupPlan, GroupRule
from atoll.network.model import Forward, Mode, Network
from tests.kit.frames import Wire, arp, ether, icmp6, ip4, ip6, udp
from tests.kit.lab import Guest, Lab

OUT = GroupRule(direction="egress")
OTHER = "02:00:00:00:00:66"
MARK, LAST = b"must not arrive", b"the last of them"


@pytest.fixture
def held() -> Iterator[contextlib.ExitStack]:
    """Closes what a test opened."""
    with contextlib.ExitStack() as stack:
        yield stack


class Pair:
    """Two guests on one network."""

    def __init__(self, record: Network, driver: BridgeNetwork, one: Guest, two: Guest) -> None:
        self.record, self.driver, self.one, self.two = record, driver, one, two
        self.sends, self.sees = Wire(one.wire), Wire(two.wire)

    def close(self) -> None:
        self.sends.close()
        self.sees.close()

    @property
    def four(self) -> tuple[str, str]:
        return self.one.port.addresses[0], self.two.port.addresses[0]

    def own(self, content: bytes, *, port: int = 4000) -> bytes:
        """A datagram that is as it should be."""
        return ether(self.one.port.mac, 0x0800, ip4(*self.four, udp(port, 4001, content)))

    def arrives(self, frame: bytes) -> bool:
        self.sends.send(frame)
        self.sends.send(self.own(LAST))
        content = frame.rstrip(b"\0")  # padding may be trimmed on the way, and a tag is told beside the frame
        came = self.sees.until(LAST)
        return any(seen.startswith(content) or (MARK in frame and MARK in seen) for seen in came)


@pytest.fixture
async def pair(lab: Lab) -> AsyncIterator[Pair]:
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    one = await lab.held(driver, await lab.port(record, "one"))
    two = await lab.held(driver, await lab.port(record, "two"))
    made = Pair(record, driver, one, two)
    yield made
    made.close()
    await driver.down()


def spoofs(pair: Pair) -> dict[str, bytes]:
    me, (mine, yours) = pair.one.port.mac, pair.four
    gateway, six = pair.record.gateways[0], pair.one.port.addresses[1]
    stranger = mine.rpartition(".")[0] + ".99"
    gateway6, local = pair.record.gateways[1], link_local(me)
    packet = ip4(mine, yours, udp(4000, 4001, MARK))
    router = icmp6(134, bytes(8) + MARK)
    return {
        "another MAC": ether(OTHER, 0x0800, packet),
        "another address": ether(me, 0x0800, ip4(stranger, yours, udp(4000, 4001, MARK))),
        "the gateway's address": ether(me, 0x0800, ip4(gateway, yours, udp(4000, 4001, MARK))),
        "ARP for the gateway": ether(me, 0x0806, arp(me, gateway, yours)),
        "ARP with another MAC": ether(me, 0x0806, arp(OTHER, mine, yours)),
        "a DHCP server's answer": ether(me, 0x0800, ip4(mine, yours, udp(67, 68, MARK))),
        "a DHCPv6 server's answer": ether(me, 0x86DD, ip6(local, "ff02::1", udp(547, 546, MARK), 17)),
        "a router advertisement": ether(me, 0x86DD, ip6(local, "ff02::1", router)),
        "another IPv6 address": ether(me, 0x86DD, ip6(gateway6, "ff02::1", udp(4000, 4001, MARK), 17)),
        "a neighbour it is not": ether(me, 0x86DD, ip6(six, "ff02::1", icmp6(136, _target(gateway6)))),
        "a tag of a VLAN": ether(me, 0x8100, b"\x00\x05\x08\x00" + packet),
        "a protocol nobody asked for": ether(me, 0x88B5, MARK),
    }


def _target(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, address)


async def test_nothing_passes_under_a_false_name(pair: Pair) -> None:
    arrived = [what for what, frame in spoofs(pair).items() if pair.arrives(frame)]
    assert arrived == []


async def test_what_is_its_own_passes(pair: Pair) -> None:
    me, (mine, yours) = pair.one.port.mac, pair.four
    six = pair.one.port.addresses[1]
    honest = {
        "a datagram": pair.own(b"fine"),
        "ARP": ether(me, 0x0806, arp(me, mine, yours)),
        "a probe": ether(me, 0x0806, arp(me, "0.0.0.0", mine, reply=False)),
        "IPv6": ether(me, 0x86DD, ip6(six, "ff02::1", udp(4000, 4001, b"fine"), 17)),
        "its advertisement": ether(me, 0x86DD, ip6(six, "ff02::1", icmp6(136, _target(six)))),
        "its link-local one": ether(
            me, 0x86DD, ip6(link_local(me), "ff02::1", icmp6(136, _target(link_local(me))))
        ),
    }
    assert [what for what, frame in honest.items() if not pair.arrives(frame)] == []


async def test_without_its_guard_a_port_may_be_anybody(lab: Lab, held: contextlib.ExitStack) -> None:
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    one = await lab.held(driver, await lab.port(record, "one", guard=False))
    two = await lab.held(driver, await lab.port(record, "two"))
    pair = Pair(record, driver, one, two)
    held.callback(pair.close)
    assert [what for what, frame in spoofs(pair).items() if not pair.arrives(frame)] == []
    await driver.down()
    assert lab.left() == []


async def test_a_guard_comes_back_with_its_table(lab: Lab, pair: Pair) -> None:
    lab.host.run("nft", "flush", "ruleset")
    await lab.driver(pair.record).up()
    assert not pair.arrives(spoofs(pair)["another MAC"])


async def test_a_filter_made_anew_is_whole_at_once(lab: Lab, held: contextlib.ExitStack) -> None:
    """By a daemon that was not there when the ports were plugged, as after an upgrade of the rules."""
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    address = (await lab.port(record, "probe")).addresses[0]
    await driver.set_groups(
        [
            GroupPlan(id="web", rules=(OUT, rule("ingress", port=80, group="clients"))),
            GroupPlan(id="clients", rules=(OUT,), addresses=frozenset([address])),
        ]
    )
    web = await lab.held(driver, await lab.port(record, "web", groups=("web",)))
    client = await lab.held(driver, await lab.port(record, "client", groups=("clients",)))
    members = frozenset(client.port.addresses)
    await driver.set_groups([GroupPlan(id="clients", rules=(OUT,), addresses=members)])
    with web.wire.entered():
        for port in (80, 8080):
            held.enter_context(socket.create_server(("", port), backlog=50))
    lab.host.run("nft", "delete", "table", "bridge", driver._table)
    await lab.driver(record).up()
    assert client.connects(web.port.addresses[0], 80)
    assert not client.connects(web.port.addresses[0], 8080, within=0.7)
    await driver.down()
    assert lab.left() == []


def rule(direction: str, protocol: str = "tcp", **rest: object) -> GroupRule:
    return GroupRule(direction=direction, protocol=protocol, **rest)  # type: ignore[arg-type]


async def test_groups_hold_both_ways_and_change_in_place(lab: Lab, held: contextlib.ExitStack) -> None:
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    groups = {id: GroupPlan(id=id, rules=(OUT,)) for id in ("web", "clients")}
    await driver.set_groups(list(groups.values()))
    web = await lab.held(driver, await lab.port(record, "web", groups=("web",)))
    client = await lab.held(driver, await lab.port(record, "client", groups=("clients",)))
    other = await lab.held(driver, await lab.port(record, "other"))
    address = web.port.addresses[0]
    with web.wire.entered():
        for port in (80, 8080):
            six = socket.create_server(("", port), family=socket.AF_INET6, backlog=50, dualstack_ipv6=True)
            held.enter_context(six)
    with other.wire.entered():
        held.enter_context(socket.create_server(("", 80), backlog=50))

    async def put(*rules: GroupRule) -> None:
        await driver.set_groups([GroupPlan(id="web", rules=rules, addresses=frozenset(web.port.addresses))])

    assert not client.connects(address, 80, within=0.7)
    assert not other.connects(address, 80, within=0.7)
    assert web.connects(other.port.addresses[0], 80), "its own connections are answered"
    await put(OUT, rule("ingress", port=80))
    assert other.connects(address, 80)
    assert not other.connects(address, 8080, within=0.7)
    await put(OUT, rule("ingress", port=8000, last=8100, cidr=f"{other.port.addresses[0]}/32"))
    assert other.connects(address, 8080)
    assert not client.connects(address, 8080, within=0.7)
    assert not other.connects(address, 80, within=0.7)
    members = GroupPlan(id="clients", rules=(OUT,), addresses=frozenset(client.port.addresses))
    await driver.set_groups([members, GroupPlan(id="web", rules=(OUT, rule("ingress", port=80, group="clients")))])
    assert client.connects(address, 80)
    assert client.connects(web.port.addresses[1], 80), "by its IPv6 address too"
    assert not other.connects(address, 80, within=0.7)
    await driver.set_groups([GroupPlan(id="clients", rules=(OUT,))])
    assert not client.connects(address, 80, within=0.7), "it left the group"
    await put(rule("egress", port=443), rule("ingress", port=80))
    assert not web.connects(other.port.addresses[0], 80, within=0.7)
    assert other.connects(address, 80), "answers pass whatever may go out"
    assert not client.pings(address, tries=1)
    await put(rule("ingress", "icmp"))
    assert client.pings(address)
    await driver.down()
    assert lab.left() == []


async def test_isolated_guests_meet_nobody_else(lab: Lab, held: contextlib.ExitStack) -> None:
    outside = lab.outside()
    record = await lab.network("blue", mode=Mode.ISOLATED)
    driver = lab.driver(record)
    await driver.up()
    one = await lab.guest(driver, await lab.port(record, "one"))
    two = await lab.guest(driver, await lab.port(record, "two"))
    assert one.dhcp()
    assert two.dhcp()
    assert one.pings("two")
    assert "default" not in one.run("ip", "route"), "DHCP told of a router"
    one.run("ip", "route", "add", "default", "via", record.gateways[0])
    seen = Wire(outside)
    held.callback(seen.close)
    for target in ("198.51.100.2", record.gateways[0], "198.51.100.1"):
        assert not one.pings(target, tries=1), target
    lab.host.run("ip", "route", "add", "203.0.113.0/24", "via", "198.51.100.2")
    with lab.host.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.sendto(LAST, ("198.51.100.2", 9))
    assert not Guest(lab.host, one.port, Path("/dev/null")).pings(one.port.addresses[0], tries=2)
    came = [frame for frame in seen.until(LAST) if socket.inet_aton(one.port.addresses[0]) in frame]
    assert came == [], "packets of an isolated guest went out"
    await driver.down()
    assert lab.left() == []


async def test_routed_guests_are_reached_under_their_own_addresses(lab: Lab, held: contextlib.ExitStack) -> None:
    outside = lab.outside()
    record = await lab.network("blue", mode=Mode.ROUTED)
    driver = lab.driver(record)
    await driver.up()
    one = await lab.guest(driver, await lab.port(record, "one"))
    assert one.dhcp()
    outside.run("ip", "route", "add", record.subnets[0], "via", "198.51.100.1")
    seen = Wire(outside)
    held.callback(seen.close)
    assert one.pings("198.51.100.2")
    with one.wire.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(LAST, ("198.51.100.2", 9))
    assert any(socket.inet_aton(one.port.addresses[0]) in frame for frame in seen.until(LAST)), "it was masqueraded"
    assert Guest(outside, one.port, Path("/dev/null")).pings(one.port.addresses[0])
    await driver.down()


async def test_forwards_from_everywhere(lab: Lab, held: contextlib.ExitStack) -> None:
    outside = lab.outside()
    record = await lab.network("blue")
    driver = lab.driver(record)
    await driver.up()
    forwards = (Forward(8080, 80), Forward(5353, 53, "udp"))
    one = await lab.guest(driver, await lab.port(record, "one", forwards=forwards))
    two = await lab.guest(driver, await lab.port(record, "two"))
    assert one.dhcp()
    assert two.dhcp()
    with one.wire.entered():
        server = held.enter_context(socket.create_server(("", 80)))
        names = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        names.bind(("", 53))
    for where, target in ((outside, "198.51.100.1"), (lab.host, "198.51.100.1"), (two.wire, "198.51.100.1")):
        assert Guest(where, one.port, Path("/dev/null")).connects(target, 8080), (where.name, target)
        server.accept()[0].close()
    for loopback in ("127.0.0.1", "::1"):
        reader, writer = await asyncio.open_connection(loopback, 8080)
        taken, _ = await asyncio.to_thread(server.accept)
        writer.write(b"hello")
        assert await asyncio.to_thread(taken.recv, 5) == b"hello"
        taken.sendall(b"and you")
        taken.close()
        assert await reader.read() == b"and you"
        writer.close()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
        asks.setblocking(False)
        asks.connect(("127.0.0.1", 5353))
        asks.send(b"who?")
        question, client = await asyncio.to_thread(names.recvfrom, 100)
        assert question == b"who?"
        names.sendto(b"me", client)
        async with asyncio.timeout(10):
            assert await loop.sock_recv(asks, 100) == b"me"
    await driver.unplug(one.port.id)
    assert not Guest(outside, one.port, Path("/dev/null")).connects("198.51.100.1", 8080)
    assert not Guest(lab.host, one.port, Path("/dev/null")).connects("127.0.0.1", 8080)
    await driver.down()
    assert lab.left() == []
