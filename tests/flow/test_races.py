"""Two at one instance: whatever comes in between, records tell the truth and nobody undoes another's work."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from atoll.base import clock
from atoll.base.errors import Absent, AtollError, Broken, Conflict, Exhausted, Refused
from atoll.base.ids import Bytes
from atoll.instance.admission import HostMemory
from atoll.instance.model import Exit, Limits, Power, Restart, State
from atoll.instance.verbs.args import Changes
from atoll.operation.model import OperationStatus
from tests.kit.world import GIB, World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path).boot() as made:
        yield made


class Held:
    """A call of a fake that waits in the middle until it is let go: before it acts, or after."""

    def __init__(self, target: Any, call: str, *, after: bool = False) -> None:
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        real = getattr(target, call)

        async def held(*args: Any, **named: Any) -> Any:
            if after:
                value = await real(*args, **named)
            if not self.reached.is_set():
                self.reached.set()
                await self.go.wait()
            return value if after else await real(*args, **named)

        setattr(target, call, held)


async def settled(world: World, state: State, name: str = "web") -> Any:
    for _ in range(200):
        view = await world.get(name)
        if view.status.state is state:
            return view
        await asyncio.sleep(0.01)
    raise AssertionError(f"{name} is {view.status.state}, not {state}")


async def plugged(world: World) -> int:
    return sum([len(await net.ports()) for net in world.nets.values()])


async def runs(world: World, name: str = "web") -> None:
    """Records and host agree that it runs, with its port."""
    view = await world.get(name)
    seen = (await world.engine.observe())[view.id]
    assert (view.status.state, seen.state) == (State.RUNNING, State.RUNNING)
    assert view.status.generation == seen.generation
    assert await plugged(world) == 1


async def both(*doing: Any) -> list[Any]:
    results = await asyncio.gather(*doing, return_exceptions=True)
    assert [r for r in results if isinstance(r, Exception) and not isinstance(r, AtollError)] == []
    assert [r for r in results if isinstance(r, Conflict)] == [], "a user is told who is at it"
    return results


async def test_two_starts(world: World) -> None:
    await world.launch(start=False)
    await both(world.do("instance.start"), world.do("instance.start"))
    await runs(world)


async def test_a_start_beside_a_hanging_one_is_refused_and_undoes_nothing(world: World) -> None:
    await world.launch(start=False)
    held = Held(world.engine, "start")
    first = asyncio.create_task(world.do("instance.start"))
    await held.reached.wait()
    for verb in ("instance.start", "instance.stop", "instance.delete", "instance.restart", "instance.pause"):
        with pytest.raises(Refused, match="is starting"):
            await world.do(verb)
    held.go.set()
    await first
    await runs(world)


async def test_two_stops(world: World) -> None:
    web = await world.launch(restart=Restart.ALWAYS)
    held = Held(world.engine, "stop")
    first = asyncio.create_task(world.do("instance.stop"))
    await held.reached.wait()
    second = asyncio.create_task(world.do("instance.stop", grace=0))
    await second
    held.go.set()
    await first
    await asyncio.sleep(0.05)
    stopped = await world.get()
    assert (stopped.status.state, stopped.status.generation) == (State.STOPPED, web.status.generation)
    assert stopped.status.exit is not None


async def test_two_stops_at_the_same_moment(world: World) -> None:
    await world.launch()
    await both(world.do("instance.stop"), world.do("instance.stop"))
    assert (await world.get()).status.state is State.STOPPED


async def test_a_restart_overtakes_a_stop(world: World) -> None:
    """The stop's end must not take the ports of the generation that the restart began."""
    await world.launch()
    held = Held(world.engine, "stop", after=True)
    first = asyncio.create_task(world.do("instance.stop"))
    await held.reached.wait()
    await world.do("instance.restart")
    held.go.set()
    await first
    await runs(world)


async def test_a_slow_unplug_never_hits_the_next_generation(world: World) -> None:
    await world.launch()
    held = Held(next(iter(world.nets.values())), "unplug")
    first = asyncio.create_task(world.do("instance.stop"))
    await held.reached.wait()
    second = asyncio.create_task(world.do("instance.restart"))
    await asyncio.sleep(0.05)
    held.go.set()
    await both(first, second)
    if (await world.get()).status.state is not State.RUNNING:
        await world.do("instance.start")
    await runs(world)


async def test_two_deletes(world: World) -> None:
    await world.launch()
    held = Held(world.pool, "delete")
    first = asyncio.create_task(world.do("instance.delete", force=True))
    await held.reached.wait()
    second = asyncio.create_task(world.do("instance.delete", force=True))
    await asyncio.sleep(0.02)
    assert State.STOPPED not in [view.status.state for view in await world.here.book.all()]
    held.go.set()
    await first
    await second
    assert await world.leftovers() == []


async def test_two_deletes_at_the_same_moment(world: World) -> None:
    await world.launch()
    done = await both(*(world.do("instance.delete", force=True) for _ in range(2)))
    assert [r for r in done if isinstance(r, Exception) and not isinstance(r, Absent)] == []
    assert await world.leftovers() == []


async def test_a_restart_does_not_bring_back_what_is_being_deleted(world: World) -> None:
    await world.launch()
    held = Held(world.engine, "stop", after=True)
    restart = asyncio.create_task(world.do("instance.restart"))
    await held.reached.wait()
    removal = Held(world.pool, "delete")
    delete = asyncio.create_task(world.do("instance.delete", force=True))
    await removal.reached.wait()
    held.go.set()
    with pytest.raises((Refused, Absent)):
        await restart
    assert (await world.get()).status.state is State.GONE
    removal.go.set()
    await delete
    assert await world.leftovers() == []


async def test_a_deletion_that_failed_half_way_stays_one(world: World) -> None:
    await world.launch()
    world.pool.fail("delete", Broken("the disk is on fire"))
    with pytest.raises(Broken):
        await world.do("instance.delete", force=True)
    assert (await world.get()).status.state is State.GONE
    with pytest.raises(Refused):
        await world.do("instance.start")
    await world.do("instance.delete")
    assert await world.leftovers() == []


async def test_a_forced_delete_is_no_death_to_the_policy(world: World) -> None:
    web = await world.launch(restart=Restart.ALWAYS)
    held = Held(world.engine, "stop", after=True)
    delete = asyncio.create_task(world.do("instance.delete", force=True))
    await held.reached.wait()
    await asyncio.sleep(0.1)
    assert (await world.get()).status.generation == web.status.generation
    held.go.set()
    await delete
    assert await world.leftovers() == []


async def test_renamed_while_it_is_deleted(world: World) -> None:
    """A rename that had looked before the deletion began commits after it."""
    await world.launch()
    held = Held(world.here.book, "rename")
    rename = asyncio.create_task(world.do("instance.rename", to="shop"))
    await held.reached.wait()
    removal = Held(world.pool, "delete")
    delete = asyncio.create_task(world.do("instance.delete", force=True))
    await removal.reached.wait()
    held.go.set()
    await asyncio.sleep(0.02)
    removal.go.set()
    await delete
    await asyncio.gather(rename, return_exceptions=True)
    assert await world.leftovers() == []


async def test_a_guest_that_dies_before_its_start_is_recorded(world: World) -> None:
    held = Held(world.engine, "start", after=True)
    launch = asyncio.create_task(world.launch())
    await held.reached.wait()
    web = await world.get()
    world.engine.die(web.id, Exit("killed by signal 9", False, clock.now()))
    await asyncio.sleep(0.02)
    held.go.set()
    await launch
    dead = await settled(world, State.STOPPED)
    assert dead.status.exit.reason == "killed by signal 9"
    assert await plugged(world) == 0


async def test_the_policy_holds_for_a_guest_that_dies_at_once(world: World) -> None:
    held = Held(world.engine, "start", after=True)
    launch = asyncio.create_task(world.launch(restart=Restart.ON_FAILURE))
    await held.reached.wait()
    world.engine.die((await world.get()).id)
    await asyncio.sleep(0.02)
    held.go.set()
    await launch
    await asyncio.sleep(0.1)
    assert (await settled(world, State.RUNNING)).status.generation == 2


async def test_a_death_is_recorded_though_its_port_cannot_be_unplugged(world: World) -> None:
    web = await world.launch()
    next(iter(world.nets.values())).fail("unplug", Broken("netlink is full"))
    world.engine.die(web.id)
    await settled(world, State.STOPPED)


async def test_a_stop_calls_off_the_restart_that_is_due(world: World) -> None:
    web = await world.launch(restart=Restart.ALWAYS)
    world.keeper._back_off = (0.1,)
    world.engine.die(web.id)
    await settled(world, State.STOPPED)
    await world.do("instance.stop")
    await asyncio.sleep(0.25)
    now = await world.get()
    assert (now.status.state, now.instance.spec.power) == (State.STOPPED, Power.OFF)


async def test_a_start_by_hand_begins_the_back_off_anew(world: World) -> None:
    web = await world.launch(restart=Restart.ALWAYS)
    world.engine.die(web.id)
    await asyncio.sleep(0.1)
    assert (await settled(world, State.RUNNING)).status.restarts == 1
    await world.do("instance.restart")
    assert (await world.get()).status.restarts == 0


async def test_a_pause_does_not_touch_what_is_stopping(world: World) -> None:
    await world.launch()
    pausing = Held(world.engine, "pause", after=True)
    pause = asyncio.create_task(world.do("instance.pause"))
    await pausing.reached.wait()
    stopping = Held(world.engine, "stop")
    stop = asyncio.create_task(world.do("instance.stop"))
    await stopping.reached.wait()
    pausing.go.set()
    with pytest.raises(Refused):
        await pause
    assert (await world.get()).status.state is State.STOPPING
    stopping.go.set()
    await stop
    assert (await world.get()).status.state is State.STOPPED


async def test_a_label_set_at_the_same_time_disturbs_nobody(world: World) -> None:
    await world.launch()
    for verb in ("instance.stop", "instance.start", "instance.restart"):
        done = await both(
            world.do(verb),
            *(world.do("instance.set", changes=Changes(labels={f"l{n}": verb})) for n in range(5)),
        )
        assert [r for r in done if isinstance(r, Exception)] == []
    assert len((await world.get()).instance.spec.labels) == 5


async def test_what_is_set_during_a_start_waits_for_the_next(world: World) -> None:
    await world.launch(start=False)
    held = Held(world.engine, "start")
    start = asyncio.create_task(world.do("instance.start"))
    await held.reached.wait()
    await world.do("instance.set", changes=Changes(cpus=3, limits=Limits(cpu=0.5)))
    await world.do("instance.rename", to="shop")
    held.go.set()
    await start
    assert (await world.get("shop")).status.restart_for == ("cpus", "limits")


async def test_memory_that_waits_to_shrink_is_still_promised(world: World) -> None:
    world.memory = HostMemory(Bytes(4 * GIB), Bytes(0))
    await world.launch("large", memory=Bytes(3 * GIB))
    await world.do("instance.set", "large", changes=Changes(memory=Bytes(GIB)))
    assert (await world.get("large")).status.restart_for == ("memory",)
    with pytest.raises(Exhausted):
        await world.launch("other", memory=Bytes(2 * GIB))
    await world.do("instance.restart", "large")
    await world.launch("other", memory=Bytes(2 * GIB))


async def test_a_guest_that_cannot_be_ended_keeps_its_records(world: World) -> None:
    real = world.engine.stop

    async def deaf(guest: Any, *, grace: float) -> None:
        raise Broken("it does not die")

    world.engine.stop = deaf  # type: ignore[method-assign]
    held = Held(world.engine, "start", after=True)
    operation = await world.submit("instance.launch", spec=_tiny())
    await held.reached.wait()
    await world.operations.cancel(operation.id)
    ended = await world.operations.wait(operation.id, 5)
    assert ended.status is OperationStatus.CANCELLED
    assert "does not die" in ended.note
    assert (await world.get()).status.state is State.BROKEN
    world.engine.stop = real  # type: ignore[method-assign]
    await world.do("instance.delete")
    assert await world.leftovers() == []


async def test_each_verb_leaves_revisions_in_the_audit(world: World) -> None:
    await world.launch()
    web = await world.get()
    for verb, args in (
        ("instance.pause", {}), ("instance.resume", {}), ("instance.stop", {}), ("instance.start", {}),
        ("instance.restart", {}), ("instance.set", {"changes": Changes(cpus=2)}),
        ("instance.delete", {"force": True}),
    ):  # fmt: skip
        before = await world.get()
        await world.do(verb, **args)
        [operation] = await world.operations.book.latest(limit=1)
        key, old = (
            (f"/instances/{web.id}", before.revision)
            if verb == "instance.set"
            else (f"/instance-status/{web.id}", before.status_revision)
        )
        assert operation.before[key] == old, verb
        if verb == "instance.delete":
            assert operation.after == {key: 0, f"/instances/{web.id}": 0}
            continue
        now = await world.get()
        assert operation.after[key] == (now.revision if verb == "instance.set" else now.status_revision), verb


def _tiny() -> Any:
    from atoll.instance.model import InstanceSpec

    return InstanceSpec(image="tiny")
