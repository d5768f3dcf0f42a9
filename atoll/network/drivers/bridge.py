"""A Linux bridge of our own on this host, with DHCP and names by dnsmasq, and what its network's mode lets pass.

Guests of one network share its link. IPv6 is there when the kernel has it: a prefix announced by router
advertisements, in which each guest makes the address that its MAC implies (EUI-64), which is the planned one.
"""

from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path

from atoll.base.ids import PortId
from atoll.host import nft, sysctl
from atoll.host.links import Links
from atoll.network import filter, naming
from atoll.network.addresses import fixed_mac
from atoll.network.dnsmasq import Dnsmasq
from atoll.network.drivers.taps import Taps
from atoll.network.foreign import bridge_firewalls, foreign_firewalls
from atoll.network.groups import GroupPlan
from atoll.network.model import Mode, Network, NetworkTraits, Plugged, Port
from atoll.network.proxy import Proxies
from atoll.network.rules import FAMILY, FORWARDS, forward_rules, host_rules


class BridgeNetwork:
    """`tag` and `index` make its names; `directory` (made and removed here, and by nobody else) holds its
    runtime files: dnsmasq, unprivileged, must be able to reach it. `host_ports`: TCP and UDP ports of the
    host that guests may reach at the network's own addresses.
    """

    name = "bridge"
    traits = NetworkTraits(
        serves_dhcp=True, plans_addresses=True, resolves_names=True, forwards="live", filters=True
    )

    def __init__(
        self,
        record: Network,
        *,
        tag: str,
        index: int,
        directory: Path,
        host_ports: Sequence[int] = (),
        proxies: Proxies | None = None,
    ) -> None:
        self._record = record
        self._bridge = naming.bridge_name(tag, index)
        self._table = naming.table_name(tag, index)
        self._links = Links(naming.link_group(tag))
        self._proxies = proxies or Proxies()
        self._ipv6 = sysctl.has_ipv6() and any(":" in subnet for subnet in record.subnets)
        self._dnsmasq = Dnsmasq(record, link=self._bridge, directory=directory, ipv6=self._ipv6)
        self._taps = Taps(
            record, self._links, tag=tag, index=index, bridge=self._bridge, directory=directory, pinned=True
        )
        self._rules, self._marks = host_rules(
            self._table, self._bridge, record.subnets, record.gateways, host_ports, mode=record.mode
        )

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
        present, commands = await nft.comments(FAMILY, self._table), list[nft.Command]()
        if [comment for comment in present if comment.startswith("atoll ")] != self._marks:
            ports = [] if self._record.mode is Mode.ISOLATED else self._taps.placed()
            contents = [*self._rules, *forward_rules(self._table, ports)[0]]
            commands = nft.made_anew(FAMILY, self._table, contents, absent=not present)
        if commands := commands + await self._taps.lacking():
            await nft.apply(commands)
        if made:
            await self._taps.reattach()
        await self._dnsmasq.ensure(afresh=made)

    async def down(self) -> None:
        for port in self._taps.placed():
            await self._proxies.set(port.id, (), "")
        await self._taps.down()
        await self._dnsmasq.stop()
        await self._links.delete([self._bridge])
        await nft.delete_table(FAMILY, filter.FAMILY, name=self._table)

    async def plug(self, port: Port, *, owner: int | None = None) -> Plugged:
        """Entries first: they are found and removed by the port's id, whatever became of its link."""
        self._dnsmasq.add(port)
        plugged = await self._taps.plug(port, owner=owner)
        four = next((address for address in port.addresses if ":" not in address), "")
        # A taken port of the host is found out by the proxy, before packets are led away from whoever has it.
        await self._proxies.set(port.id, port.settings.forwards if four else (), four)
        await self._set_forwards()
        return plugged

    async def unplug(self, port: PortId) -> None:
        await self._proxies.set(port, (), "")
        await self._taps.unplug(port)
        await self._set_forwards()
        self._dnsmasq.remove(port)

    async def ports(self) -> Mapping[PortId, Plugged]:
        return await self._taps.ports()

    async def set_groups(self, plans: Sequence[GroupPlan]) -> None:
        await self._taps.set_groups(plans)

    async def warnings(self) -> list[str]:
        """What of this host keeps the network from working wholly, for people."""
        if self._record.mode is Mode.ISOLATED:
            return await bridge_firewalls()
        return await foreign_firewalls(self._bridge)

    async def _set_forwards(self) -> None:
        if self._record.mode is Mode.ISOLATED:
            return
        wanted, comments = forward_rules(self._table, self._taps.placed())
        present = [c for c in await nft.comments(FAMILY, self._table) if c.startswith("forward ")]
        if present != comments:
            chain = {"family": FAMILY, "table": self._table, "name": FORWARDS}
            await nft.apply([{"flush": {"chain": chain}}, *wanted])

    def _addresses(self) -> list[str]:
        pairs = zip(self._record.gateways, self._record.subnets, strict=True)
        found = [f"{gateway}/{ip_network(subnet).prefixlen}" for gateway, subnet in pairs]
        return [address for address in found if self._ipv6 or ":" not in address]

    def _set_kernel(self) -> None:
        if self._record.mode is not Mode.ISOLATED:
            sysctl.forward_ipv4()
        if sysctl.has_ipv6():
            # A guest may advertise itself as a router: the host must not believe it.
            sysctl.write(f"ipv6/conf/{self._bridge}/accept_ra", "0")
        if self._ipv6 and self._record.mode is not Mode.ISOLATED:
            sysctl.forward_ipv6()
