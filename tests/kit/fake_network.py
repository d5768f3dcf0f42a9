"""A network that works in memory and passes the contract suite: what is plugged lives in `host`, which several
driver objects may share, as several daemons one after the other share a host."""

from collections.abc import Mapping, Sequence

from atoll.base.errors import Broken
from atoll.base.ids import NetworkId, PortId
from atoll.network.groups import GroupPlan
from atoll.network.model import Network, NetworkTraits, Plugged, Port
from tests.kit.faults import Faults

FakeHost = dict[NetworkId, dict[PortId, Plugged]]
"""The networks that are up, and their ports."""


class FakeNetwork(Faults):
    name = "fake"
    traits = NetworkTraits(
        serves_dhcp=True, plans_addresses=True, resolves_names=True, forwards="live", filters=True
    )

    def __init__(self, record: Network, *, host: FakeHost | None = None) -> None:
        super().__init__()
        self._record = record
        self.groups: dict[str, GroupPlan] = {}
        self.host: FakeHost = {} if host is None else host

    async def up(self) -> None:
        self.maybe("up")
        self.host.setdefault(self._record.id, {})

    async def down(self) -> None:
        self.maybe("down")
        self.host.pop(self._record.id, None)

    async def plug(self, port: Port, *, owner: int | None = None) -> Plugged:
        self.maybe("plug")
        if self._record.id not in self.host:
            raise Broken(f"network {self._record.name} is not up")
        plugged = Plugged("tap", link=f"fake{port.id[:8]}", mtu=self._record.mtu)
        return self.host[self._record.id].setdefault(port.id, plugged)

    async def unplug(self, port: PortId) -> None:
        self.maybe("unplug")
        self.host.get(self._record.id, {}).pop(port, None)

    async def set_groups(self, plans: Sequence[GroupPlan]) -> None:
        self.maybe("set_groups")
        self.groups.update({plan.id: plan for plan in plans})

    async def ports(self) -> Mapping[PortId, Plugged]:
        self.maybe("ports")
        return dict(self.host.get(self._record.id, {}))
