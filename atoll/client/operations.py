"""Operations: look, wait with progress, cancel."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import msgspec

from atoll.base import clock
from atoll.base.errors import BY_CODE, AtollError, Bug, Unreachable
from atoll.client.events import Events
from atoll.client.transport import Transport, path_of, pause
from atoll.client.wire import MAX_WAIT
from atoll.operation.model import Operation, OperationStatus, Progress

OnProgress = Callable[[Progress], None]
PATIENCE = 30.0
"""Seconds a daemon may be away (restarted, upgraded) while we wait for its operation."""


class Operations:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(
        self,
        *,
        status: OperationStatus | None = None,
        project: str | None = None,
        limit: int = 100,
        after: str = "",
    ) -> list[Operation]:
        """The latest first; `after`: the id of the last one of the former page."""
        query = {"status": status, "project": project, "limit": limit, "after": after or None}
        return await self._transport.request("GET", path_of("operations"), list[Operation], query=query)

    async def get(self, id: str, *, wait: float = 0.0) -> Operation:
        """As it stands, or once it ended within `wait` seconds (60 at most)."""
        query = {"wait": min(wait, MAX_WAIT)} if wait else {}
        path = path_of("operations", id)
        return await self._transport.request("GET", path, Operation, query=query, timeout=wait + 15)

    async def cancel(self, id: str) -> Operation:
        """Raises Refused where it can only be finished by now."""
        return await self._transport.change("POST", path_of("operations", id, "cancel"), Operation)

    async def wait(
        self,
        operation: Operation,
        on_progress: OnProgress | None = None,
        *,
        timeout: float | None = None,
    ) -> Operation:
        """The operation once it is done; raises the error that it ended with, or Unreachable at the deadline.

        A daemon that is restarted meanwhile is waited for.
        """
        if operation.status is OperationStatus.RUNNING:
            follow = asyncio.create_task(self._follow(operation.id, on_progress)) if on_progress else None
            try:
                operation = await self._ended(operation, timeout)
            finally:
                if follow is not None:
                    follow.cancel()
                    await asyncio.gather(follow, return_exceptions=True)
        if operation.problem is not None:
            raise as_error(operation)
        return operation

    async def _ended(self, operation: Operation, timeout: float | None) -> Operation:
        deadline = clock.monotonic() + timeout if timeout is not None else None
        away, attempt = clock.monotonic(), 0
        while operation.status is OperationStatus.RUNNING:
            left = MAX_WAIT if deadline is None else deadline - clock.monotonic()
            if left <= 0:
                raise Unreachable(f"{operation.verb} still runs", hint=f"atoll operation wait {operation.id}")
            try:
                operation = await self.get(operation.id, wait=max(0.05, min(left, MAX_WAIT)))
                away, attempt = clock.monotonic(), 0
            except Unreachable:
                if clock.monotonic() - away > PATIENCE:
                    raise
                await pause(attempt)
                attempt += 1
        return operation

    async def _follow(self, id: str, on_progress: OnProgress) -> None:
        """Tell progress while it lasts; the outcome is not ours to tell, so neither are our failures."""
        with suppress(AtollError):
            async for news in Events(self._transport).follow(kinds=["operation.progress"]):
                progress = msgspec.json.decode(news.body, type=Progress)
                if progress.operation == id:
                    on_progress(progress)


def as_error(operation: Operation) -> AtollError:
    problem = operation.problem
    assert problem is not None
    return BY_CODE.get(problem.code, Bug)(problem.message, hint=problem.hint, field=problem.field)
