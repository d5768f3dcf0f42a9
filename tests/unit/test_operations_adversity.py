"""Operations in adversity: a full disk, a daemon that ends or begins meanwhile, a caller that goes away."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from atoll.base.errors import Exhausted
from atoll.operation import events as news
from atoll.operation import runner as running
from atoll.operation.events import Events
from atoll.operation.model import OperationStatus
from atoll.operation.verb import Recovery
from atoll.store.api import Key, Txn
from atoll.store.memory import MemoryStore
from atoll.store.sqlite import SqliteStore
from tests.unit.test_operations import BOX, ME, Args, World, outcome


class Full:
    """A store's commits fail until there is room."""

    def __init__(self, store: MemoryStore) -> None:
        self.full = False
        self._real = store.commit
        store.commit = self._commit  # type: ignore[method-assign]

    async def _commit(self, txn: Txn) -> Any:
        if self.full:
            raise Exhausted("the disk is full")
        return await self._real(txn)


async def test_events_go_on_when_the_disk_has_space_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news, "AGAIN", 0.01)
    store = MemoryStore()
    disk = Full(store)
    events = Events(store)
    await events.start()
    stream = events.follow("0")
    disk.full = True
    for number in range(3):
        events.publish(f"box.{number}", BOX)
    await asyncio.sleep(0.05)
    disk.full = False
    got = [await asyncio.wait_for(anext(stream), 5) for _ in range(3)]
    assert [(one.kind, int(one.id)) for one in got] == [("box.0", 1), ("box.1", 2), ("box.2", 3)]
    disk.full = True
    events.publish("box.4", BOX)
    await asyncio.wait_for(events.close(), 5)


async def test_an_outcome_waits_for_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "AGAIN", 0.01)
    world = World()
    runner = await world.boot()
    disk = Full(world.shared)
    operation = await runner.submit("box.make", Args(), BOX, ME)
    disk.full = True
    await asyncio.sleep(0.05)
    disk.full = False
    assert (await runner.wait(operation.id, 5)).status is OperationStatus.DONE
    assert (await runner.book.get(operation.id)).status is OperationStatus.DONE
    assert await runner.journal.all() == {}


async def test_a_daemon_that_ends_leaves_to_the_next_what_can_only_be_finished() -> None:
    world = World()
    runner = await world.boot()
    operation = await runner.submit("box.make", Args(hang_at="seal"), BOX, ME)
    await world.reached.wait()
    await asyncio.wait_for(runner.close(grace=0.01), 5)
    assert world.things == {"one", "two", "seal"}, "nothing is taken back"
    assert (await runner.book.get(operation.id)).status is OperationStatus.RUNNING
    later = await world.boot()
    world.reached.clear()
    recovering = asyncio.create_task(later.recover())
    await world.reached.wait()
    [again] = await later.book.running()
    assert again.id == operation.id
    await later.close(grace=0.01)
    await asyncio.gather(recovering, return_exceptions=True)


async def test_requests_wait_until_the_former_daemons_operations_are_settled() -> None:
    world = World()
    runner = await world.boot()
    runner.hold()
    operation = await runner.submit("box.make", Args(), BOX, ME)
    await asyncio.sleep(0.02)
    assert world.things == set()
    waiting = await runner.submit("box.make", Args(), BOX, ME)
    await runner.cancel(waiting.id)
    assert (await runner.wait(waiting.id, 5)).status is OperationStatus.CANCELLED
    runner.go()
    assert (await runner.wait(operation.id, 5)).status is OperationStatus.DONE


async def test_one_that_cannot_be_recovered_stops_no_other() -> None:
    world = World()

    class Odd:
        name = "box.odd"
        args = Args
        steps: ClassVar[Mapping[str, Recovery]] = {}

        async def run(self, work: Any, args: Args) -> None:
            await asyncio.Event().wait()

    first = await world.boot()
    first.know(Odd())
    odd = await first.submit("box.odd", Args(), BOX, ME)
    await first.submit("box.make", Args(hang_at="two"), BOX, ME)
    await world.reached.wait()
    second = await world.boot()
    await second.recover()
    assert world.things == set()
    assert (await second.book.get(odd.id)).status is OperationStatus.FAILED
    assert await second.book.running() == []


async def test_a_caller_that_goes_away_leaves_no_operation_without_a_task() -> None:
    world = World()
    runner = await world.boot()
    for turns in range(4):
        asking = asyncio.create_task(runner.submit("box.make", Args(), BOX, ME))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await asyncio.sleep(0.05)
    assert await runner.book.running() == []


async def test_a_cancelled_commit_is_decided_before_the_cancellation_is_seen(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "x.db")
    for number in range(30):
        key = Key(f"/things/{number}")
        asking = asyncio.create_task(store.commit(Txn(put={key: b"x"})))
        await asyncio.sleep(0.0002 * (number % 6))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        at_once = await store.get(key)
        await store.commit(Txn())
        assert await store.get(key) == at_once
    await store.close()


async def test_idempotency_keys_are_forgotten_after_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    runner = await world.boot()
    first = await outcome(runner, Args(), idempotency_key="k")
    await runner.book.forget_keys()
    assert (await outcome(runner, Args(), idempotency_key="k")).id == first.id
    await runner.book.forget_keys(older=-1)
    assert (await outcome(runner, Args(), idempotency_key="k")).id != first.id
