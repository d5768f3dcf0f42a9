"""How full a pool is and what of it is news."""

import asyncio
from pathlib import Path

import pytest

from atoll.base.errors import Broken, Unreachable
from atoll.base.ids import Bytes, HostId
from atoll.operation.events import Events
from atoll.storage import registry
from atoll.storage.book import StorageBook
from atoll.storage.model import Capacity
from atoll.storage.registry import Health, Pools, filled
from atoll.storage.watch import PoolWatch, Seen, news
from atoll.store.memory import MemoryStore
from tests.kit.fake_pool import FakePool


def health(used: int, available: int) -> Health:
    return Health(Capacity(Bytes(1000), Bytes(used), Bytes(available)))


@pytest.mark.parametrize(
    ("used", "available", "expected"), [(0, 1000, 0), (799, 201, 0), (800, 200, 80), (850, 50, 90), (0, 0, 0)]
)
def test_thresholds(used: int, available: int, expected: int) -> None:
    assert filled(health(used, available), (80, 90)) == expected


def test_out_of_reach_is_not_full() -> None:
    assert filled(Health(reason="gone"), (80,)) == 0


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (Seen(), Seen(), ""),
        (Seen(), Seen(filled=80), "filling"),
        (Seen(filled=80), Seen(filled=90), "filling"),
        (Seen(filled=90), Seen(filled=80), "relieved"),
        (Seen(filled=80), Seen(False, 80), "unavailable"),
        (Seen(False, 80), Seen(True, 0), "available"),
    ],
)
def test_what_is_news(before: Seen, now: Seen, expected: str) -> None:
    assert news(before, now) == expected


class Sized(FakePool):
    used = 0

    async def capacity(self) -> Capacity:
        self.maybe("capacity")
        return Capacity(Bytes(100), Bytes(self.used), Bytes(100 - self.used))


async def make(tmp_path: Path, pool: FakePool) -> tuple[Pools, Events]:
    book, events = StorageBook(MemoryStore()), Events(MemoryStore())
    await book.ensure_default()
    await events.start()
    pools = Pools(book, host=HostId("h"), home=tmp_path, drivers={"dir": lambda *_: pool}, warn_at=(80, 90))
    return pools, events


async def test_each_change_is_told_once(tmp_path: Path) -> None:
    pool = Sized()
    pools, events = await make(tmp_path, pool)
    watch = PoolWatch(pools, events)
    following = events.follow("0")
    for used, lost in ((10, False), (85, False), (85, False), (95, False), (95, True), (95, False), (5, False)):
        pool.used = used
        if lost:
            pool.fail("capacity", Broken("not mounted"))
        await watch.look()
    told = [(await asyncio.wait_for(anext(following), 5)).kind for _ in range(5)]
    assert told == ["pool.filling", "pool.filling", "pool.unavailable", "pool.available", "pool.relieved"]
    await events.close()


class Silent(FakePool):
    async def capacity(self) -> Capacity:
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_silent_pool_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "ANSWERS_IN", 0.05)
    pools, events = await make(tmp_path, Silent())
    pool = await pools.get("default", "default")
    with pytest.raises(Unreachable, match="does not answer"):
        await pools.capacity(pool)
    assert "does not answer" in (await pools.health(pool)).reason
    asking = [task for task in asyncio.all_tasks() if task.get_name().startswith("capacity of")]
    assert len(asking) == 1, "however often it is asked"
    asking[0].cancel()
    await events.close()
