"""Whole instances that leave and come."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from atoll.base.ids import new_uuid
from atoll.client.transport import Query, Transport, decode, path_of
from atoll.client.wire import ExportBody
from atoll.instance.verbs.args import Fitting
from atoll.operation.model import Operation

DAY = 86400.0


class Parcels:
    def __init__(self, transport: Transport, project: str) -> None:
        self._transport, self._project = transport, project

    async def export(self, name: str, *, compress: bool = False, volumes: bool = True) -> Operation:
        """It runs until somebody has fetched its file. Raises Refused where the instance runs."""
        path = path_of("projects", self._project, "instances", name, "export")
        body = ExportBody(compress=compress, volumes=volumes)
        return await self._transport.change("POST", path, Operation, body=body)

    @asynccontextmanager
    async def fetch(self, export: Operation) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """Length and bytes of an export's file, once all is copied. Raises what the export fails with, Cut where
        it ended early."""
        path = path_of("projects", self._project, "exports", export.id)
        async with self._transport.open("GET", path, timeout=DAY) as answer:
            yield answer.content_length or 0, answer.content.iter_any()

    async def send(self, chunks: AsyncIterator[bytes], how: Fitting, *, length: int | None = None) -> Operation:
        """Import an instance from the bytes of such a file; `length`: how many they are."""
        query: Query = {
            "name": how.name or None,
            "pool": how.pool or None,
            "network": how.network,
            "new_identity": how.new_identity,
            "groups": how.groups,
        }
        headers = {"Content-Type": "application/octet-stream", "Idempotency-Key": new_uuid()}
        if length is not None:
            headers["Content-Length"] = str(length)
        where = path_of("projects", self._project, "imports")
        async with self._transport.open(
            "POST", where, query=query, data=chunks, headers=headers, timeout=DAY
        ) as reply:
            raw = await reply.read()
        return decode(raw, Operation, f"POST {where}")
