"""Security groups in force: from the records of groups and ports to the networks of this host that have them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

import msgspec

from atoll.base.errors import AtollError
from atoll.network.book import NetworkBook
from atoll.network.groupbook import GroupBook
from atoll.network.groups import Group, GroupPlan
from atoll.network.model import Network, Port
from atoll.network.network import Filters, NetworkDriver

log = logging.getLogger(__name__)


class Enforcer:
    """One for a daemon: what it applies it applies one after the other, as the records are then."""

    def __init__(
        self, networks: NetworkBook, groups: GroupBook, realise: Callable[[Network], Awaitable[NetworkDriver]]
    ) -> None:
        self._networks, self._groups, self._realise = networks, groups, realise
        self._turn = asyncio.Lock()

    async def prepare(self, network: Network, port: Port) -> None:
        """Before the port is plugged: its groups are in force on its network, which is up, and the others know its
        addresses. Raises what the network's driver does."""
        if port.settings.groups:
            await self.changed(port.settings.groups, also=network)

    async def changed(self, ids: Collection[str], *, also: Network | None = None) -> None:
        """The rules or members of these groups changed: wherever they matter it is so."""
        async with self._turn:
            groups = {group.id: group for group in await self._groups.all()}
            networks = {network.id: network for network in await self._networks.all()}
            ports = {id: await self._networks.ports(id) for id in networks}
            members = _members(port for some in ports.values() for port in some)
            for id, network in networks.items():
                used = reach({g for port in ports[id] for g in port.settings.groups}, groups)
                wanted = used & reach(ids, groups) if also is None or id != also.id else used
                if used & set(ids) or (also is not None and id == also.id):
                    await self._apply(
                        network, plans(wanted, groups, members), sure=also is not None and id == also.id
                    )

    async def _apply(self, network: Network, wanted: list[GroupPlan], *, sure: bool) -> None:
        """`sure`: it is up. Others are where a port is plugged."""
        driver = await self._realise(network)
        if not isinstance(driver, Filters) or not wanted:
            return
        if sure or await driver.ports():
            await driver.set_groups(wanted)

    async def forgotten(self, ids: Collection[str]) -> None:
        """As `changed`, of what is gone: that the filter still knows it hurts nobody, and fails nothing."""
        if not ids:
            return
        try:
            await self.changed(ids)
        except AtollError as error:
            log.warning("groups could not be brought up to date: %s", error)

    async def users(self, group: Group) -> list[str]:
        """Names of the instances with a port in it."""
        found = set()
        for network in await self._networks.all():
            ports = await self._networks.ports(network.id)
            found |= {port.name or port.instance for port in ports if group.id in port.settings.groups}
        return sorted(found)


def reach(ids: Iterable[str], groups: Mapping[str, Group]) -> set[str]:
    """These groups and all that their rules name, directly or not. Pure."""
    names = {(group.project, group.name): group.id for group in groups.values()}
    found, waiting = set[str](), [id for id in ids if id in groups]
    while waiting:
        id = waiting.pop()
        if id not in found:
            found.add(id)
            group = groups[id]
            waiting += [names[group.project, r.group] for r in group.rules if (group.project, r.group) in names]
    return found


def plans(ids: Iterable[str], groups: Mapping[str, Group], members: Mapping[str, set[str]]) -> list[GroupPlan]:
    """Pure. A rule about a group that is gone lets nobody pass: it is left out."""
    names = {(group.project, group.name): group.id for group in groups.values()}
    found = []
    for id in sorted(ids):
        group = groups[id]
        rules = tuple(
            msgspec.structs.replace(rule, group=names[group.project, rule.group] if rule.group else "")
            for rule in group.rules
            if not rule.group or (group.project, rule.group) in names
        )
        found.append(GroupPlan(id=id, rules=rules, addresses=frozenset(members.get(id, ()))))
    return found


def _members(ports: Iterable[Port]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for port in ports:
        for group in port.settings.groups:
            found.setdefault(group, set()).update(port.addresses)
    return found
