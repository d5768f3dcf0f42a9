"""What the `dir` pool promises beyond the contract: crashes, vanished disks, full disks, moved directories."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.base.errors import Broken, Exhausted, Exists, Invalid, Lacking, Refused
from atoll.base.ids import Bytes, PoolId, VolumeId
from atoll.base.units import GiB, MiB
from atoll.host.run import run
from atoll.storage.drivers.dir import MARKER, DirPool
from atoll.storage.model import Layer, VolumeSpec

ID, ONE = PoolId("the-pool"), VolumeId("one")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "state" / "pools" / "default"


@pytest.fixture
def base(tmp_path: Path) -> Layer:
    path = tmp_path / "state" / "images" / "base.raw"
    path.parent.mkdir(parents=True)
    path.write_bytes(os.urandom(MiB))
    return Layer(str(path), "raw", read_only=True)


@pytest.fixture
async def pool(root: Path) -> DirPool:
    pool = DirPool(ID, "default", root, fresh=True)
    await pool.open()
    return pool


def spec(*base: Layer, id: str = ONE, size: int = 16 * MiB) -> VolumeSpec:
    return VolumeSpec(VolumeId(id), Bytes(size), base)


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def test_a_clone_reads_as_its_base(pool: DirPool, base: Layer) -> None:
    await pool.create(spec(base))
    top = (await pool.attach(ONE)).layers[0]
    await run(["qemu-img", "check", "-q", "-f", "qcow2", top.uri])
    await run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", top.uri, base.uri])
    assert Path(top.uri).stat().st_mode & 0o777 == 0o600


async def test_an_unmounted_pool_is_never_written_to(pool: DirPool, root: Path) -> None:
    await pool.create(spec())
    (root / MARKER).rename(root.parent / "marker")
    for again in (pool, DirPool(ID, "default", root)):
        with pytest.raises(Broken, match="not mounted or has vanished"):
            await again.open()
        with pytest.raises(Broken, match="not mounted or has vanished"):
            await again.create(spec(id="two"))
        with pytest.raises(Broken, match="not mounted or has vanished"):
            await again.volumes()
        with pytest.raises(Broken, match="not mounted or has vanished"):
            await again.delete(ONE)
    assert names(root) == ["volumes/one.qcow2"]


async def test_a_vanished_directory_is_not_made_again(pool: DirPool, root: Path) -> None:
    shutil.rmtree(root)
    with pytest.raises(Broken, match="vanished"):
        await DirPool(ID, "default", root).open()
    with pytest.raises(Broken, match="vanished"):
        await pool.capacity()
    assert not root.exists()


async def test_the_directory_of_another_pool_is_told_apart(pool: DirPool, root: Path) -> None:
    for fresh in (True, False):
        with pytest.raises(Broken, match="another pool"):
            await DirPool(PoolId("other"), "other", root, fresh=fresh).open()


async def test_a_pool_is_only_laid_out_in_an_empty_directory(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "letter.txt").touch()
    with pytest.raises(Refused, match=r"letter\.txt"):
        await DirPool(ID, "default", root, fresh=True).open()
    assert names(root) == ["letter.txt"]


async def test_laying_out_goes_on_after_a_crash(root: Path) -> None:
    root.mkdir(parents=True)
    (root / f".{MARKER}.new").write_text("half")
    for _ in range(2):
        await DirPool(ID, "default", root, fresh=True).open()
    assert names(root) == [MARKER]


async def test_a_directory_we_may_not_make_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((Broken, Lacking), match="cannot open pool default"):
        await DirPool(ID, "default", tmp_path / "file" / "pool", fresh=True).open()


async def test_what_a_crash_left_is_swept(pool: DirPool, root: Path) -> None:
    await pool.create(spec())
    (root / "volumes" / ".two.qcow2.new").write_bytes(b"half")
    assert set(await pool.volumes()) == {ONE}
    await DirPool(ID, "default", root).open()
    assert names(root) == [MARKER, "volumes/one.qcow2"]


@pytest.mark.parametrize("id", ["", "..", "../x", "a/b", ".hidden", "x.qcow2", "-a", "a b", "é", "a\n", "a" * 101])
async def test_a_volume_id_is_never_a_path(pool: DirPool, id: str) -> None:
    for act in (pool.delete, pool.attach):
        with pytest.raises(Invalid):
            await act(VolumeId(id))
    with pytest.raises(Invalid):
        await pool.create(spec(id=id))


async def test_a_base_that_is_absent_leaves_nothing(pool: DirPool, root: Path, base: Layer) -> None:
    Path(base.uri).unlink()
    with pytest.raises(Broken):
        await pool.create(spec(base))
    assert names(root) == [MARKER]
    await pool.delete(ONE)


async def test_a_base_that_vanished_is_named(pool: DirPool, root: Path, base: Layer) -> None:
    await pool.create(spec(base))
    Path(base.uri).unlink()
    for again in (pool, DirPool(ID, "default", root)):
        with pytest.raises(Broken, match=r"base\.raw"):
            await again.attach(ONE)


async def test_a_cancelled_create_leaves_nothing(pool: DirPool, root: Path, base: Layer) -> None:
    for delay in (0.0, 0.001, 0.002, 0.004, 0.006, 0.008, 0.010, 0.012, 0.016):
        making = asyncio.create_task(pool.create(spec(base)))
        await asyncio.sleep(delay)
        making.cancel()
        done = await asyncio.gather(making, return_exceptions=True)
        if isinstance(done[0], asyncio.CancelledError):
            assert names(root) == [MARKER]
        await pool.delete(ONE)
        await asyncio.sleep(0.01)
        assert names(root) == [MARKER]


async def test_of_two_at_once_one_is_made(pool: DirPool) -> None:
    done = await asyncio.gather(*(pool.create(spec(size=size * MiB)) for size in (16, 32)), return_exceptions=True)
    assert [type(result) for result in done] == [type(None), Exists]
    assert (await pool.volumes())[ONE].provisioned == 16 * MiB


async def test_a_state_directory_moves_as_a_whole(tmp_path: Path, root: Path, base: Layer) -> None:
    pool = DirPool(ID, "default", root, home=tmp_path / "state", fresh=True)
    await pool.open()
    await pool.create(spec(base))
    (tmp_path / "state").rename(tmp_path / "elsewhere")
    moved = DirPool(ID, "default", tmp_path / "elsewhere/pools/default", home=tmp_path / "elsewhere")
    await moved.open()
    layers = (await moved.attach(ONE)).layers
    assert [layer.uri for layer in layers] == [
        str(tmp_path / "elsewhere/pools/default/volumes/one.qcow2"),
        str(tmp_path / "elsewhere/images/base.raw"),
    ]


async def test_a_pool_elsewhere_finds_its_bases_when_it_moves(tmp_path: Path, base: Layer) -> None:
    pool = DirPool(ID, "far", tmp_path / "far", home=tmp_path / "state", fresh=True)
    await pool.open()
    await pool.create(spec(base))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "far").rename(tmp_path / "deeper" / "still")
    moved = DirPool(ID, "far", tmp_path / "deeper" / "still", home=tmp_path / "state")
    assert (await moved.attach(ONE)).layers[1] == base


async def test_a_damaged_volume_hides_no_other(pool: DirPool, root: Path) -> None:
    await pool.create(spec())
    (root / "volumes" / "two.qcow2").write_bytes(b"rubbish")
    found = await pool.volumes()
    assert {id: usage.provisioned for id, usage in found.items()} == {"one": 16 * MiB, "two": 0}
    with pytest.raises(Broken, match="damaged"):
        await pool.grow(VolumeId("two"), Bytes(GiB))
    with pytest.raises(Broken):
        await pool.attach(VolumeId("two"))


async def test_a_volume_in_use_does_not_grow(pool: DirPool) -> None:
    await pool.create(spec())
    path = (await pool.attach(ONE)).layers[0].uri
    user = await asyncio.create_subprocess_exec(
        "qemu-io", "-f", "qcow2", path, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert user.stdin is not None
    assert user.stdout is not None
    try:
        await asyncio.wait_for(user.stdout.readuntil(b"qemu-io>"), 30)
        with pytest.raises(Refused, match="lock"):
            await pool.grow(ONE, Bytes(GiB))
        assert (await DirPool(ID, "default", Path(path).parents[1]).attach(ONE)).layers[0].uri == path
    finally:
        user.stdin.close()
        await user.communicate()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 2 MiB, which only root can have."""
    path = tmp_path / "small"
    path.mkdir()
    os.system(f"mount -t tmpfs -o size=2m none {path}")
    assert path.is_mount()
    yield path
    os.system(f"umount {path}")


async def test_a_full_disk_leaves_nothing(small_disk: Path, base: Layer) -> None:
    pool = DirPool(ID, "default", small_disk / "pool", fresh=True, reserve=Bytes(0))
    await pool.open()
    with pytest.raises(Exhausted):
        await pool.create(spec(base, size=31 * GiB))
    assert names(small_disk / "pool") == [MARKER]
    await pool.create(spec(base))
    with pytest.raises(Exhausted):
        await pool.grow(ONE, Bytes(31 * GiB))
    path = (await pool.attach(ONE)).layers[0].uri
    await run(["qemu-img", "check", "-q", "-f", "qcow2", path], ok=frozenset({0, 3}))
    await run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", path, base.uri])
    assert (await pool.volumes())[ONE].provisioned == 16 * MiB
