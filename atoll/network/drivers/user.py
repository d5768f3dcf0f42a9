"""The engine's own user-mode networking (slirp): for an ordinary user, without any right or change of the host."""

from collections.abc import Mapping
from ipaddress import ip_network

from atoll.base.ids import PortId
from atoll.network.model import Network, NetworkTraits, Plugged, Port

SUBNET = "10.0.2.0/24"
ADDRESS = 15
"""Of the guest in its subnet, as QEMU's own default has it."""


class UserNetwork:
    """Each guest is alone behind a NAT in its engine's process: it reaches the outside (TCP, UDP), and other
    guests of the network cannot reach it nor know its name. They all may have the same address."""

    name = "user"
    traits = NetworkTraits(forwards="start")

    def __init__(self, record: Network) -> None:
        self._record = record

    async def up(self) -> None:
        """There is nothing to bring up."""

    async def down(self) -> None: ...

    async def plug(self, port: Port, *, owner: int | None = None) -> Plugged:  # noqa: ARG002 - there is no link
        subnet = next((net for net in self._record.subnets if ":" not in net), SUBNET)
        planned = next((address for address in port.addresses if ":" not in address), None)
        address = planned or str(ip_network(subnet)[ADDRESS])
        return Plugged("user", subnet=subnet, address=address, forwards=port.settings.forwards)

    async def unplug(self, port: PortId) -> None: ...

    async def ports(self) -> Mapping[PortId, Plugged]:
        """None: a port is in its engine's process, and nothing of it on the host."""
        return {}

    async def warnings(self) -> list[str]:
        return [
            "an ordinary user's guests do not reach each other, and only forwards reach them: a daemon that runs "
            "as root gives them a bridge"
        ]
