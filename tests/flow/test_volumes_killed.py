"""A daemon killed at every step of every verb of volumes and pools, on fakes: the next finishes or takes back."""

from pathlib import Path
from typing import Any

import pytest

from atoll.base.ids import Bytes
from atoll.instance.model import DiskUse, InstanceSpec
from atoll.instance.verbs.delete import Delete
from atoll.instance.verbs.disks import AttachVolume, DetachVolume, GrowVolume
from atoll.instance.verbs.launch import Launch
from atoll.operation.verb import Recovery
from atoll.storage.model import Life
from atoll.storage.verbs.pools import CreatePool, DeletePool
from atoll.storage.verbs.volumes import CreateVolume, DeleteVolume, RenameVolume
from tests.flow.test_recovery import Died
from tests.flow.test_volumes import SIZE, create, found, slots
from tests.kit.world import GIB, World

ATTACHED = (DetachVolume, GrowVolume)
CASES: dict[Any, dict[str, Any]] = {
    CreateVolume: {"size": SIZE}, DeleteVolume: {}, RenameVolume: {"to": "files"},
    AttachVolume: {"instance": "web"}, DetachVolume: {}, GrowVolume: {"size": Bytes(2 * GIB)},
    CreatePool: {"driver": "dir"}, DeletePool: {},
}  # fmt: skip
WHEN = ("enter", "journalled")
MOMENTS = [
    *((verb, step, moment) for verb in CASES for step in verb.steps for moment in WHEN),
    *((verb, "", moment) for verb in CASES for moment in ("ran", "closed")),
]


async def facts(world: World) -> dict[str, Any]:
    """What can be seen of the volume `data` (or `files`), the pool `fast` and who has what."""
    volumes = [v for v in await world.yard.book.all_volumes() if v.named]
    pools = [p for p in await world.yard.book.all() if p.name != "default"]
    assert all(thing.state is Life.READY for thing in (*volumes, *pools))
    held = [await world.yard.book.attachment(v.id) for v in volumes]
    web = await world.get()
    named = [disk for disk in web.instance.hardware.disks if disk.named]
    assert [h.instance for h in held if h] == [web.id] * len(named)
    assert slots(world, web.id) == {disk.slot: disk.serial for disk in web.instance.hardware.disks}
    assert {*world.pool.held} == {v.id for v in await world.yard.book.all_volumes()}
    return {
        "volumes": [(v.name, v.size) for v in volumes],
        "attached": len(named),
        "pools": [p.name for p in pools],
    }


def finished(verb: Any) -> dict[str, Any]:
    done = {"volumes": [("data", SIZE)], "attached": 0, "pools": []}
    change: dict[Any, dict[str, Any]] = {
        DeleteVolume: {"volumes": []}, RenameVolume: {"volumes": [("files", SIZE)]}, AttachVolume: {"attached": 1},
        GrowVolume: {"volumes": [("data", 2 * GIB)], "attached": 1}, CreatePool: {"volumes": [], "pools": ["fast"]},
        DeletePool: {"volumes": []},
    }  # fmt: skip
    return done | change.get(verb, {})


@pytest.mark.parametrize(("verb", "step", "moment"), MOMENTS, ids=lambda v: getattr(v, "name", v) or "end")
async def test_killed_there_the_next_daemon_settles_it(tmp_path: Path, verb: Any, step: str, moment: str) -> None:
    world = World(tmp_path, back_off=(60.0,))
    name, args = "data", CASES[verb]
    if verb in (CreatePool, DeletePool):
        name, args = "fast", args | ({"path": str(tmp_path / "fast")} if verb is CreatePool else {})

    def die(called: str, at: str, when: str) -> None:
        if (called, at, when) == (verb.name, step, moment) and armed:
            raise Died

    armed: list[bool] = []
    async with world.boot(die):
        await world.launch()
        if verb not in (CreateVolume, CreatePool, DeletePool):
            await create(world)
        if verb in ATTACHED:
            await world.do("volume.attach", "data", instance="web")
        if verb is DeletePool:
            await world.do("pool.create", "fast", driver="dir", path=str(tmp_path / "fast"))
        before = await facts(world)
        armed.append(True)
        with pytest.raises(Died):
            await world.do(verb.name, name, **args)
    async with world.boot():
        steps = list(verb.steps)
        journalled = steps[: steps.index(step) + (moment == "journalled")] if step else steps
        last = verb.steps[journalled[-1]] if journalled else Recovery.TAKE_BACK
        assert await facts(world) == (finished(verb) if last is Recovery.FINISH else before)
        assert await world.operations.journal.all() == {}
        assert await world.operations.book.running() == []
        await world.do("instance.delete", force=True)
        for volume in await world.yard.book.volumes("default"):
            await world.do("volume.delete", volume.name)
        for pool in await world.yard.book.all():
            if pool.name != "default":
                await world.do("pool.delete", pool.name)
        assert await world.leftovers() == []


WITH_VOLUME = [(verb, step, moment) for verb in (Launch, Delete) for step in verb.steps for moment in WHEN]


@pytest.mark.parametrize(("verb", "step", "moment"), WITH_VOLUME, ids=lambda v: getattr(v, "name", v))
async def test_killed_with_a_volume_it_stays(tmp_path: Path, verb: Any, step: str, moment: str) -> None:
    world = World(tmp_path, back_off=(60.0,))

    def die(called: str, at: str, when: str) -> None:
        if (called, at, when) == (verb.name, step, moment):
            raise Died

    async with world.boot(die):
        await create(world)
        act = world.do("instance.launch", spec=InstanceSpec(image="tiny"), volumes=(DiskUse(volume="data"),))
        if verb is Delete:
            await act
            act = world.do("instance.delete", force=True)
        with pytest.raises(Died):
            await act
    async with world.boot():
        there = {view.id for view in await world.here.book.all()}
        view = await found(world)
        assert ({view.held.instance} if view.held else set()) == there
        for name in [view.name for view in await world.here.book.all()]:
            await world.do("instance.delete", name, force=True)
        await world.do("volume.delete", "data")
        assert await world.leftovers() == []
