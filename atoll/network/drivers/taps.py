"""Ports that are taps or veth pairs on a bridge of this host, with their filter and their bandwidth: what drivers
share."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from atoll.base.errors import Exhausted, Invalid
from atoll.base.ids import NetworkId, PortId
from atoll.host import nft, sysctl, tc
from atoll.host.links import Link, Links, names
from atoll.network import filter, meter, naming
from atoll.network.groups import GroupPlan
from atoll.network.model import Network, Plugged, Port
from atoll.network.portfiles import PlacedPort, PortFiles


class Taps:
    """Of one network, on the link `bridge`. `pinned`: ports have the addresses of their records and no others."""

    def __init__(
        self, record: Network, links: Links, *, tag: str, index: int, bridge: str, directory: Path, pinned: bool
    ) -> None:
        self._record, self._links, self._tag, self._bridge, self._pinned = record, links, tag, bridge, pinned
        self._table = naming.table_name(tag, index)
        self._meters = {way: naming.meter_name(tag, index, way) for way in meter.WAYS}
        self._files = PortFiles(directory)
        self._contents, self._mark = filter.contents(self._table, record.gateways)
        self._groups: dict[str, GroupPlan] = {}

    async def up(self) -> None:
        """The filter is there; where it had to be made anew, it has every plugged port and its groups again, in the
        same step: none is ever without its guard, or cut off."""
        if commands := await self.lacking():
            await nft.apply(commands)

    async def lacking(self) -> list[nft.Command]:
        """What `up` would do, for whoever has more to do in the same step."""
        if await nft.has_set(filter.FAMILY, self._table, self._mark):
            return []
        absent = not await nft.comments(filter.FAMILY, self._table)
        groups = self._files.groups()
        commands = [*self._contents, *filter.groups_commands(self._table, groups.values(), {})]
        for placed in self._files.all().values():
            wanted = filter.port_chains(self._table, placed.link, placed.port, pinned=self._pinned)
            commands += filter.port_commands(self._table, placed.link, wanted, {})
        self._groups = groups
        return nft.made_anew(filter.FAMILY, self._table, commands, absent=absent)

    async def down(self) -> None:
        """But for the filter, which goes with the network's other tables."""
        there = set(names())
        links = [*(tap.name for tap in await self.taps()), *self._meters.values()]
        if links := [name for name in links if name in there]:
            await self._links.delete(links)
        self._groups = {}
        self._files.clear()

    async def plug(self, port: Port, *, owner: int | None) -> Plugged:
        before = self._files.get(port.id)
        name = await free_tap(self._links, self._tag, self._record.id, port.id)
        placed = PlacedPort(port=port, link=name, number=self._number(port, before))
        self._files.put(placed)
        mtu, alias = self._record.mtu, naming.port_alias(self._record.id, port.id)
        # The rules first: a tap that is there without them would let everything pass.
        await self._filter(placed)
        plugged = await self._make(port, name, owner=owner, mtu=mtu, alias=alias)
        if sysctl.has_ipv6():
            # The host itself has nothing to say on a guest's wire.
            sysctl.write(f"ipv6/conf/{name}/disable_ipv6", "1")
        await self._limit(placed, before)
        return plugged

    async def _make(self, port: Port, name: str, *, owner: int | None, mtu: int, alias: str) -> Plugged:
        if port.end == "tap":
            await self._links.make_tap(name, bridge=self._bridge, owner=owner, mtu=mtu, alias=alias)
            return Plugged("tap", link=name, mtu=mtu)
        peers = [naming.peer_name(self._tag, port.id, attempt) for attempt in range(naming.ATTEMPTS)]
        peer = await self._links.make_veth(
            name, peers=peers, mac=port.mac, bridge=self._bridge, mtu=mtu, alias=alias
        )
        if not self._pinned:
            return Plugged("veth", link=name, peer=peer, mtu=mtu)
        return Plugged("veth", link=name, peer=peer, mtu=mtu, **naming.given(self._record, port))

    async def unplug(self, id: PortId) -> None:
        alias, placed = naming.port_alias(self._record.id, id), self._files.get(id)
        for attempt in range(naming.ATTEMPTS):
            name = naming.tap_name(self._tag, id, attempt)
            link = await self._links.get(name)
            # Without an alias its making was interrupted.
            if link and link.alias in ("", alias):
                await self._links.delete([name])
        if placed is None:
            return
        if placed.number:
            await self._unlimit(placed, tap="")
        await self._replace(placed.link, {})
        self._files.remove(id)

    async def ports(self) -> Mapping[PortId, Plugged]:
        found = {}
        for link in await self._links.attached(self._bridge):
            if port := naming.port_of(link.alias, self._record.id):
                backend = "veth" if link.kind == "veth" else "tap"
                found[port] = Plugged(backend, link=link.name, mtu=link.mtu)
        return found

    async def reattach(self) -> None:
        """Taps outlive a bridge that somebody deleted; their guests come back with it."""
        for tap in await self.taps():
            await self._links.attach(tap.name, self._bridge)

    async def set_groups(self, plans: Sequence[GroupPlan]) -> None:
        """Put these groups in force as they are now, in one step; those not named stay as they are."""
        if commands := filter.groups_commands(self._table, plans, self._groups):
            await nft.apply(commands)
            self._files.put_groups(plans)
        self._groups.update({plan.id: plan for plan in plans})

    def placed(self) -> list[Port]:
        return [placed.port for placed in self._files.all().values()]

    async def taps(self) -> list[Link]:
        """Also those that are on no bridge."""
        if not any(naming.is_tap(self._tag, name) for name in names()):
            return []
        return [link for link in await self._links.ours() if naming.port_of(link.alias, self._record.id)]

    async def _filter(self, placed: PlacedPort) -> None:
        wanted = filter.port_chains(self._table, placed.link, placed.port, pinned=self._pinned)
        await self._replace(placed.link, wanted)

    async def _replace(self, link: str, wanted: dict[str, tuple[str, list[nft.Command]]]) -> None:
        present = {}
        for name in filter.MAPS:
            for key, verdict in await nft.elements(filter.FAMILY, self._table, name):
                if key == link:
                    present[name] = verdict["jump"]["target"]
        if commands := filter.port_commands(self._table, link, wanted, present):
            await nft.apply(commands)

    def _number(self, port: Port, before: PlacedPort | None) -> int:
        if not port.settings.up and not port.settings.down:
            return 0
        if before and before.number:
            return before.number
        taken = {placed.number for placed in self._files.all().values()}
        number = next((n for n in range(meter.FIRST, meter.LAST) if n not in taken), 0)
        if not number:
            raise Exhausted(f"too many ports of network {self._record.name} have limits", field="nics")
        return number

    async def _limit(self, placed: PlacedPort, before: PlacedPort | None) -> None:
        """Nothing is done where nothing is limited, nor where it is so already."""
        if before and before.number and await self._same(placed, before):
            return
        if before and before.number:
            await self._unlimit(before, tap=before.link)
        if not placed.number:
            return
        settings = placed.port.settings
        if not settings.guard:
            raise Invalid("the bandwidth of an unguarded port cannot be limited", hint="guard=on", field="nics")
        queues, lines = [], []
        for way, wanted in (("u", settings.up), ("d", settings.down)):
            if wanted:
                alias = naming.bridge_alias(self._record.id)
                await self._links.make_ifb(self._meters[way], alias=alias)
                queues += meter.queue_lines(self._meters[way], placed.link)
                lines += [
                    *meter.device_lines(self._meters[way], self._record.bandwidth),
                    *meter.port_lines(
                        self._meters[way], placed.link, way, placed.number, placed.port.mac, wanted,
                        self._record.bandwidth,
                    ),
                ]  # fmt: skip
        await tc.batch(queues, forgiving=True)
        await tc.batch(lines)

    async def _same(self, placed: PlacedPort, before: PlacedPort) -> bool:
        """Whether its limits are what they were, and in force."""
        now, then = placed.port.settings, before.port.settings
        if (now.up, now.down, placed.port.mac) != (then.up, then.down, before.port.mac):
            return False
        ways = [way for way, wanted in (("u", now.up), ("d", now.down)) if wanted]
        return all([await tc.leads(placed.link, meter.WAYS[way], self._meters[way]) for way in ways])

    async def _unlimit(self, placed: PlacedPort, *, tap: str) -> None:
        lines = [
            line for way in self._meters for line in meter.remove_lines(self._meters[way], tap, way, placed.number)
        ]
        await tc.batch(lines, forgiving=True)


async def free_tap(links: Links, tag: str, network: NetworkId, port: PortId) -> str:
    """The name of the port's link: of the one it has, else of one that nobody has. Raises Exhausted."""
    alias = naming.port_alias(network, port)
    for attempt in range(naming.ATTEMPTS):
        name = naming.tap_name(tag, port, attempt)
        link = await links.get(name)
        if link is None or link.alias in ("", alias):
            return name
    raise Exhausted(f"every link name of port {port} is taken", hint=f"ip link show group {links.group}")
