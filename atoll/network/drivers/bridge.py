"""A Linux bridge on this host, with NAT to everywhere else, and DHCP and names by dnsmasq.

Guests of one network share its link; those of different networks reach each other by nothing. IPv6 is there
when the kernel has it: a unique local prefix announced by router advertisements, in which each guest makes
the address that its MAC implies (EUI-64), which is the planned one.
"""

from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path

from atoll.base.errors import Exhausted
from atoll.base.ids import PortId
from atoll.host import nft, sysctl
from atoll.host.links import Link, Links, names
from atoll.network import naming
from atoll.network.addresses import fixed_mac
from atoll.network.dnsmasq import Dnsmasq
from atoll.network.model import Network, NetworkTraits, Plugged, Port
from atoll.network.rules import FAMILY, nat_rules


class BridgeNetwork:
    """`tag` and `index` make its names; `directory` (made and removed here, and by nobody else) holds its
    runtime files: dnsmasq, unprivileged, must be able to reach it. `host_ports`: TCP and UDP ports of the
    host that guests may reach at the network's own addresses.
    """

    name = "bridge"
    traits = NetworkTraits(serves_dhcp=True, plans_addresses=True, resolves_names=True)

    def __init__(
        self, record: Network, *, tag: str, index: int, directory: Path, host_ports: Sequence[int] = ()
    ) -> None:
        self._record = record
        self._tag = tag
        self._bridge = naming.bridge_name(tag, index)
        self._table = naming.table_name(tag, index)
        self._links = Links(naming.link_group(tag))
        self._ipv6 = sysctl.has_ipv6() and any(":" in subnet for subnet in record.subnets)
        self._dnsmasq = Dnsmasq(record, link=self._bridge, directory=directory, ipv6=self._ipv6)
        self._rules, self._marks = nat_rules(self._table, self._bridge, record.subnets, record.gateways, host_ports)

    async def up(self) -> None:
        """Also mends whatever of it is missing or changed."""
        made = await self._links.make_bridge(
            self._bridge,
            # Fixed, or it would be the lowest of the ports' and change under the guests' ARP caches.
            mac=fixed_mac(self._record.id),
            mtu=self._record.mtu,
            alias=naming.bridge_alias(self._record.id),
            addresses=self._addresses(),
        )
        self._set_kernel()
        present = await nft.comments(FAMILY, self._table)
        if present != self._marks:
            set_table = nft.replace_table if present else nft.fill_table
            await set_table(FAMILY, self._table, self._rules)
        if made:
            await self._reattach()
        await self._dnsmasq.ensure(afresh=made)

    async def down(self) -> None:
        await self._dnsmasq.stop()
        await self._links.delete([*(tap.name for tap in await self._taps()), self._bridge])
        await nft.delete_table(FAMILY, self._table)

    async def plug(self, port: Port, *, owner: int | None = None) -> Plugged:
        """Entries first: they are found and removed by the port's id, whatever became of its link."""
        self._dnsmasq.add(port)
        name = await self._tap(port.id)
        mtu, alias = self._record.mtu, naming.port_alias(self._record.id, port.id)
        await self._links.make_tap(name, bridge=self._bridge, owner=owner, mtu=mtu, alias=alias)
        if sysctl.has_ipv6():
            # The host itself has nothing to say on a guest's wire.
            sysctl.write(f"ipv6/conf/{name}/disable_ipv6", "1")
        return Plugged("tap", link=name, mtu=mtu)

    async def unplug(self, port: PortId) -> None:
        alias = naming.port_alias(self._record.id, port)
        for attempt in range(naming.ATTEMPTS):
            name = naming.tap_name(self._tag, port, attempt)
            link = await self._links.get(name)
            # Without an alias its making was interrupted.
            if link and link.alias in ("", alias):
                await self._links.delete([name])
        self._dnsmasq.remove(port)

    async def ports(self) -> Mapping[PortId, Plugged]:
        found = {}
        for link in await self._links.attached(self._bridge):
            if port := naming.port_of(link.alias, self._record.id):
                found[port] = Plugged("tap", link=link.name, mtu=link.mtu)
        return found

    async def warnings(self) -> list[str]:
        """What of this host keeps the network from working wholly, for people."""
        return [
            f"the packet filter chain {chain!r} drops what is forwarded: allow {self._bridge} there"
            for chain in await nft.forward_drops()
        ]

    async def _tap(self, port: PortId) -> str:
        alias = naming.port_alias(self._record.id, port)
        for attempt in range(naming.ATTEMPTS):
            name = naming.tap_name(self._tag, port, attempt)
            link = await self._links.get(name)
            if link is None or link.alias in ("", alias):
                return name
        raise Exhausted(f"every link name of port {port} is taken", hint=f"ip link show group {self._links.group}")

    async def _reattach(self) -> None:
        """Taps outlive a bridge that somebody deleted; their guests come back with it."""
        for tap in await self._taps():
            await self._links.attach(tap.name, self._bridge)

    async def _taps(self) -> list[Link]:
        """Also those that are on no bridge."""
        if not any(naming.is_tap(self._tag, name) for name in names()):
            return []
        return [link for link in await self._links.ours() if naming.port_of(link.alias, self._record.id)]

    def _addresses(self) -> list[str]:
        pairs = zip(self._record.gateways, self._record.subnets, strict=True)
        found = [f"{gateway}/{ip_network(subnet).prefixlen}" for gateway, subnet in pairs]
        return [address for address in found if self._ipv6 or ":" not in address]

    def _set_kernel(self) -> None:
        sysctl.forward_ipv4()
        if sysctl.has_ipv6():
            # A guest may advertise itself as a router: the host must not believe it.
            sysctl.write(f"ipv6/conf/{self._bridge}/accept_ra", "0")
        if self._ipv6:
            sysctl.forward_ipv6()
