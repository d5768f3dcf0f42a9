"""An instance with all that it can have: an image or an empty disk, a CD, a secret for cloud-init, a volume with a
life of its own. What is its own goes with it, or with its launch where that dies; the rest is as it was before."""

from pathlib import Path
from typing import Any

import pytest

from atoll.base.errors import Absent, Broken, Invalid
from atoll.image.model import Manifest
from atoll.instance.book import SEEDS
from atoll.instance.model import CloudInit, DiskSpec, DiskUse, InstanceSpec
from atoll.instance.verbs.delete import Delete
from atoll.instance.verbs.launch import Launch
from atoll.store.api import read_all
from tests.flow.test_recovery import Died
from tests.flow.test_volumes import SIZE, create, found
from tests.kit.world import World

IMAGES = ("tiny", "")
"""What it begins with; "" is an empty disk."""


async def add_cd(world: World) -> None:
    path = world.root / "iso"
    path.write_bytes(b"iso")
    library = world.here.supplies.library
    manifest = Manifest(arch="x86_64", files={"iso": await library.blobs.add(path)}, firmware="any")
    await library.book.record("default", "cd", manifest)


async def launch(world: World, image: str) -> Any:
    seed = await world.here.supplies.boots.seeds.put("default", CloudInit(user_data="#cloud-config\n{}\n"))
    spec = InstanceSpec(image=image, cdrom="cd", root=DiskSpec() if image else DiskSpec(size=SIZE))
    await world.do("instance.launch", spec=spec, seed=seed, volumes=(DiskUse(volume="data"),))
    return await world.get()


async def uses(world: World, image: str) -> set[tuple[str, str]]:
    """By which volume, or by which instance where it is in a drive; and the name that people are told."""
    images = world.here.supplies.images
    return {(use.volume, use.user) for use in await images.uses((await images.find("default", image)).image.digest)}


async def nothing_is_left(world: World) -> None:
    """But the volume `data`, which is free."""
    assert (await found(world)).held is None
    assert await uses(world, "cd") == set()
    assert (await read_all(world.shared, SEEDS)).entries == {}
    await world.do("volume.delete", "data")
    assert await world.leftovers() == []


@pytest.mark.parametrize("image", IMAGES)
async def test_a_life_with_everything(tmp_path: Path, image: str) -> None:
    async with World(tmp_path).boot() as world:
        await add_cd(world)
        await create(world)
        web = await launch(world, image)
        root, data = web.instance.hardware.disks
        assert (root.named, data.named, data.volume) == (False, True, (await found(world)).volume.id)
        assert await uses(world, "tiny") == ({(root.volume, "web")} if image else set())
        assert await uses(world, "cd") == {(web.id, "web")}
        await world.do("instance.rename", to="shop")
        assert await uses(world, "tiny") == ({(root.volume, "shop")} if image else set())
        assert await uses(world, "cd") == {(web.id, "shop")}
        await world.do("volume.detach", "data")
        await world.do("volume.attach", "data", instance="shop")
        assert await uses(world, "tiny") == ({(root.volume, "shop")} if image else set()), "a volume uses no image"
        await world.do("instance.eject", "shop")
        assert await uses(world, "cd") == set()
        await world.do("instance.delete", "shop", force=True)
        await nothing_is_left(world)


@pytest.mark.parametrize("image", IMAGES)
async def test_what_fails_to_start_leaves_nothing(tmp_path: Path, image: str) -> None:
    async with World(tmp_path).boot() as world:
        await add_cd(world)
        await create(world)
        world.engine.fail("start", Broken("no more"))
        with pytest.raises(Broken):
            await launch(world, image)
        await nothing_is_left(world)


MOMENTS = [
    (verb, step, moment) for verb in (Launch, Delete) for step in verb.steps for moment in ("enter", "journalled")
]


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize(("verb", "step", "moment"), MOMENTS, ids=lambda v: getattr(v, "name", v))
async def test_killed_there_the_rest_is_as_it_was(
    tmp_path: Path, verb: Any, step: str, moment: str, image: str
) -> None:
    world = World(tmp_path, back_off=(60.0,))

    def die(called: str, at: str, when: str) -> None:
        if (called, at, when) == (verb.name, step, moment):
            raise Died

    async with world.boot(die):
        await add_cd(world)
        await create(world)
        act = launch(world, image)
        if verb is Delete:
            await act
            act = world.do("instance.delete", force=True)
        with pytest.raises(Died):
            await act
    async with world.boot():
        await world.here.supplies.boots.seeds.sweep({v.instance.seed for v in await world.here.book.all()})
        for view in await world.here.book.all():
            assert {use[0] for use in await uses(world, "cd")} == {view.id}
            await world.do("instance.delete", view.name, force=True)
        await nothing_is_left(world)


async def test_a_cd_inserted_later(tmp_path: Path) -> None:
    """Running and stopped; in place of another; where the guest's drive fails, none is in it."""
    async with World(tmp_path).boot() as world:
        await add_cd(world)
        await create(world)
        web = await launch(world, "")
        await world.do("instance.eject")
        await world.do("instance.insert", image="cd")
        plan = world.guests.guests[web.id, (await world.get()).status.generation].plan
        assert plan.cdrom is not None
        assert plan.cdrom.iso
        assert await uses(world, "cd") == {(web.id, "web")}
        assert (await world.get()).instance.spec.cdrom == "cd"
        await world.do("instance.insert", image="cd")
        assert await uses(world, "cd") == {(web.id, "web")}, "the same disc again is no second use"
        world.engine.fail("insert", Broken("no medium"))
        with pytest.raises(Broken):
            await world.do("instance.insert", image="cd")
        assert ((await world.get()).instance.cdrom, await uses(world, "cd")) == ("", set())
        with pytest.raises(Invalid, match="holds no ISO"):
            await world.do("instance.insert", image="tiny")
        with pytest.raises(Absent):
            await world.do("instance.insert", image="nothing")
        await world.do("instance.stop")
        await world.do("instance.insert", image="cd")
        await world.do("instance.start")
        plan = world.guests.guests[web.id, (await world.get()).status.generation].plan
        assert plan.cdrom is not None
        assert plan.cdrom.iso, "it starts with the disc"
        await world.do("instance.delete", force=True)
        await nothing_is_left(world)
