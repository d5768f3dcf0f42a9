"""Pools and volumes of one project."""

from atoll.base.ids import Bytes
from atoll.client.transport import Query, Transport, path_of
from atoll.client.wire import (
    AttachBody,
    DetachBody,
    GrowBody,
    PoolBody,
    PoolView,
    RenameBody,
    VolumeBody,
    VolumeView,
)
from atoll.operation.model import Operation
from atoll.storage.model import Bus, Cache, DiskFormat

Views = list[VolumeView]


class Pools:
    def __init__(self, transport: Transport, project: str) -> None:
        self._transport, self._project = transport, project

    def _path(self, *rest: str) -> str:
        return path_of("projects", self._project, "pools", *rest)

    async def list(self) -> list[PoolView]:
        return await self._transport.request("GET", self._path(), list[PoolView])

    async def get(self, name: str) -> PoolView:
        return await self._transport.request("GET", self._path(name), PoolView)

    async def create(self, name: str, *, driver: str, path: str, description: str = "") -> Operation:
        """`path`: a directory of the daemon's host."""
        body = PoolBody(name=name, driver=driver, path=path, description=description)
        return await self._transport.change("POST", self._path(), Operation, body=body)

    async def delete(self, name: str, *, force: bool = False) -> Operation:
        """`force`: also where the host cannot reach it."""
        query: Query = {"force": force} if force else {}
        return await self._transport.change("DELETE", self._path(name), Operation, query=query)


class Volumes:
    """Every change returns its Operation at once; `client.operations.wait` waits for it."""

    def __init__(self, transport: Transport, project: str) -> None:
        self._transport, self._project = transport, project

    def _path(self, *rest: str) -> str:
        return path_of("projects", self._project, "volumes", *rest)

    async def list(self) -> Views:
        """Every volume of the project, in whichever pool."""
        return await self._transport.request("GET", self._path(), Views)

    async def get(self, name: str) -> VolumeView:
        """By name or id."""
        return await self._transport.request("GET", self._path(name), VolumeView)

    async def create(
        self, name: str, size: Bytes, *, pool: str = "default", format: DiskFormat = "thin"
    ) -> Operation:
        body = VolumeBody(name=name, size=size, pool=pool, format=format)
        return await self._transport.change("POST", self._path(), Operation, body=body)

    async def delete(self, name: str) -> Operation:
        return await self._transport.change("DELETE", self._path(name), Operation)

    async def attach(
        self, name: str, instance: str, *, bus: Bus = "virtio", cache: Cache = "writeback"
    ) -> Operation:
        body = AttachBody(instance=instance, bus=bus, cache=cache)
        return await self._transport.change("POST", self._path(name, "attach"), Operation, body=body)

    async def detach(self, name: str, *, force: bool = False) -> Operation:
        """`force`: also while the guest has it mounted."""
        body = DetachBody(force=force)
        return await self._transport.change("POST", self._path(name, "detach"), Operation, body=body)

    async def grow(self, name: str, size: Bytes) -> Operation:
        """To `size` bytes."""
        return await self._transport.change("POST", self._path(name, "grow"), Operation, body=GrowBody(size=size))

    async def rename(self, name: str, to: str) -> Operation:
        return await self._transport.change("POST", self._path(name, "rename"), Operation, body=RenameBody(to=to))
