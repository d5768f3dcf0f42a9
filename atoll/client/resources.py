"""Images, pools, volumes, hosts and tokens."""

from typing import Any

from atoll.client.transport import Transport, path_of
from atoll.client.wire import (
    BuildBody,
    HostView,
    NewToken,
    PoolView,
    RecipeView,
    RenameBody,
    Token,
    TokenBody,
)
from atoll.image.model import Image
from atoll.operation.model import Operation
from atoll.storage.model import Volume

Recipes = list[RecipeView]
Volumes = list[Volume]


class Images:
    def __init__(self, transport: Transport, project: str) -> None:
        self._transport, self._project = transport, project

    def _path(self, *rest: str) -> str:
        return path_of("projects", self._project, "images", *rest)

    async def list(self) -> list[Image]:
        return await self._transport.request("GET", self._path(), list[Image])

    async def get(self, name: str) -> Image:
        return await self._transport.request("GET", self._path(name), Image)

    async def recipes(self) -> Recipes:
        """Images that Atoll can build itself."""
        return await self._transport.request("GET", path_of("recipes"), Recipes)

    async def build(self, recipe: str, *, name: str = "") -> Operation:
        body = BuildBody(recipe=recipe, name=name or None)
        return await self._transport.change("POST", self._path(), Operation, body=body)

    async def delete(self, name: str) -> Operation:
        return await self._transport.change("DELETE", self._path(name), Operation)

    async def rename(self, name: str, to: str) -> Operation:
        return await self._transport.change("POST", self._path(name, "rename"), Operation, body=RenameBody(to=to))

    async def prune(self) -> Operation:
        """Remove what no name and no instance uses."""
        return await self._transport.change("DELETE", self._path(), Operation, query={"unused": True})


class Pools:
    def __init__(self, transport: Transport, project: str) -> None:
        self._transport, self._project = transport, project

    async def list(self) -> list[PoolView]:
        return await self._transport.request("GET", path_of("projects", self._project, "pools"), list[PoolView])

    async def get(self, name: str) -> PoolView:
        return await self._transport.request("GET", path_of("projects", self._project, "pools", name), PoolView)

    async def volumes(self) -> Volumes:
        """Every volume of the project, in whichever pool."""
        return await self._transport.request("GET", path_of("projects", self._project, "volumes"), Volumes)


class Hosts:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self) -> list[HostView]:
        return await self._transport.request("GET", path_of("hosts"), list[HostView])

    async def get(self, id: str) -> HostView:
        return await self._transport.request("GET", path_of("hosts", id), HostView)

    async def probe(self, id: str, *, refresh: bool = False) -> dict[str, Any]:
        """What the host can do, tried out. `refresh`: try again instead of answering from before (minutes)."""
        path = path_of("hosts", id, "probe")
        query = {"refresh": True} if refresh else {}
        return await self._transport.request("GET", path, dict[str, Any], query=query, timeout=300)


class Tokens:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self) -> list[Token]:
        return await self._transport.request("GET", path_of("tokens"), list[Token])

    async def create(self, name: str, *, days: int | None = None) -> NewToken:
        """The secret is in the answer and nowhere else: the daemon keeps its hash only."""
        body = TokenBody(name=name, days=days)
        return await self._transport.request("POST", path_of("tokens"), NewToken, body=body)

    async def revoke(self, name: str) -> None:
        await self._transport.request("DELETE", path_of("tokens", name), type(None))
