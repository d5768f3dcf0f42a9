"""What every pool driver promises (atoll/storage/pool.py), on the fake and the real ones."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from atoll.base.errors import Absent, Exhausted, Exists, Refused
from atoll.base.ids import Bytes, PoolId, VolumeId
from atoll.base.units import GiB, MiB
from atoll.storage.drivers.btrfs import BtrfsPool
from atoll.storage.drivers.dir import DirPool
from atoll.storage.model import Layer, VolumeFormat, VolumeSpec
from atoll.storage.pool import PoolDriver
from tests.kit.btrfs import btrfs
from tests.kit.fake_pool import FakePool

ONE, TWO = VolumeId("11111111-1111-4111-8111-111111111111"), VolumeId("22222222-2222-4222-8222-222222222222")


@dataclass
class Rig:
    """`driver`: a new object for the same pool, as after a restart; `full`: one whose disk has no room."""

    base: Layer
    driver: Callable[[], PoolDriver]
    full: Callable[[], PoolDriver]


def fake_rig(tmp_path: Path) -> Rig:
    held: dict[VolumeId, VolumeSpec] = {}
    base = Layer("/fake/base", "raw", read_only=True)
    return Rig(base, lambda: FakePool(held=held), lambda: FakePool(held=held, total=0))


def dir_rig(tmp_path: Path) -> Rig:
    base = tmp_path / "base.raw"
    base.write_bytes(b"base" * 1024)
    root, id = tmp_path / "pools" / "default", PoolId("p")
    DirPool(id, "default", root, fresh=True)._claim()
    return Rig(
        Layer(str(base), "raw", read_only=True),
        lambda: DirPool(id, "default", root),
        lambda: DirPool(id, "default", root, reserve=Bytes(1 << 60)),
    )


def btrfs_rig(place: Path, at: Path) -> Rig:
    """`at`: a new directory on a btrfs."""
    base = at / "base.raw"
    base.write_bytes(b"base" * (1 << 18))
    root, id = at / "pool", PoolId("p")
    BtrfsPool(id, "default", root, fresh=True)._claim()
    return Rig(
        Layer(str(base), "raw", read_only=True),
        lambda: BtrfsPool(id, "default", root),
        lambda: BtrfsPool(id, "default", root, reserve=Bytes(1 << 60)),
    )


@pytest.fixture(scope="session")
def btrfs_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with btrfs(tmp_path_factory.mktemp("btrfs"), size=4 * GiB) as mounted:
        yield mounted


@pytest.fixture(params=["fake", "dir", "btrfs"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    if request.param == "btrfs":
        place = Path(tempfile.mkdtemp(dir=request.getfixturevalue("btrfs_disk")))
        return btrfs_rig(tmp_path, place)
    return fake_rig(tmp_path) if request.param == "fake" else dir_rig(tmp_path)


@pytest.fixture
async def pool(rig: Rig) -> PoolDriver:
    pool = rig.driver()
    await pool.open()
    return pool


FORMATS: tuple[VolumeFormat, ...] = ("thin", "full", "raw")


def spec(id: VolumeId = ONE, size: int = 64 * MiB, *base: Layer, format: VolumeFormat = "thin") -> VolumeSpec:
    return VolumeSpec(id, Bytes(size), base, format)


async def test_open_twice_changes_nothing(pool: PoolDriver) -> None:
    await pool.create(spec())
    await pool.open()
    assert set(await pool.volumes()) == {ONE}


async def test_a_new_volume_has_the_size_asked_for(pool: PoolDriver) -> None:
    await pool.create(spec(size=96 * MiB))
    usage = (await pool.volumes())[ONE]
    assert usage.provisioned == 96 * MiB
    assert 0 < usage.allocated < 96 * MiB


async def test_a_taken_id_is_refused_and_its_volume_kept(pool: PoolDriver) -> None:
    await pool.create(spec(size=32 * MiB))
    with pytest.raises(Exists):
        await pool.create(spec(size=64 * MiB))
    assert (await pool.volumes())[ONE].provisioned == 32 * MiB


async def test_a_full_pool_makes_nothing(rig: Rig, pool: PoolDriver) -> None:
    full = rig.full()
    await full.open()
    with pytest.raises(Exhausted):
        await full.create(spec())
    assert await full.volumes() == {}
    await full.delete(ONE)


async def test_a_full_pool_grows_nothing(rig: Rig, pool: PoolDriver) -> None:
    await pool.create(spec(size=64 * MiB))
    full = rig.full()
    await full.open()
    with pytest.raises(Exhausted):
        await full.grow(ONE, Bytes(128 * MiB))
    assert (await full.volumes())[ONE].provisioned == 64 * MiB


async def test_deleting_what_is_absent_succeeds(pool: PoolDriver) -> None:
    await pool.delete(ONE)
    await pool.create(spec())
    await pool.delete(ONE)
    await pool.delete(ONE)
    assert await pool.volumes() == {}


async def test_a_deleted_id_can_be_used_again(pool: PoolDriver) -> None:
    await pool.create(spec(size=32 * MiB))
    await pool.delete(ONE)
    await pool.create(spec(size=64 * MiB))
    assert (await pool.volumes())[ONE].provisioned == 64 * MiB


async def test_a_volume_grows(pool: PoolDriver) -> None:
    await pool.create(spec(size=64 * MiB))
    await pool.grow(ONE, Bytes(2 * GiB))
    assert (await pool.volumes())[ONE].provisioned == 2 * GiB


async def test_growing_to_the_same_size_is_fine(pool: PoolDriver) -> None:
    await pool.create(spec(size=64 * MiB))
    await pool.grow(ONE, Bytes(64 * MiB))
    assert (await pool.volumes())[ONE].provisioned == 64 * MiB


async def test_no_volume_becomes_smaller(pool: PoolDriver) -> None:
    await pool.create(spec(size=64 * MiB))
    with pytest.raises(Refused):
        await pool.grow(ONE, Bytes(32 * MiB))
    assert (await pool.volumes())[ONE].provisioned == 64 * MiB


async def test_an_absent_volume_neither_grows_nor_attaches(pool: PoolDriver) -> None:
    with pytest.raises(Absent):
        await pool.grow(ONE, Bytes(GiB))
    with pytest.raises(Absent):
        await pool.attach(ONE)


async def test_an_attachment_is_one_writable_layer_with_its_format(pool: PoolDriver) -> None:
    await pool.create(spec())
    (layer,) = (await pool.attach(ONE)).layers
    assert layer.format
    assert layer.uri
    assert not layer.read_only


async def test_a_clone_stands_on_its_base_which_nobody_may_write(rig: Rig, pool: PoolDriver) -> None:
    assert pool.traits.clones
    await pool.create(spec(ONE, 64 * MiB, rig.base))
    own, *below = (await pool.attach(ONE)).layers
    assert not own.read_only
    if pool.traits.reflinks:
        assert below == [], "a copy of its own, whose blocks are shared"
        assert own.format == rig.base.format
        with open(own.uri, "rb") as copy, open(rig.base.uri, "rb") as base:
            assert copy.read(1 << 20) == base.read()
        usage = await pool.usage(ONE)
        assert (usage.provisioned, usage.used >= 1 << 20, usage.allocated < 1 << 20) == (64 * MiB, True, True)
        return
    assert below == [rig.base]
    assert below[0].read_only


async def test_attaching_again_and_by_a_new_driver_gives_the_same(rig: Rig, pool: PoolDriver) -> None:
    await pool.create(spec(ONE, 64 * MiB, rig.base))
    first = await pool.attach(ONE)
    assert await pool.attach(ONE) == first
    again = rig.driver()
    await again.open()
    assert await again.attach(ONE) == first
    assert set(await again.volumes()) == {ONE}


async def test_detaching_what_is_absent_succeeds(pool: PoolDriver) -> None:
    await pool.detach(ONE)
    await pool.create(spec())
    await pool.attach(ONE)
    await pool.detach(ONE)
    await pool.detach(ONE)


async def test_volumes_are_apart(pool: PoolDriver) -> None:
    await pool.create(spec(ONE, 32 * MiB))
    await pool.create(spec(TWO, 64 * MiB))
    assert (await pool.attach(ONE)).layers[0].uri != (await pool.attach(TWO)).layers[0].uri
    await pool.delete(ONE)
    assert {id: usage.provisioned for id, usage in (await pool.volumes()).items()} == {TWO: 64 * MiB}


async def test_capacity_adds_up(pool: PoolDriver) -> None:
    capacity = await pool.capacity()
    assert 0 < capacity.available <= capacity.total
    assert 0 <= capacity.used <= capacity.total
    assert capacity.used + capacity.available <= capacity.total


@pytest.mark.parametrize("format", FORMATS)
async def test_every_format_is_made_attached_grown_and_deleted(
    rig: Rig, pool: PoolDriver, format: VolumeFormat
) -> None:
    await pool.create(spec(size=64 * MiB, format=format))
    (layer,) = (await pool.attach(ONE)).layers
    assert layer.format == ("qcow2" if format == "thin" else "raw")
    assert layer.discard == (format != "full"), "what is reserved stays reserved"
    usage = await pool.usage(ONE)
    assert usage == (await pool.volumes())[ONE]
    assert usage.provisioned == 64 * MiB
    assert usage.used < 2 * MiB
    assert (usage.allocated >= 64 * MiB) == (format == "full")
    await pool.make_room(ONE, Bytes(96 * MiB))
    await pool.grow(ONE, Bytes(96 * MiB))
    later = rig.driver()
    await later.open()
    usage = await later.usage(ONE)
    assert usage.provisioned == 96 * MiB
    assert (usage.allocated >= 96 * MiB) == (format == "full")
    assert await later.attach(ONE) == await pool.attach(ONE)
    with pytest.raises(Exists):
        await pool.create(spec(size=64 * MiB))
    await pool.delete(ONE)
    assert await pool.volumes() == {}


async def test_nothing_is_larger_than_its_pool(pool: PoolDriver) -> None:
    capacity = await pool.capacity()
    with pytest.raises(Exhausted):
        await pool.create(spec(size=capacity.total + 512))
    await pool.create(spec(size=64 * MiB))
    for call in (pool.grow, pool.make_room):
        with pytest.raises(Exhausted):
            await call(ONE, Bytes(capacity.total + 512))
        with pytest.raises(Refused):
            await call(ONE, Bytes(32 * MiB))
        with pytest.raises(Absent):
            await call(TWO, Bytes(64 * MiB))
    assert (await pool.usage(ONE)).provisioned == 64 * MiB


async def test_a_pool_with_volumes_is_not_withdrawn(rig: Rig, pool: PoolDriver) -> None:
    await pool.create(spec())
    with pytest.raises(Refused):
        await pool.withdraw()
    assert set(await pool.volumes()) == {ONE}
    await pool.delete(ONE)
    await pool.withdraw()
    await pool.withdraw()


async def test_usage_of_what_is_absent(pool: PoolDriver) -> None:
    with pytest.raises(Absent):
        await pool.usage(ONE)
