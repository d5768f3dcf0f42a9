"""What must hold when things fail half way: nothing is forgotten, nothing lost, nothing hidden."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from atoll.base import clock
from atoll.base.errors import AtollError, Broken, Exhausted, Lacking
from atoll.instance.engine import EngineTraits
from atoll.instance.model import Exit, Limits, Restart, State
from atoll.instance.verbs.args import Changes
from atoll.operation.model import Subject
from tests.kit.world import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path).boot() as made:
        yield made


async def until(world: World, state: State, name: str = "web") -> None:
    async with asyncio.timeout(5):
        while (await world.get(name)).status.state is not state:
            await asyncio.sleep(0.01)


async def test_what_cannot_be_taken_back_stays_on_record(world: World) -> None:
    """A file without a record would never be found: the instance stays, broken, until it can be removed."""
    world.pool.fail("attach", Broken("damaged"))
    world.pool.fail("delete", Broken("read-only"), times=2)
    with pytest.raises(Broken, match="damaged"):
        await world.launch()
    view = await world.get()
    assert view.status.state is State.BROKEN
    assert "read-only" in view.status.reason
    assert world.pool.held
    await world.do("instance.delete")
    assert await world.leftovers() == []


async def test_a_pool_out_of_reach_is_found_out_before_anything_is_claimed(world: World) -> None:
    world.pool.fail("capacity", Broken("not mounted"))
    with pytest.raises(Broken, match="not mounted"):
        await world.launch()
    assert await world.leftovers() == []


async def test_a_death_that_cannot_be_recorded_at_once_is_recorded_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atoll.instance.keeper.AGAIN", (0.05, 0.1))
    web = await world.launch()
    commit, failures = world.shared.commit, [Exhausted("full")] * 3

    async def full(txn: object) -> object:
        if failures:
            raise failures.pop()
        return await commit(txn)  # type: ignore[arg-type]

    monkeypatch.setattr(world.shared, "commit", full)
    world.engine.die(web.id, Exit("killed", False, clock.now()))
    await until(world, State.STOPPED)
    assert failures == []


async def test_limits_that_nothing_would_keep_are_refused(world: World) -> None:
    await world.launch()
    world.engine.traits = EngineTraits(hot_cpus=True, hot_memory=True, pauses=True)
    with pytest.raises(Lacking, match="control group"):
        await world.do("instance.set", changes=Changes(limits=Limits(cpu=0.5)))
    assert (await world.get()).instance.spec.limits == Limits()
    with pytest.raises(Lacking):
        await world.launch("other", limits=Limits(cpu=0.5))
    assert [view.name for view in await world.here.book.all()] == ["web"]
    await world.do("instance.stop")
    view = await world.get()
    spec = msgspec.structs.replace(view.instance.spec, limits=Limits(cpu=0.5))
    await world.here.book.write_definition(view, msgspec.structs.replace(view.instance, spec=spec))
    with pytest.raises(Lacking):
        await world.do("instance.start")
    assert (await world.get()).status.state is State.STOPPED


async def test_what_was_stopped_is_not_started_by_its_policy_at_the_next_start(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.boot():
        await world.launch(restart=Restart.ALWAYS)
        await world.do("instance.stop", keep_wanted=True)
    async with world.boot():
        await asyncio.sleep(0.2)
        assert (await world.get()).status.state is State.STOPPED
    async with world.boot(rebooted=True):
        await until(world, State.RUNNING)


async def test_a_long_finish_holds_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.operation.runner.PATIENCE", 0.1)
    world = World(tmp_path)
    dead: list[str] = []

    class Died(BaseException):
        pass

    def die(verb: str, step: str, moment: str) -> None:
        if (verb, step, moment) == ("instance.stop", "ask", "journalled"):
            dead.append(verb)
            raise Died

    async with world.boot(die):
        await world.launch()
        with pytest.raises((Died, AtollError)):
            await world.do("instance.stop", grace=30)
    assert dead
    stop, slow = asyncio.Event(), type(world.engine).stop

    async def waits(self: object, guest: object, *, grace: float) -> None:
        await stop.wait()
        await slow(self, guest, grace=grace)  # type: ignore[arg-type]

    monkeypatch.setattr(type(world.engine), "stop", waits)
    async with asyncio.timeout(10):
        async with world.boot():
            assert (await world.get()).status.state is State.STOPPING, "it is left to who is at it"
            await world.launch("other")
            stop.set()
            await until(world, State.STOPPED)


async def test_the_history_of_a_name_is_the_whole_life_of_what_bore_it(world: World) -> None:
    await world.launch()
    await world.do("instance.rename", to="shop")
    for name in ("web", "shop"):
        found = await world.operations.book.of(Subject("instance", "default", name))
        assert [operation.verb for operation in found] == ["instance.rename", "instance.launch"]
    await world.do("instance.stop", "shop")
    for name in ("web", "shop"):
        found = await world.operations.book.of(Subject("instance", "default", name))
        assert [operation.verb for operation in found] == ["instance.stop", "instance.rename", "instance.launch"]


def test_a_status_of_an_older_atoll_is_read() -> None:
    from atoll.instance.model import InstanceStatus

    old = b'{"host": "h", "state": "running", "since": "2026-01-31T09:30:00.125Z"}'
    assert msgspec.json.decode(old, type=InstanceStatus).held is False
