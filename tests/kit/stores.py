"""What tests of the store contract share."""

import asyncio
import time
from collections.abc import AsyncIterator

from atoll.store.api import (
    Event,
    Key,
    LeaseId,
    Revision,
    Txn,
)
from tests.contract.conftest import Compactable

A, B, C = Key("/web/a"), Key("/web/b"), Key("/web/c")
WEB = Key("/web/")
PATIENCE = 20.0


async def put(store: Compactable, key: str, value: bytes = b"", lease: LeaseId | None = None) -> Revision:
    return await store.commit(Txn(put={Key(key): value}, lease=lease))


async def delete(store: Compactable, *keys: str) -> Revision:
    return await store.commit(Txn(delete=frozenset(map(Key, keys))))


async def now(store: Compactable) -> Revision:
    return (await store.read(WEB)).revision


async def take(events: AsyncIterator[Event], count: int) -> list[Event]:
    async with asyncio.timeout(PATIENCE):
        return [await anext(events) for _ in range(count)]


async def gone(store: Compactable, key: Key) -> float:
    """When the key was gone, by the monotonic clock."""
    async with asyncio.timeout(PATIENCE):
        while await store.get(key) is not None:
            await asyncio.sleep(0.02)
    return time.monotonic()
