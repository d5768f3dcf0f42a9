"""The typed client: one object, a noun each."""

from types import TracebackType
from typing import Self

from atoll.client.endpoint import Endpoint
from atoll.client.events import Events
from atoll.client.instances import Instances
from atoll.client.networks import Groups, Networks, Nics
from atoll.client.operations import Operations
from atoll.client.parcels import Parcels
from atoll.client.resources import Hosts, Images, Tokens
from atoll.client.storage import Pools, Volumes
from atoll.client.transport import Transport, path_of
from atoll.client.wire import Greeting, Health
from atoll.operation.model import Operation


class Client:
    """`async with Client(Endpoint(socket=path)) as client: await client.instances.list()`.

    Every method raises the AtollError that the daemon names, NotRunning where nobody listens, Unreachable where no
    answer came in time, Broken where the answer makes no sense.
    """

    def __init__(self, endpoint: Endpoint, *, project: str = "default", transport: Transport | None = None) -> None:
        self._transport = transport or Transport(endpoint)
        self.endpoint, self.project = endpoint, project
        self.events = Events(self._transport)
        self.operations = Operations(self._transport)
        self.instances = Instances(self._transport, project)
        self.parcels = Parcels(self._transport, project)
        self.images = Images(self._transport, project)
        self.networks = Networks(self._transport, project)
        self.groups = Groups(self._transport, project)
        self.nics = Nics(self._transport, project)
        self.pools = Pools(self._transport, project)
        self.volumes = Volumes(self._transport, project)
        self.hosts = Hosts(self._transport)
        self.tokens = Tokens(self._transport)

    def within(self, project: str) -> "Client":
        """The same connections, another project. Only the first needs closing."""
        return Client(self.endpoint, project=project, transport=self._transport)

    async def health(self) -> Health:
        """Answers without a token."""
        return await self._transport.request("GET", path_of("health"), Health, timeout=5)

    async def greeting(self) -> Greeting:
        """Version, host id and links."""
        return await self._transport.request("GET", "/v1", Greeting)

    async def openapi(self) -> bytes:
        return await self._transport.request("GET", path_of("openapi.json"), bytes)

    async def history(self, *, kind: str = "", name: str = "", limit: int = 100) -> list[Operation]:
        """What was done in the project, the latest first: the audit."""
        query = {"kind": kind or None, "name": name or None, "limit": limit}
        path = path_of("projects", self.project, "history")
        return await self._transport.request("GET", path, list[Operation], query=query)

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.close()
