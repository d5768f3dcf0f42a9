"""Export and import on fakes: what is kept, what is made anew and told, what is refused, and daemons that die."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from atoll.base.errors import (
    Absent,
    AtollError,
    Broken,
    Conflict,
    Exhausted,
    Exists,
    Interrupted,
    Invalid,
    Refused,
    Unreachable,
)
from atoll.base.ids import Bytes
from atoll.host.firmware import uefi
from atoll.instance.model import CloudInit, DiskSpec, DiskUse, InstanceSpec, NicSpec, State
from atoll.instance.model import Restart as RestartPolicy
from atoll.instance.verbs.exporting import Export
from atoll.instance.verbs.importing import ImportInstance
from atoll.network.model import Forward
from atoll.operation.model import OperationStatus
from atoll.operation.verb import Recovery
from atoll.storage.model import Life
from tests.flow.test_recovery import Died
from tests.kit.parcels import disk, manifest, whole
from tests.kit.world import GIB, World

FORWARD = Forward(port=8080, to=80)
SECRET = CloudInit(user_data="#cloud-config\npassword: hunter2\n")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path / "one").boot() as made:
        yield made


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[World]:
    (tmp_path / "two").mkdir(parents=True)
    async with World(tmp_path / "two").boot() as made:
        yield made


@pytest.fixture(autouse=True)
def roots(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir(parents=True, exist_ok=True)


async def furnished(world: World) -> Any:
    """A stopped instance with everything that can be carried."""
    await world.do("volume.create", "data", size=Bytes(GIB), format="raw")
    seed = await world.here.supplies.boots.seeds.put("default", SECRET)
    spec = InstanceSpec(
        image="tiny",
        labels={"tier": "web"},
        nics=(NicSpec(forwards=(FORWARD,)),),
        ssh_keys=("ssh-ed25519 AAAA me",),
    )
    volumes = (DiskUse(volume="data", cache="none"),)
    await world.do("instance.launch", spec=spec, start=False, seed=seed, volumes=volumes)
    return await world.get()


async def test_it_comes_as_it_was(world: World, other: World) -> None:
    web = await furnished(world)
    file = await world.export()
    told = await other.bring(file)
    [note] = told["notes"]
    assert note.endswith("is outside network default: it has another address")
    now = await other.get()
    assert (now.id, now.status.state, now.status.generation) == (web.id, State.STOPPED, 0)
    assert now.instance.spec.labels == web.instance.spec.labels
    assert now.instance.spec.ssh_keys == web.instance.spec.ssh_keys
    assert now.instance.spec.nics == web.instance.spec.nics, "a drawn MAC is not a fixed one afterwards"
    [old], [new] = web.instance.hardware.nics, now.instance.hardware.nics
    assert new.mac == old.mac
    disks = [[(d.serial, d.bus, d.cache, d.named) for d in v.instance.hardware.disks] for v in (web, now)]
    assert disks[0] == disks[1]
    assert await other.here.supplies.boots.seeds.get("default", now.instance.seed) == SECRET
    data = (await other.yard.book.find_volume("default", "data")).volume
    assert (data.format, data.size, data.state) == ("raw", GIB, Life.READY)
    assert other.pool.held[data.id].format == "raw"
    await other.do("instance.start")
    assert (await other.get()).status.state is State.RUNNING
    await other.do("instance.delete", force=True)
    await other.do("volume.delete", "data")
    assert await other.leftovers() == []
    assert len(await other.here.supplies.images.manifests()) == 1, "the kernel that it brought goes with it"


async def test_beside_itself_it_gets_what_is_free_and_says_so(world: World) -> None:
    web = await furnished(world)
    told = await world.bring(await world.export(), name="copy")
    [nic] = web.instance.hardware.nics
    wanted = (
        f"the MAC {nic.mac} is web's: it has a new one",
        f"{nic.addresses[0]} is web's: it has another address",
        "port 8080/tcp of this host leads to web: that forward is left out",
        "its id is web's here",
        "there is a volume data here: its own is data-2",
    )
    for note, begins in zip(told["notes"], wanted, strict=True):
        assert note.startswith(begins)
    copy = await world.get("copy")
    assert copy.id != web.id
    assert copy.instance.spec.nics[0].forwards == ()
    assert (await world.yard.book.find_volume("default", "data-2")).held.instance == copy.id
    assert copy.instance.hardware.disks[0].serial == web.instance.hardware.disks[0].serial


async def test_a_new_identity_is_new_in_everything(world: World, other: World) -> None:
    web = await furnished(world)
    await other.bring(await world.export(), new_identity=True)
    now = await other.get()
    assert now.id != web.id
    assert now.instance.hardware.nics[0].mac != web.instance.hardware.nics[0].mac


async def test_without_volumes_they_stay(world: World, other: World) -> None:
    await furnished(world)
    await other.bring(await world.export(volumes=False))
    assert len((await other.get()).instance.hardware.disks) == 1


async def test_networks_pools_and_groups_that_are_not_there_name_the_option(world: World, other: World) -> None:
    networks = world.here.supplies.networks
    await networks.create("default", "lan", "bridge", subnets=["10.77.0.0/24"])
    await world.here.supplies.groups.create("default", "web")
    await world.do("pool.create", "fast", driver="dir", path=str(world.root / "fast"))
    await world.launch(start=False, nics=(NicSpec(network="lan", groups=("web",)),))
    await world.do("instance.export")
    file = await world.export()
    for how, option in (({}, "--network lan=NAME"), ({"network": ("default",)}, "--without-groups")):
        with pytest.raises(Absent) as caught:
            await other.bring(file, **how)
        assert option in caught.value.hint
    with pytest.raises(Absent) as caught:
        await other.bring(file, pool="tape")
    assert "--pool NAME" in caught.value.hint
    with pytest.raises(Invalid, match="told twice"):
        await other.bring(file, network=("a", "b"))
    assert await other.leftovers() == []
    await other.bring(file, network=("lan=default",), groups=False)
    [nic] = (await other.get()).instance.spec.nics
    assert (nic.network, nic.groups) == ("default", ())


async def test_what_cannot_be_taken_leaves_nothing(world: World, other: World) -> None:
    await furnished(world)
    file = await world.export()
    other.pool.total = 1000
    with pytest.raises(Exhausted, match="pool default has"):
        await other.bring(file)
    other.pool.total = 1024 * GIB
    for call, error in (("copy_in", Broken("the disk died")), ("capacity", Unreachable("silent"))):
        other.pool.fail(call, error)
        with pytest.raises(type(error), match=error.message):
            await other.bring(file)
        assert await other.leftovers() == []
    other.engine.fail("furnish", Invalid("no such machine"))
    with pytest.raises(Invalid):
        await other.bring(file)
    assert await other.leftovers() == []
    await other.launch()
    with pytest.raises(Exists) as caught:
        await other.bring(file)
    assert "--name NAME" in caught.value.hint


async def test_while_it_is_copied_nothing_starts_it(world: World) -> None:
    await furnished(world)
    refused: list[AtollError] = []
    copy = world.pool.copy_out

    async def slow(volume: Any, target: Path, **rest: Any) -> None:
        for verb in ("instance.start", "instance.delete"):
            with pytest.raises(Refused, match="is being exported") as caught:
                await world.do(verb)
            refused.append(caught.value)
        await copy(volume, target, **rest)

    world.pool.copy_out = slow  # type: ignore[method-assign]
    await world.export()
    assert len(refused) == 4
    await world.do("instance.start")
    with pytest.raises(Refused) as caught:
        await world.export()
    assert "atoll stop web" in caught.value.hint


async def test_a_receiver_that_goes_and_a_cancel_leave_nothing(world: World) -> None:
    await world.launch(start=False)
    operation = await world.submit("instance.export")
    sending = await world.parcels.fetch("default", operation.id)
    async for _ in sending.chunks:
        break
    with pytest.raises(Refused, match="somebody fetches it"):
        await world.parcels.fetch("default", operation.id)
    await sending.chunks.aclose()
    ended = await world.operations.wait(operation.id, 5)
    assert (ended.status, ended.problem.code) == (OperationStatus.FAILED, "unreachable")
    operation = await world.submit("instance.export")
    sending = await world.parcels.fetch("default", operation.id)
    await world.operations.cancel(operation.id)
    assert (await world.operations.wait(operation.id, 5)).status is OperationStatus.CANCELLED
    with pytest.raises(AtollError, match="cancelled"):
        await anext(sending.chunks)
    for id in (operation.id, "0" * 20):
        with pytest.raises(AtollError):
            await world.parcels.fetch("default", id)
    assert list((world.root / "parcels").iterdir()) == []
    assert world.here.copied == {}


async def test_nobody_fetches_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.instance.outbox.FETCHED_IN", 0.05)
    await world.launch(start=False)
    operation = await world.submit("instance.export")
    ended = await world.operations.wait(operation.id, 5)
    assert "nobody fetched it" in ended.problem.message
    assert list((world.root / "parcels").iterdir()) == []


async def test_a_file_gets_no_image_disc_or_host_by_asking(other: World, tmp_path: Path) -> None:
    raw = disk(tmp_path)
    spec = {"image": "tiny", "cdrom": "tiny", "boot_cdrom": True, "host": "elsewhere", "power": "on"}
    await other.bring(whole(manifest(raw, spec=spec | {"nics": [{"network": "default"}]}), raw))
    came = (await other.get()).instance
    assert (came.image, came.cdrom, came.spec.image, came.spec.cdrom, came.spec.host) == ("", "", "", "", None)
    assert (came.spec.nics, came.spec.power) == ((), "off")
    [volume] = await other.here.supplies.storage.all_volumes()
    assert volume.base is None


async def test_two_imports_at_once_have_one_name(world: World, other: World) -> None:
    await world.launch(start=False)
    file = await world.export()
    ended = await asyncio.gather(other.bring(file), other.bring(file), return_exceptions=True)
    assert sum(isinstance(each, Exists | Conflict) for each in ended) == 1
    assert len(await other.here.book.all()) == 1
    await other.do("instance.delete")
    assert await other.leftovers() == []


WHEN = ("enter", "journalled")
MOMENTS = [
    *((verb, step, moment) for verb in (Export, ImportInstance) for step in verb.steps for moment in WHEN),
    *((verb, "", moment) for verb in (Export, ImportInstance) for moment in ("ran", "closed")),
]


@pytest.mark.parametrize(("verb", "step", "moment"), MOMENTS, ids=lambda v: getattr(v, "name", v) or "end")
async def test_killed_there_the_next_daemon_settles_it(tmp_path: Path, verb: Any, step: str, moment: str) -> None:
    world = World(tmp_path / "one", back_off=(60.0,))

    def die(called: str, at: str, when: str) -> None:
        if (called, at, when) == (verb.name, step, moment) and armed:
            raise Died

    armed: list[bool] = []
    async with world.boot(die):
        await furnished(world)
        file = await world.export()
        await world.do("instance.delete")
        await world.do("volume.delete", "data")
        if verb is Export:
            await world.launch(start=False)
        armed.append(True)
        with pytest.raises(Died):
            await (world.export() if verb is Export else world.bring(file))
    async with world.boot():
        steps = list(verb.steps)
        journalled = steps[: steps.index(step) + (moment == "journalled")] if step else steps
        last = verb.steps[journalled[-1]] if journalled else Recovery.TAKE_BACK
        assert await world.operations.journal.all() == {}
        assert await world.operations.book.running() == []
        assert list((world.root / "parcels").iterdir()) == []
        names = [view.name for view in await world.here.book.all()]
        assert names == (["web"] if verb is Export or last is Recovery.FINISH else [])
        if names:
            assert (await world.get()).status.state is State.STOPPED
            await world.do("instance.start")
            await world.do("instance.delete", force=True)
        for volume in await world.yard.book.volumes("default"):
            assert last is Recovery.FINISH
            await world.do("volume.delete", volume.name)
        assert await world.leftovers() == []


async def test_an_upload_that_a_daemon_lost_is_told(world: World) -> None:
    await world.launch(start=False)
    with pytest.raises(Interrupted):
        await world.do("instance.import", "copy", upload=".up-0123")
    for upload in ("../x", "web", ".up-/../x"):
        with pytest.raises(Invalid, match="is not an upload"):
            await world.do("instance.import", "copy", upload=upload)


async def test_what_its_uefi_remembers_comes_too(world: World, other: World) -> None:
    """Of an instance that began with an empty disk, with a CD in its drive, which stays behind."""
    spec = InstanceSpec(image="", root=DiskSpec(size=Bytes(GIB)), firmware="uefi", restart=RestartPolicy.ALWAYS)
    await world.do("instance.launch", spec=spec, start=False)
    home = world.here.supplies.boots.home((await world.get()).id)
    home.mkdir(parents=True)
    remembered = uefi().template.read_bytes()[:-4] + b"mine"
    (home / "variables.fd").write_bytes(remembered)
    await other.bring(await world.export())
    came = await other.get()
    assert (came.instance.hardware.firmware, came.instance.spec.restart) == ("uefi", RestartPolicy.ALWAYS)
    assert (other.here.supplies.boots.home(came.id) / "variables.fd").read_bytes() == remembered
    (home / "variables.fd").write_bytes(b"another size")
    await other.bring(await world.export(), name="second", new_identity=True)
    second = await other.get("second")
    assert not (other.here.supplies.boots.home(second.id) / "variables.fd").exists(), (
        "it gets fresh ones at its start"
    )
    for name in ("web", "second"):
        await other.do("instance.delete", name)
    assert await other.leftovers() == []
    assert not other.here.supplies.boots.home(came.id).exists()
