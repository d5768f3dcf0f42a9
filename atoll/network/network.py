"""The contract of a network driver. tests/contract/test_network.py checks it."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from atoll.base.ids import PortId
from atoll.network.groups import GroupPlan
from atoll.network.model import NetworkTraits, Plugged, Port


class NetworkDriver(Protocol):
    """Realises one network on this host. Every act may be repeated; taking back an absent thing succeeds."""

    name: str
    traits: NetworkTraits

    async def up(self) -> None:
        """Make it carry traffic: links, addresses, NAT, DHCP and names. Raises Lacking, Broken, Exhausted."""

    async def down(self) -> None:
        """Remove everything `up` and `plug` made."""

    async def plug(self, port: Port, *, owner: int | None = None) -> Plugged:
        """Make the port ready for an engine to open; `owner`: the uid that will open it (None: our own)."""

    async def unplug(self, port: PortId) -> None: ...

    async def ports(self) -> Mapping[PortId, Plugged]:
        """What is there by looking, whatever the records say."""


@runtime_checkable
class Filters(Protocol):
    """A network that holds ports to their security groups."""

    async def set_groups(self, plans: Sequence[GroupPlan]) -> None:
        """These groups are in force as they are now, in one step; others stay. A port in a group that was never
        set gets and sends nothing new: call this before `plug`."""


@runtime_checkable
class Warns(Protocol):
    async def warnings(self) -> list[str]:
        """What of this host keeps the network from working wholly, and what to do about it, for people."""
