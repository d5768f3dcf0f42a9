"""How full pools are, and whether they are there at all: looked at now and then, told as events when it changes."""

import asyncio
import logging
from types import TracebackType
from typing import Self

import msgspec

from atoll.base.errors import AtollError
from atoll.base.ids import PoolId
from atoll.operation.events import Events
from atoll.operation.model import Subject
from atoll.storage.model import Life, Pool
from atoll.storage.registry import Health, Pools

log = logging.getLogger(__name__)

EVERY = 30.0
"""Seconds between two looks. No file system tells when it fills."""


class Seen(msgspec.Struct, frozen=True):
    """What was last told of a pool."""

    available: bool = True
    filled: int = 0


def news(before: Seen, now: Seen) -> str:
    """The event that a change is worth; "": none. A pool that comes back is told before how full it is."""
    if before.available != now.available:
        return "available" if now.available else "unavailable"
    if now.filled > before.filled:
        return "filling"
    return "relieved" if now.filled < before.filled else ""


class PoolWatch:
    def __init__(self, pools: Pools, events: Events, *, every: float = EVERY) -> None:
        self._pools, self._events, self._every = pools, events, every
        self._seen: dict[PoolId, Seen] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="pool watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except AtollError as error:
                log.warning("pools could not be looked at: %s", error)
            await asyncio.sleep(self._every)

    async def look(self) -> None:
        """Every pool once, all at the same time: one that is silent holds up none."""
        pools = [pool for pool in await self._pools.all() if pool.state is Life.READY]
        healths = await asyncio.gather(*(self._pools.health(pool) for pool in pools))
        for pool, health in zip(pools, healths, strict=True):
            self._note(pool, health)
        self._seen = {pool.id: self._seen[pool.id] for pool in pools}

    def _note(self, pool: Pool, health: Health) -> None:
        before = self._seen.get(pool.id, Seen())
        filled = self._pools.filled(health) if health.capacity else before.filled
        now = Seen(health.capacity is not None, filled)
        if what := news(before, now):
            log.warning("pool %s is %s %s", pool.name, what, health.reason or f"({now.filled} %)")
            body = {"reason": health.reason, "filled": now.filled, "capacity": health.capacity}
            self._events.publish(f"pool.{what}", Subject("pool", pool.project, pool.name, pool.id), body)
        self._seen[pool.id] = now
