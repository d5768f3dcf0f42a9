"""The networks as this host has them: each driver made at first use and kept."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from atoll.base.errors import AtollError
from atoll.base.ids import NetworkId
from atoll.network.book import NetworkBook
from atoll.network.enforce import Enforcer
from atoll.network.groupbook import GroupBook
from atoll.network.groups import Group
from atoll.network.index import indexes
from atoll.network.model import Network, Port
from atoll.network.network import NetworkDriver, Warns
from atoll.network.registry import Site, realise, withdraw

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Realised:
    site: Site
    _known: dict[NetworkId, NetworkDriver] = field(default_factory=dict)

    async def driver(self, record: Network) -> NetworkDriver:
        """Raises Invalid where there is no such driver."""
        found = self._known.get(record.id)
        if found is None:
            found = self._known.setdefault(record.id, await realise(record, self.site))
        return found

    async def forget(self, record: Network) -> None:
        """Take down what this host has of a network. Raises what its driver does."""
        self._known.pop(record.id, None)
        await withdraw(record.id, self.site)

    async def withdraw(self, keep: Collection[str] = ()) -> None:
        """Take down what this host has of every network but those to `keep`: links, rules, dnsmasq, names.

        They come back at the next plug. For networks without a record, and for all once no guest runs.
        """
        for id in (await indexes(self.site.local)).keys() - set(keep):
            self._known.pop(id, None)
            try:
                await withdraw(id, self.site)
            except AtollError as error:
                log.warning("network %s could not be taken down: %s", id, error)


@dataclass(frozen=True, slots=True)
class NetworkList:
    """Networks for reading."""

    book: NetworkBook
    realised: Realised

    async def list(self, project: str) -> Sequence[Network]:
        return await self.book.visible(project)

    async def get(self, project: str, name: str) -> Network:
        """Raises Absent."""
        return await self.book.get(project, name)

    async def ports(self, network: NetworkId) -> Sequence[Port]:
        return await self.book.ports(network)

    async def warnings(self, network: Network) -> Sequence[str]:
        """What of this host keeps it from working wholly; nothing where that cannot be looked at."""
        driver = await self.realised.driver(network)
        if not isinstance(driver, Warns):
            return ()
        try:
            return await driver.warnings()
        except AtollError as error:
            return (f"this host's packet filter cannot be looked at: {error.message}",)


@dataclass(frozen=True, slots=True)
class GroupList:
    """Security groups for reading."""

    book: GroupBook
    enforcer: Enforcer

    async def list(self, project: str) -> Sequence[Group]:
        return await self.book.all(project)

    async def get(self, project: str, name: str) -> Group:
        """Raises Absent."""
        return await self.book.get(project, name)

    async def users(self, group: Group) -> Sequence[str]:
        """Names of the instances in it."""
        return await self.enforcer.users(group)
