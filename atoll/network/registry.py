"""Network drivers by name."""

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec

from atoll.base.clock import now
from atoll.base.errors import Invalid
from atoll.base.ids import NetworkId
from atoll.base.names import did_you_mean
from atoll.network.drivers.bridge import BridgeNetwork
from atoll.network.drivers.uplink import UplinkNetwork
from atoll.network.drivers.user import UserNetwork
from atoll.network.index import claim_index, indexes, release_index
from atoll.network.model import Mode, Network, NetworkTraits
from atoll.network.network import NetworkDriver
from atoll.network.proxy import Proxies
from atoll.store.api import Store


class Site(msgspec.Struct, frozen=True):
    """What networks need of this host. `tag`: 6 hexadecimal digits of the state directory's id. `directory`:
    where they keep runtime files (`naming.run_directory(tag)`). `local`: the host's own store. `host_ports`:
    ports of the host that guests may reach. `proxies`: of this daemon."""

    tag: str
    directory: Path
    local: Store
    host_ports: tuple[int, ...] = ()
    proxies: Proxies = msgspec.field(default_factory=Proxies)


async def _bridge(record: Network, site: Site) -> NetworkDriver:
    index = await claim_index(site.local, record.id)
    directory = site.directory / record.id
    return BridgeNetwork(
        record, tag=site.tag, index=index, directory=directory, host_ports=site.host_ports, proxies=site.proxies
    )


async def _uplink(record: Network, site: Site) -> NetworkDriver:
    index = await claim_index(site.local, record.id)
    return UplinkNetwork(record, tag=site.tag, index=index, directory=site.directory / record.id)


async def _user(record: Network, _: Site) -> NetworkDriver:
    return UserNetwork(record)


DRIVERS: dict[str, tuple[NetworkTraits, Callable[[Network, Site], Awaitable[NetworkDriver]]]] = {
    BridgeNetwork.name: (BridgeNetwork.traits, _bridge),
    UplinkNetwork.name: (UplinkNetwork.traits, _uplink),
    UserNetwork.name: (UserNetwork.traits, _user),
}
BY_MODE: Mapping[Mode, str] = {
    Mode.NAT: BridgeNetwork.name,
    Mode.ROUTED: BridgeNetwork.name,
    Mode.ISOLATED: BridgeNetwork.name,
    Mode.BRIDGED: UplinkNetwork.name,
}
"""The driver of a network that people make."""


def traits(driver: str) -> NetworkTraits:
    """Raises Invalid where there is no such driver."""
    return _entry(driver)[0]


async def realise(record: Network, site: Site) -> NetworkDriver:
    """The driver of a network on this host; it does nothing until asked to. Raises Invalid."""
    return await _entry(record.driver)[1](record, site)


async def withdraw(id: NetworkId, site: Site) -> None:
    """Take down what this host has of a network, whose record may be gone. Absent is success.

    With `index.indexes(site.local)` it finds and removes all that networks ever made here.
    """
    index = (await indexes(site.local)).get(id)
    if index is None:
        return
    bare = Network(id=id, project="", name="", driver=BridgeNetwork.name, created=now())
    await BridgeNetwork(bare, tag=site.tag, index=index, directory=site.directory / id).down()
    await release_index(site.local, id)
    with contextlib.suppress(OSError):  # other networks, or others than networks, may be in there
        site.directory.rmdir()
        site.directory.parent.rmdir()


def _entry(driver: str) -> tuple[NetworkTraits, Callable[[Network, Site], Awaitable[NetworkDriver]]]:
    if driver not in DRIVERS:
        hint = did_you_mean(driver, DRIVERS) or f"there are {', '.join(sorted(DRIVERS))}"
        raise Invalid(f"there is no network driver {driver[:80]}", hint=hint, field="driver")
    return DRIVERS[driver]
