"""Volumes and pools on fakes: what each verb does in every state of the instance, what it refuses, and that a
failure leaves nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atoll.base.errors import Absent, AtollError, Broken, Exhausted, Exists, Invalid, Refused, Unreachable
from atoll.base.ids import Bytes
from atoll.instance.model import DiskUse, InstanceSpec, NicSpec, State
from atoll.storage.model import Life
from atoll.store.api import Key, read_all
from tests.kit.world import GIB, World

MIB = 1 << 20
SIZE = Bytes(GIB)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path).boot() as made:
        yield made


async def create(world: World, name: str = "data", **args: Any) -> Any:
    await world.do("volume.create", name, **{"size": SIZE, **args})
    return await found(world, name)


async def found(world: World, name: str = "data") -> Any:
    return await world.yard.book.find_volume("default", name)


def guest(world: World, id: str) -> Any:
    [held] = [g for (found, _), g in world.guests.guests.items() if found == id and g.alive]
    return held


def slots(world: World, id: str) -> dict[int, str]:
    """Of the guest as it runs: slot and serial."""
    return {disk.slot: disk.serial for disk in guest(world, id).plan.disks}


async def test_a_life(world: World) -> None:
    view = await create(world, format="raw")
    assert (view.volume.state, view.volume.format, view.volume.size, view.held) == (Life.READY, "raw", SIZE, None)
    assert world.pool.held[view.volume.id].format == "raw"
    with pytest.raises(Exists):
        await create(world)
    await world.do("volume.rename", "data", to="files")
    with pytest.raises(Absent) as caught:
        await found(world, "dat")
    assert "files" not in caught.value.hint
    assert (await found(world, "files")).volume.id == view.volume.id
    await world.do("volume.grow", "files", size=Bytes(2 * GIB))
    assert (await found(world, "files")).volume.size == world.pool.held[view.volume.id].size == 2 * GIB
    await create(world, "data")
    with pytest.raises(Exists):
        await world.do("volume.rename", "files", to="data")
    for name in ("files", "data"):
        await world.do("volume.delete", name)
    assert await world.leftovers() == []
    for prefix in ("/volumes/", "/volume-names/", "/attachments/"):
        assert (await read_all(world.shared, Key(prefix))).entries == {}


@pytest.mark.parametrize("running", [True, False])
async def test_attached_and_detached(world: World, running: bool) -> None:
    view, web = await create(world), await world.launch(start=running)
    done = await world.do("volume.attach", "data", instance="web", bus="scsi", cache="none")
    serial = view.volume.id.replace("-", "")[:20]
    assert done == {"instance": "web", "serial": serial}
    web = await world.get()
    root, disk = web.instance.hardware.disks
    assert (disk.volume, disk.serial, disk.bus, disk.cache, disk.named) == (
        view.volume.id, serial, "scsi", "none", True,
    )  # fmt: skip
    assert disk.slot not in {root.slot, *(nic.slot for nic in web.instance.hardware.nics)}
    held = (await found(world)).held
    assert (held.instance, held.generation) == (web.id, web.status.generation)
    if running:
        assert slots(world, web.id)[disk.slot] == serial
    else:
        await world.do("instance.start")
        assert slots(world, web.id)[disk.slot] == serial
    await world.do("instance.restart")
    assert slots(world, web.id)[disk.slot] == serial, "the same slot and serial at every start"
    if not running:
        await world.do("instance.stop")
    assert await world.do("volume.detach", "data") == {"instance": "web", "mounted": []}
    assert (await found(world)).held is None
    assert (await world.get()).instance.hardware.disks == (root,)
    if running:
        assert slots(world, web.id).keys() == {root.slot}
    with pytest.raises(Refused, match="attached to nothing"):
        await world.do("volume.detach", "data")


async def test_an_instance_goes_and_its_named_volumes_stay(world: World) -> None:
    await create(world)
    await create(world, "logs")
    uses = DiskUse(volume="data"), DiskUse(volume="logs", bus="ahci", cache="unsafe")
    await world.do("instance.launch", spec=InstanceSpec(image="tiny"), volumes=uses)
    web = await world.get()
    assert [(d.bus, d.cache, d.named) for d in web.instance.hardware.disks] == [
        ("virtio", "writeback", False), ("virtio", "writeback", True), ("ahci", "unsafe", True),
    ]  # fmt: skip
    assert len(slots(world, web.id)) == 3
    with pytest.raises(Refused, match="is attached to instance web"):
        await world.do("instance.launch", "db", spec=InstanceSpec(image="tiny"), volumes=uses[:1])
    await world.do("instance.delete", force=True)
    with pytest.raises(Invalid, match="twice"):
        await world.do("instance.launch", spec=InstanceSpec(image="tiny"), volumes=(uses[0], uses[0]))
    assert {v.name for v in await world.yard.book.volumes("default")} == {"data", "logs"}
    assert len(world.pool.held) == 2
    for name in ("data", "logs"):
        assert (await found(world, name)).held is None
        await world.do("volume.delete", name)
    assert await world.leftovers() == []


async def test_what_is_in_use_says_by_whom(world: World) -> None:
    await create(world)
    await world.launch()
    await world.do("volume.attach", "data", instance="web")
    for verb, args in (("volume.delete", {}), ("volume.attach", {"instance": "web"})):
        with pytest.raises(Refused, match="attached to instance web") as caught:
            await world.do(verb, "data", **args)
        assert "detach data" in caught.value.hint
    own: tuple[tuple[str, dict[str, Any]], ...] = (
        ("volume.delete", {}), ("volume.detach", {}), ("volume.rename", {"to": "x"}),
    )  # fmt: skip
    for verb, args in own:
        with pytest.raises(Refused, match="is the disk"):
            await world.do(verb, "web-root", **args)
    await world.do("volume.grow", "web-root", size=Bytes(4 * GIB))
    web = await world.get()
    assert guest(world, web.id).grown == {web.instance.hardware.disks[0].slot: 4 * GIB}


async def test_mounted_disks_are_told_and_forced(world: World) -> None:
    view, web = await create(world), await world.launch()
    await world.do("volume.attach", "data", instance="web")
    slot = (await world.get()).instance.hardware.disks[1].slot
    guest(world, web.id).mounts[slot] = ("/srv", "/srv/sub")
    with pytest.raises(Refused, match="mounted at /srv, /srv/sub"):
        await world.do("volume.detach", "data")
    guest(world, web.id).clings.add(slot)
    with pytest.raises(Refused, match="did not let go"):
        await world.do("volume.detach", "data", force=True)
    assert (await found(world)).held.instance == web.id, "it is still on record as what it is"
    guest(world, web.id).clings.clear()
    assert (await world.do("volume.detach", "data", force=True))["mounted"] == ["/srv", "/srv/sub"]
    assert (await found(world)).held is None
    assert view.volume.id in world.pool.held


async def test_growth(world: World) -> None:
    await create(world)
    web = await world.launch()
    await world.do("volume.attach", "data", instance="web")
    slot = (await world.get()).instance.hardware.disks[1].slot
    await world.do("volume.grow", "data", size=Bytes(3 * GIB))
    assert guest(world, web.id).grown == {slot: 3 * GIB}
    assert (await found(world)).volume.size == 3 * GIB
    world.pool.held[(await found(world)).volume.id] = msgspec.structs.replace(
        world.pool.held[(await found(world)).volume.id], size=Bytes(3 * GIB)
    )  # as QEMU would have it
    with pytest.raises(Refused, match="smaller"):
        await world.do("volume.grow", "data", size=SIZE)
    with pytest.raises(Exhausted):
        await world.do("volume.grow", "data", size=Bytes(2000 * GIB))
    assert (await found(world)).volume.size == 3 * GIB
    world.engine.fail("grow_disk", Unreachable("silent"))
    with pytest.raises(Unreachable):
        await world.do("volume.grow", "data", size=Bytes(4 * GIB))
    assert (await found(world)).volume.size == 3 * GIB
    await world.do("volume.grow", "data", size=Bytes(4 * GIB))


VERBS: dict[str, dict[str, Any]] = {
    "volume.attach": {"instance": "web"}, "volume.detach": {}, "volume.grow": {"size": Bytes(2 * GIB)},
}  # fmt: skip
TABLE: dict[State, set[str]] = {
    State.CREATING: set(), State.STOPPED: set(VERBS), State.STARTING: set(), State.RUNNING: set(VERBS),
    State.PAUSED: {"volume.attach", "volume.grow"}, State.STOPPING: set(), State.MIGRATING: set(),
    State.BROKEN: set(VERBS), State.GONE: set(),
}  # fmt: skip
"""What may be done with a volume of an instance in that state."""


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", State)
async def test_every_verb_in_every_state(world: World, state: State, verb: str) -> None:
    await create(world)
    web = await world.launch()
    if verb != "volume.attach":
        await world.do("volume.attach", "data", instance="web")
    if state not in (State.RUNNING, State.STOPPING, State.MIGRATING, State.PAUSED):
        await world.do("instance.stop")
    if state is State.PAUSED:
        await world.do("instance.pause")
    web = await world.get()
    await world.here.book.write_status(web, msgspec.structs.replace(web.status, state=state))
    before = await found(world), web.instance
    if verb in TABLE[state]:
        await world.do(verb, "data", **VERBS[verb])
        assert ((await found(world)).held is None) == (verb == "volume.detach")
        return
    with pytest.raises(Refused) as caught:
        await world.do(verb, "data", **VERBS[verb])
    assert caught.value.hint
    assert (await found(world), (await world.get()).instance) == before


FAULTS: list[tuple[str, str, AtollError, str, dict[str, Any]]] = [
    ("pool", "create", Exhausted("full"), "volume.create", {"size": SIZE}),
    ("pool", "capacity", Broken("not mounted"), "volume.create", {"size": SIZE}),
    ("pool", "attach", Broken("damaged"), "volume.attach", {"instance": "web"}),
    ("engine", "add_disk", Refused("no port"), "volume.attach", {"instance": "web"}),
    ("engine", "add_disk", Unreachable("silent"), "volume.attach", {"instance": "web"}),
    ("engine", "remove_disk", Unreachable("silent"), "volume.detach", {}),
    ("pool", "capacity", Broken("not mounted"), "volume.delete", {}),
    ("pool", "make_room", Exhausted("full"), "volume.grow", {"size": Bytes(2 * GIB)}),
]


@pytest.mark.parametrize(("part", "call", "error", "verb", "args"), FAULTS)
async def test_a_fault_changes_nothing(
    world: World, part: str, call: str, error: AtollError, verb: str, args: dict[str, Any]
) -> None:
    web = await world.launch()
    if verb != "volume.create":
        await create(world)
    if verb == "volume.detach":
        await world.do("volume.attach", "data", instance="web")
    before = (await world.get()).instance, sorted(world.pool.held), slots(world, web.id)
    getattr(world, part).fail(call, error)
    with pytest.raises(type(error)):
        await world.do(verb, "data", **args)
    assert ((await world.get()).instance, sorted(world.pool.held), slots(world, web.id)) == before
    if verb == "volume.create":
        with pytest.raises(Absent):
            await found(world)
    else:
        view = await found(world)
        assert (view.volume.state, view.held is not None) == (Life.READY, verb == "volume.detach")


async def test_many_at_once_want_one_volume(world: World) -> None:
    await create(world)
    for name in ("a", "b", "c"):
        await world.launch(name)
    wants = [world.do("volume.attach", "data", instance=name) for name in ("a", "b", "c")]
    wants += [world.do("volume.delete", "data"), world.do("volume.rename", "data", to="data2")]
    outcomes = await asyncio.gather(*wants, return_exceptions=True)
    assert all(isinstance(outcome, AtollError) or not isinstance(outcome, BaseException) for outcome in outcomes)
    volumes = [v for v in await world.yard.book.volumes("default") if v.named]
    plugged = [name for name in ("a", "b", "c") if len((await world.get(name)).instance.hardware.disks) == 2]
    assert len(plugged) <= 1
    if volumes:
        held = await world.yard.book.attachment(volumes[0].id)
        assert (held is not None) == bool(plugged)
    else:
        assert plugged == []


async def test_places_run_out(world: World) -> None:
    await world.launch()
    for number in range(14):
        await create(world, f"v{number}")
        await world.do("volume.attach", f"v{number}", instance="web")
    await create(world, "last")
    with pytest.raises(Exhausted, match="16 places"):
        await world.do("volume.attach", "last", instance="web")
    assert (await found(world, "last")).held is None


async def test_pools(world: World, tmp_path: Path) -> None:
    place = tmp_path / "fast"
    place.mkdir()
    await world.do("pool.create", "fast", driver="dir", path=str(place))
    pool = await world.yard.book.get("default", "fast")
    assert (pool.state, await world.yard.pools.place(pool)) == (Life.READY, place)
    await create(world, pool="fast")
    with pytest.raises(Refused, match="has volumes: data"):
        await world.do("pool.delete", "fast")
    bad = [
        ("dir", str(place), Refused), ("dir", str(place / "inner"), Refused), ("dir", "relative", Invalid),
        ("dir", "/", Invalid), ("dir", str(tmp_path), Refused), ("dir", "/no/such/place", Absent),
        ("dri", str(tmp_path / "x"), Invalid), ("dir", str(tmp_path / "disk"), Invalid),
        ("dir", str(tmp_path / "state" / "pools" / "x"), AtollError),
    ]  # fmt: skip
    for driver, path, error in bad:
        with pytest.raises(error) as caught:
            await world.do("pool.create", "other", driver=driver, path=path)
        assert caught.value.field in ("path", "driver"), path
    with pytest.raises(Exists):
        await world.do("pool.create", "fast", driver="dir", path=str(tmp_path / "more"))
    with pytest.raises(Refused, match="cannot be deleted"):
        await world.do("pool.delete", "default")
    world.pools[pool.id].fail("capacity", Broken("not mounted"))
    with pytest.raises(Broken, match="not mounted"):
        await world.do("volume.delete", "data")
    await world.do("volume.delete", "data")
    world.pools[pool.id].fail("capacity", Broken("not mounted"))
    with pytest.raises(Refused, match="not mounted"):
        await world.do("pool.delete", "fast")
    await world.do("pool.delete", "fast")
    assert [p.name for p in await world.yard.book.all()] == ["default"]


@pytest.mark.parametrize("call", ["create", "attach", "start"])
async def test_a_launch_that_fails_gives_its_volumes_back(world: World, call: str) -> None:
    await create(world)
    spec, uses = InstanceSpec(image="tiny"), (DiskUse(volume="data"),)
    part = world.engine if call == "start" else world.pool
    part.fail(call, Broken("failed"))
    with pytest.raises(Broken, match="failed"):
        await world.do("instance.launch", spec=spec, volumes=uses)
    assert (await found(world)).held is None
    await world.do("instance.launch", spec=spec, volumes=uses)
    await world.do("instance.delete", force=True)
    await world.do("volume.delete", "data")
    assert await world.leftovers() == []


async def test_disks_and_nics_that_come_at_once_have_places_of_their_own(world: World) -> None:
    web = await world.launch()
    for name in ("a", "b"):
        await create(world, name)
    await asyncio.gather(
        world.do("volume.attach", "a", instance="web"),
        world.do("instance.nic-add", "web", nic=NicSpec()),
        world.do("volume.attach", "b", instance="web"),
    )
    hardware = (await world.get()).instance.hardware
    taken = [*(disk.slot for disk in hardware.disks), *(nic.slot for nic in hardware.nics)]
    assert (len(taken), len(set(taken))) == (5, 5)
    plan = guest(world, web.id).plan
    assert sorted(taken) == sorted([*(disk.slot for disk in plan.disks), *(nic.slot for nic in plan.nics)])
