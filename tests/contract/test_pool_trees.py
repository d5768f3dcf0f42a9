"""What every pool with the trait `trees` promises of a container's root volume."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from atoll.base.errors import Absent, Broken, Exists, Invalid, Refused
from atoll.base.ids import Bytes, PoolId, VolumeId
from atoll.base.units import GiB, MiB
from atoll.storage.drivers.btrfs import BtrfsPool
from atoll.storage.drivers.dir import DirPool
from atoll.storage.model import FOREIGN_BASE, Layer, VolumeSpec
from atoll.storage.pool import PoolDriver
from tests.kit.btrfs import btrfs
from tests.kit.fake_pool import FakePool

ONE = VolumeId("11111111-1111-4111-8111-111111111111")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="trees belong to other ids: only root makes them")


@dataclass
class Rig:
    """`driver`: a new object for the same pool; `tree`: what root volumes stand on; `at`: None of the fake."""

    driver: Callable[[], PoolDriver]
    tree: Layer
    at: Path | None


@pytest.fixture(scope="session")
def btrfs_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with btrfs(tmp_path_factory.mktemp("btrfs"), size=4 * GiB) as mounted:
        yield mounted


@pytest.fixture(params=["fake", "dir", "btrfs", "btrfs with a tree elsewhere"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    if request.param == "fake":
        held: dict[VolumeId, VolumeSpec] = {}
        return Rig(lambda: FakePool(held=held), Layer("/fake/tree", "tree", read_only=True), None)
    kind = DirPool if request.param == "dir" else BtrfsPool
    home = tmp_path
    if kind is BtrfsPool:
        home = Path(tempfile.mkdtemp(dir=request.getfixturevalue("btrfs_disk")))
    tree = (tmp_path if "elsewhere" in request.param else home) / "images/trees/sha256-0/tree"
    tree.parent.mkdir(parents=True)
    if kind is BtrfsPool and "elsewhere" not in request.param:
        subprocess.run(["btrfs", "-q", "subvolume", "create", str(tree)], check=True)
    else:
        tree.mkdir()
    (tree / "file").write_bytes(b"x" * MiB)
    tree.chmod(0o751)
    for path in (tree, tree / "file"):
        os.chown(path, FOREIGN_BASE, FOREIGN_BASE)
    root, id = home / "pools/p", PoolId("p")
    kind(id, "default", root, fresh=True)._claim()
    return Rig(lambda: kind(id, "default", root, home=home), Layer(str(tree), "tree", read_only=True), home)


@pytest.fixture
async def pool(rig: Rig) -> PoolDriver:
    made = rig.driver()
    await made.open()
    assert made.traits.trees
    return made


def root_of(rig: Rig, size: int = 0) -> VolumeSpec:
    return VolumeSpec(ONE, Bytes(size), (rig.tree,), "tree")


async def test_a_root_volume_copies_nothing(rig: Rig, pool: PoolDriver) -> None:
    await pool.create(root_of(rig))
    own, *below = (await pool.attach(ONE)).layers
    assert (own.format, own.read_only) == ("tree", False)
    assert set(await pool.volumes()) == {ONE}
    assert (await pool.usage(ONE)).allocated < MiB + 1
    if rig.at is None:
        assert below == [rig.tree]
        return
    upper = Path(own.uri) / "upper"
    assert (upper.stat().st_uid, upper.stat().st_mode & 0o7777) == (FOREIGN_BASE, 0o751)
    assert below in ([rig.tree], [])
    assert (upper / "file").exists() == (below == []), "a snapshot holds it all, an overlay what was changed"
    assert (await pool.usage(ONE)).allocated < 64 * 1024
    (upper / "more").write_bytes(os.urandom(2 * MiB))
    os.sync()
    assert 2 * MiB <= (await pool.usage(ONE)).allocated < 3 * MiB
    assert Path(rig.tree.uri, "file").exists()
    assert not Path(rig.tree.uri, "more").exists()


async def test_a_new_driver_finds_it(rig: Rig, pool: PoolDriver) -> None:
    await pool.create(root_of(rig))
    again = rig.driver()
    await again.open()
    assert await again.attach(ONE) == await pool.attach(ONE)
    with pytest.raises(Exists):
        await again.create(root_of(rig))


async def test_it_goes_with_all_that_a_container_put_there(rig: Rig, pool: PoolDriver) -> None:
    await pool.create(root_of(rig))
    if rig.at is not None:
        fd = os.open(Path((await pool.attach(ONE)).layers[0].uri) / "upper", os.O_RDONLY)
        for _ in range(1500):  # deeper than a path can say
            os.mkdir("d", dir_fd=fd)
            os.close((fd, fd := os.open("d", os.O_RDONLY, dir_fd=fd))[0])
        os.close(fd)
    await pool.delete(ONE)
    await pool.delete(ONE)
    assert await pool.volumes() == {}
    with pytest.raises(Absent):
        await pool.attach(ONE)
    await pool.create(root_of(rig))
    await pool.delete(ONE)


async def test_one_on_nothing_is_empty(rig: Rig, pool: PoolDriver) -> None:
    await pool.create(VolumeSpec(ONE, Bytes(0), (), "tree"))
    (own,) = (await pool.attach(ONE)).layers
    assert rig.at is None or list((Path(own.uri) / "upper").iterdir()) == []


async def test_it_does_not_grow_by_itself(rig: Rig, pool: PoolDriver) -> None:
    await pool.create(root_of(rig))
    for call in (pool.grow, pool.make_room):
        with pytest.raises(Refused):
            await call(ONE, Bytes(GiB))


async def test_a_disk_is_no_tree(rig: Rig, pool: PoolDriver) -> None:
    if rig.at is None:
        return
    with pytest.raises(Invalid):
        await pool.create(VolumeSpec(ONE, Bytes(0), (Layer("/some/disk", "qcow2", read_only=True),), "tree"))
    with pytest.raises(Broken, match="cannot make"):
        await pool.create(VolumeSpec(ONE, Bytes(0), (Layer(str(rig.at / "gone"), "tree"),), "tree"))
    assert await pool.volumes() == {}
    assert not list((rig.at / "pools/p/volumes").iterdir())


async def test_a_lost_tree_is_told(rig: Rig, pool: PoolDriver) -> None:
    if rig.at is None:
        return
    await pool.create(root_of(rig))
    if len((await pool.attach(ONE)).layers) > 1:
        shutil.rmtree(rig.tree.uri)
        with pytest.raises(Broken, match="lacks the layer"):
            await rig.driver().attach(ONE)


async def test_a_crash_in_the_middle_is_swept(rig: Rig, pool: PoolDriver) -> None:
    if rig.at is None:
        return
    await pool.create(root_of(rig))
    volumes = rig.at / "pools/p/volumes"
    (volumes / f"{ONE}.tree").rename(volumes / f".{ONE}.new")
    again = rig.driver()
    await again.open()
    assert not list(volumes.iterdir())
    await again.withdraw()


def fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for _ in range(size // MiB):
            file.write(os.urandom(MiB))
            os.fsync(file.fileno())


async def test_a_bound_is_kept_or_refused(rig: Rig, pool: PoolDriver) -> None:
    """Only btrfs with quotas keeps one."""
    if rig.at is None:
        return
    with pytest.raises(Invalid, match="bound"):
        await pool.create(root_of(rig, 16 * MiB))
    assert await pool.volumes() == {}
    if not pool.traits.reflinks or not Path(rig.tree.uri).is_relative_to(rig.at):
        return
    mount = next(path for path in rig.at.parents if path.is_mount())
    subprocess.run(["btrfs", "-q", "quota", "enable", str(mount)], check=True)
    try:
        await pool.create(root_of(rig, 16 * MiB))
        inside = Path((await pool.attach(ONE)).layers[0].uri) / "upper/big"
        with pytest.raises(OSError, match="quota"):
            fill(inside, 64 * MiB)
        await pool.delete(ONE)
    finally:
        subprocess.run(["btrfs", "-q", "quota", "disable", str(mount)], check=True)
