"""The contract of network drivers, as code. Every driver passes it; the bridge does in a namespace of its own."""

import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator

import msgspec
import pytest

from atoll.base.clock import now
from atoll.base.ids import NetworkId, PortId, new_uuid
from atoll.network.addresses import choose_prefix, choose_subnet, draw_mac, eui64, gateway
from atoll.network.drivers.bridge import BridgeNetwork
from atoll.network.drivers.user import UserNetwork
from atoll.network.groups import OUTWARDS, GroupPlan, GroupRule
from atoll.network.model import Bandwidth, Network, Port, PortSettings
from atoll.network.naming import run_directory
from atoll.network.network import Filters, NetworkDriver
from tests.kit.fake_network import FakeHost, FakeNetwork
from tests.kit.netns import namespace

Again = Callable[[], NetworkDriver]
"""Another driver object for the same network on the same host, as a restarted daemon makes one."""


def make_record() -> Network:
    id = NetworkId(new_uuid())
    subnets = (choose_subnet(id, ()), choose_prefix(id))
    return Network(
        id=id,
        project="default",
        name="test",
        driver="any",
        subnets=subnets,
        gateways=tuple(map(gateway, subnets)),
        domain="test.default.internal",
        created=now(),
    )


def make_port(record: Network, number: int = 10) -> Port:
    mac, (subnet, prefix) = draw_mac(), record.subnets
    addresses = (subnet.replace(".0/24", f".{number}"), eui64(prefix, mac))
    id = PortId(new_uuid())
    return Port(id=id, network=record.id, instance="i", mac=mac, addresses=addresses, name=f"web{number}")


@pytest.fixture
def record() -> Network:
    return make_record()


@pytest.fixture(params=["fake", "user", "bridge"])
def again(request: pytest.FixtureRequest, record: Network) -> Iterator[Again]:
    if request.param == "fake":
        host: FakeHost = {}
        yield lambda: FakeNetwork(record, host=host)
    elif request.param == "user":
        yield lambda: UserNetwork(record)
    else:
        tag = secrets.token_hex(3)
        directory = run_directory(tag) / record.id
        with namespace("contract") as ours, ours.entered():
            yield lambda: BridgeNetwork(record, tag=tag, index=1, directory=directory)
        for parent in (directory.parent, directory.parent.parent):
            if parent.exists():
                parent.rmdir()  # fails where something was left in it


@pytest.fixture
async def network(again: Again) -> AsyncIterator[NetworkDriver]:
    driver = again()
    await driver.up()
    yield driver
    await driver.down()


async def test_a_plugged_port_can_be_opened(network: NetworkDriver, record: Network) -> None:
    port = make_port(record)
    plugged = await network.plug(port, owner=os.getuid())
    if plugged.backend == "tap":
        assert 0 < len(plugged.link) <= 15
        assert plugged.mtu == record.mtu
        assert (await network.ports())[port.id] == plugged
    else:
        assert plugged.backend == "user"
        assert plugged.subnet in record.subnets
        assert plugged.address == port.addresses[0]


async def test_every_act_may_be_repeated(network: NetworkDriver, record: Network) -> None:
    port, other = make_port(record), make_port(record, 11)
    await network.up()
    first = await network.plug(port, owner=1000)
    assert await network.plug(port, owner=1000) == first
    second = await network.plug(other)
    assert second.link != first.link or first.backend == "user"
    await network.up()
    await network.unplug(port.id)
    await network.unplug(port.id)
    assert port.id not in await network.ports()
    await network.down()
    await network.down()
    assert not await network.ports()


async def test_what_is_absent_can_be_taken_back(again: Again) -> None:
    driver = again()
    await driver.unplug(PortId(new_uuid()))
    await driver.down()
    assert not await driver.ports()


async def test_another_object_finds_what_is_there(network: NetworkDriver, again: Again, record: Network) -> None:
    port = make_port(record)
    plugged = await network.plug(port)
    found = await again().ports()
    assert found == await network.ports()
    assert await again().plug(port) == plugged
    await again().unplug(port.id)
    assert not await network.ports()


async def test_ports_survive_a_second_up(network: NetworkDriver, again: Again, record: Network) -> None:
    await network.plug(make_port(record))
    before = await network.ports()
    await again().up()
    assert await network.ports() == before


async def test_down_takes_ports_with_it_and_up_begins_anew(network: NetworkDriver, record: Network) -> None:
    port = make_port(record)
    await network.plug(port)
    await network.down()
    assert not await network.ports()
    await network.up()
    assert not await network.ports()
    await network.plug(port)
    await network.unplug(port.id)


async def test_ports_of_one_network_only(again: Again, network: NetworkDriver, record: Network) -> None:
    """`unplug` of a port that another driver of the host made does nothing to ours."""
    port = make_port(record)
    await network.plug(port)
    before = await network.ports()
    await network.unplug(PortId(new_uuid()))
    assert await network.ports() == before


async def test_groups_are_put_in_force_before_ports_and_changed_after(
    network: NetworkDriver, record: Network
) -> None:
    if not network.traits.filters:
        assert not isinstance(network, Filters)
        return
    assert isinstance(network, Filters)
    rule = GroupRule(direction="ingress", protocol="tcp", port=80, group="other")
    plans = [GroupPlan(id="web", rules=(rule,)), GroupPlan(id="other", rules=(OUTWARDS,))]
    await network.set_groups(plans)
    port = msgspec.structs.replace(make_port(record), settings=PortSettings(groups=("web",)))
    await network.plug(port)
    for addresses in (frozenset(port.addresses), frozenset[str]()):
        await network.set_groups([GroupPlan(id="other", rules=(OUTWARDS, rule), addresses=addresses)])
    await network.set_groups(plans)
    await network.plug(msgspec.structs.replace(port, settings=PortSettings()))
    await network.unplug(port.id)


async def test_a_port_in_a_group_that_was_never_set(network: NetworkDriver, record: Network) -> None:
    settings = PortSettings(groups=("never",))
    await network.plug(msgspec.structs.replace(make_port(record), settings=settings))
    await network.down()


async def test_limits_are_set_changed_and_taken_away(network: NetworkDriver, record: Network) -> None:
    port = make_port(record)
    first = await network.plug(port)
    for up, down in ((10**7, None), (10**7, 10**8), (None, None), (10**8, None)):
        limits = PortSettings(up=Bandwidth(up), down=Bandwidth(down, guaranteed=10**6 if down else None))
        if network.traits.filters:
            assert await network.plug(msgspec.structs.replace(port, settings=limits)) == first
    await network.unplug(port.id)
