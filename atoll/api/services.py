"""What the routes need from below, given by the composition root."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from atoll.api.tokens import TokenBook
from atoll.base.ids import HostId, NetworkId
from atoll.client.wire import RecipeView
from atoll.image.model import File, Image
from atoll.image.staging import Upload
from atoll.instance.admission import HostMemory
from atoll.instance.book import InstanceView
from atoll.instance.dock import Received
from atoll.instance.engine import Engine, Stream
from atoll.instance.model import CloudInit, Kind
from atoll.instance.outbox import Sending
from atoll.instance.verbs.args import Fitting
from atoll.network.groups import Group
from atoll.network.model import Network, Port
from atoll.operation.events import Events
from atoll.operation.runner import Operations
from atoll.storage.book import VolumeView
from atoll.storage.model import Pool, Usage, Volume, VolumeAttachment
from atoll.storage.registry import Health


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

    async def receive(self, chunks: AsyncIterator[bytes], length: int | None) -> Upload:
        """Take in a file that a client sends. Raises Invalid, Exhausted, Broken; then nothing of it is left."""

    async def check_free(self, project: str, name: str, *, replace: bool) -> None:
        """Raises Invalid, Exists."""

    def drop(self, upload: Upload) -> None:
        """Absent is success."""

    async def content(self, project: str, ref: str, role: str = "") -> tuple[File, AsyncIterator[bytes]]:
        """A file of an image ("": its disk or disc) and its bytes. Raises Absent."""


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

    async def all(self) -> Sequence[Pool]:
        """Of every project."""

    async def health(self, pool: Pool) -> Health:
        """As this host sees it now."""

    def filled(self, health: Health) -> int:
        """The highest threshold that its use has passed, percent; 0: none."""

    async def place(self, pool: Pool) -> Path:
        """Its directory on this host."""

    async def volumes(self, project: str) -> Sequence[Volume]: ...
    async def all_volumes(self) -> Sequence[Volume]: ...
    async def volume(self, project: str, ref: str) -> VolumeView:
        """By name or id. Raises Absent."""

    async def attachments(self) -> Mapping[str, VolumeAttachment]:
        """By volume: who has it."""

    async def usage(self, volume: Volume) -> Usage | None:
        """None: it cannot be told now."""


class Host(Protocol):
    async def facts(self) -> msgspec.Struct:
        """What is found without trying anything out: quick."""

    async def probe(self, *, refresh: bool) -> msgspec.Struct:
        """What was found by trying: from before unless `refresh`; the first time it may take a minute."""


class Seeds(Protocol):
    async def put(self, project: str, given: CloudInit) -> str:
        """Keep what was given for cloud-init; its id. Raises Invalid, Exhausted."""

    async def forget(self, id: str) -> None:
        """Absent is success."""


class Parcels(Protocol):
    async def receive(self, project: str, chunks: AsyncIterator[bytes], how: Fitting) -> Received:
        """Take in an instance that a client sends. Raises Invalid, Exhausted, Exists, Absent; then nothing of it
        is left."""

    def drop(self, received: Received) -> None:
        """Absent is success."""

    async def fetch(self, project: str, id: str) -> Sending:
        """The file of a running export, once it is there. Raises Absent, Refused, and what the export fails
        with."""


class Shell(Stream, Protocol):
    def resize(self, columns: int, rows: int) -> None:
        """Its terminal has that size now."""


class Shells(Protocol):
    async def open(self, view: InstanceView, *, user: str, columns: int, rows: int) -> Shell:
        """Log in over the network. Raises Refused (there is no way in), Unreachable, Lacking."""


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
    seeds: Seeds
    shells: Shells
    parcels: Parcels
    ready: Callable[[], bool] = lambda: True
    recipes: Sequence[RecipeView] = ()
    limits: Limits = field(default_factory=Limits)
