"""What the routes need from below, given by the composition root."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from atoll.api.tokens import TokenBook
from atoll.base.ids import HostId, NetworkId
from atoll.client.wire import RecipeView
from atoll.image.model import Image
from atoll.instance.admission import HostMemory
from atoll.instance.book import InstanceView
from atoll.instance.engine import Engine
from atoll.instance.model import Kind
from atoll.network.groups import Group
from atoll.network.model import Network, Port
from atoll.operation.events import Events
from atoll.operation.runner import Operations
from atoll.storage.model import Capacity, Pool, Volume


class Instances(Protocol):
    """The read side, from memory. What did not change is the same object in every answer."""

    async def list(self, project: str | None) -> Sequence[InstanceView]:
        """By project and name; of all projects where None."""

    async def get(self, project: str, name: str) -> InstanceView:
        """Raises Absent."""


class Images(Protocol):
    async def list(self, project: str) -> Sequence[Image]: ...
    async def get(self, project: str, name: str) -> Image:
        """Raises Absent."""


class Networks(Protocol):
    async def list(self, project: str) -> Sequence[Network]: ...
    async def get(self, project: str, name: str) -> Network:
        """Raises Absent."""

    async def ports(self, network: NetworkId) -> Sequence[Port]: ...
    async def warnings(self, network: Network) -> Sequence[str]:
        """What of this host keeps it from working wholly, for people."""


class Groups(Protocol):
    async def list(self, project: str) -> Sequence[Group]: ...
    async def get(self, project: str, name: str) -> Group:
        """Raises Absent."""

    async def users(self, group: Group) -> Sequence[str]:
        """Names of the instances in it."""


class Pools(Protocol):
    async def list(self, project: str) -> Sequence[Pool]: ...
    async def get(self, project: str, name: str) -> Pool:
        """Raises Absent."""

    async def volumes(self, project: str) -> Sequence[Volume]: ...
    async def capacity(self, pool: Pool) -> Capacity:
        """As this host sees it now. Raises Lacking, Broken, Unreachable."""


class Host(Protocol):
    async def facts(self) -> msgspec.Struct:
        """What is found without trying anything out: quick."""

    async def probe(self, *, refresh: bool) -> msgspec.Struct:
        """What was found by trying: from before unless `refresh`; the first time it may take a minute."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """`file`: bytes of one pushed into a guest. `heartbeat`: seconds between signs of life on a silent stream."""

    file: int = 64 << 30
    heartbeat: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """`ready`: whether records are read and guests found. `recipes`: images that this Atoll can build."""

    version: str
    host_id: HostId
    operations: Operations
    events: Events
    instances: Instances
    engines: Mapping[Kind, Engine]
    images: Images
    networks: Networks
    groups: Groups
    pools: Pools
    tokens: TokenBook
    host: Host
    memory: Callable[[], HostMemory]
    ready: Callable[[], bool] = lambda: True
    recipes: Sequence[RecipeView] = ()
    limits: Limits = field(default_factory=Limits)
