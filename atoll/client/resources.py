"""Images, hosts and tokens."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from atoll.base.ids import new_uuid
from atoll.client.transport import Transport, decode, path_of
from atoll.client.wire import (
    BuildBody,
    HostView,
    ImportBody,
    NewToken,
    RecipeView,
    RenameBody,
    Token,
    TokenBody,
)
from atoll.image.model import Image
from atoll.operation.model import Operation

DAY = 86400.0
Recipes = list[RecipeView]


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

    async def fetch(self, name: str, body: ImportBody) -> Operation:
        """Import an image from a URL, which the daemon fetches."""
        return await self._transport.change("POST", self._path(name, "import"), Operation, body=body)

    async def send(
        self,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        length: int | None = None,
        sha256: str = "",
        format: str = "",
        arch: str = "",
        agent: bool = False,
        replace: bool = False,
    ) -> Operation:
        """Import an image whose bytes are sent; `length`: how many they are."""
        query: dict[str, str | bool | None] = {
            "sha256": sha256 or None, "format": format or None, "arch": arch or None,
            "agent": agent, "replace": replace,
        }  # fmt: skip
        headers = {"Content-Type": "application/octet-stream", "Idempotency-Key": new_uuid()}
        if length is not None:
            headers["Content-Length"] = str(length)
        where = self._path(name, "content")
        async with self._transport.open(
            "PUT", where, query=query, data=chunks, headers=headers, timeout=DAY
        ) as reply:
            raw = await reply.read()
        return decode(raw, Operation, f"PUT {where}")

    @asynccontextmanager
    async def content(self, name: str, *, role: str = "") -> AsyncIterator[tuple[int, str, AsyncIterator[bytes]]]:
        """Length, digest and bytes of a file of an image, "" for its disk or disc. Raises Cut: it ended early."""
        query = {"role": role or None}
        async with self._transport.open("GET", self._path(name, "content"), query=query) as answer:
            digest = answer.headers.get("ETag", "").strip('"')
            yield answer.content_length or 0, digest, answer.content.iter_any()

    async def prune(self) -> Operation:
        """Remove what no name and no instance uses."""
        return await self._transport.change("DELETE", self._path(), Operation, query={"unused": True})


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
