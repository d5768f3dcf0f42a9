"""Guests on a wire that the host has: taps on a bridge of somebody else's, or macvtaps on a link that is no bridge.

Whoever is on that wire serves DHCP and routes; nothing of the bridge itself is changed but its list of ports. With
macvtaps guests and the host do not reach each other, which is how macvlan works.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from atoll.base.errors import Absent, Lacking, Refused
from atoll.base.ids import PortId
from atoll.host import nft, sysctl
from atoll.host.links import Link, Links
from atoll.network import filter, naming
from atoll.network.drivers.taps import Taps, free_tap
from atoll.network.foreign import bridge_firewalls
from atoll.network.groups import GroupPlan
from atoll.network.model import Network, NetworkTraits, Plugged, Port

_BACKENDS = {"tun": "tap", "veth": "veth", "macvtap": "macvtap"}


class UplinkNetwork:
    """`record.uplink` names the host's link."""

    name = "uplink"
    traits = NetworkTraits(filters=True)

    def __init__(self, record: Network, *, tag: str, index: int, directory: Path) -> None:
        self._record, self._tag, self._index = record, tag, index
        self._links = Links(naming.link_group(tag))
        self._taps = Taps(
            record, self._links, tag=tag, index=index, bridge=record.uplink, directory=directory, pinned=False
        )

    async def up(self) -> None:
        """Raises Absent where the host has no such link (any more)."""
        if (await self._uplink()).kind == "bridge":
            await self._taps.up()

    async def down(self) -> None:
        await self._links.delete([link.name for link in await self._macvtaps()])
        await self._taps.down()
        await nft.delete_table(filter.FAMILY, name=naming.table_name(self._tag, self._index))

    async def plug(self, port: Port, *, owner: int | None = None) -> Plugged:
        uplink = await self._uplink()
        if uplink.kind == "bridge":
            return await self._taps.plug(port, owner=owner)
        if port.settings.groups or port.settings.up or port.settings.down:
            raise Lacking(
                f"{uplink.name} is no bridge: groups and limits need one",
                hint=f"ip link add br0 type bridge; ip link set {uplink.name} master br0; then --uplink br0",
                field="nics",
            )
        if port.end != "tap":
            raise Lacking(
                f"{uplink.name} is no bridge: a container needs one",
                hint=f"ip link add br0 type bridge; ip link set {uplink.name} master br0; then --uplink br0",
                field="nics",
            )
        name = await free_tap(self._links, self._tag, self._record.id, port.id)
        alias = naming.port_alias(self._record.id, port.id)
        await self._links.make_macvtap(name, parent=uplink.name, mac=port.mac, mtu=self._record.mtu, alias=alias)
        if sysctl.has_ipv6():
            sysctl.write(f"ipv6/conf/{name}/disable_ipv6", "1")
        return Plugged("macvtap", link=name, mtu=self._record.mtu)

    async def unplug(self, port: PortId) -> None:
        alias = naming.port_alias(self._record.id, port)
        await self._links.delete([link.name for link in await self._macvtaps() if link.alias == alias])
        await self._taps.unplug(port)

    async def ports(self) -> Mapping[PortId, Plugged]:
        found = {}
        for link in await self._links.ours():
            port = naming.port_of(link.alias, self._record.id)
            if port and link.kind in _BACKENDS:
                found[port] = Plugged(_BACKENDS[link.kind], link=link.name, mtu=link.mtu)
        return found

    async def set_groups(self, plans: Sequence[GroupPlan]) -> None:
        if (await self._uplink()).kind == "bridge":
            await self._taps.set_groups(plans)

    async def warnings(self) -> list[str]:
        link = await self._links.get(self._record.uplink)
        if link is None:
            return [f"this host has no link {self._record.uplink} now: guests cannot start"]
        found = await bridge_firewalls() if link.kind == "bridge" else []
        if link.kind != "bridge":
            found.append(
                f"{link.name} is no bridge: guests are not guarded, and this host and they do not reach each other"
            )
        return found if link.up else [*found, f"{link.name} is down: ip link set {link.name} up"]

    async def _uplink(self) -> Link:
        found = await self._links.get(self._record.uplink)
        if found is None:
            raise Absent(f"this host has no link {self._record.uplink}", hint="ip link show", field="uplink")
        if self._record.mtu > found.mtu:
            raise Refused(
                f"{found.name} moves frames of {found.mtu} bytes, {self._record.name} wants {self._record.mtu}",
                hint=f"ip link set {found.name} mtu {self._record.mtu}",
                field="mtu",
            )
        return found

    async def _macvtaps(self) -> list[Link]:
        ours = [link for link in await self._links.ours() if link.kind == "macvtap"]
        return [link for link in ours if naming.port_of(link.alias, self._record.id)]
