"""What every pool whose volumes leave and come as whole files promises (storage.pool.Streams)."""

import subprocess
from pathlib import Path

import pytest

from atoll.base.errors import Absent, Exhausted, Exists
from atoll.base.ids import Bytes
from atoll.base.units import MiB
from atoll.storage.model import VolumeFormat
from atoll.storage.pool import PoolDriver, Streams
from tests.contract.test_pool import FORMATS, ONE, TWO, Rig, btrfs_disk, pool, rig, spec

__all__ = ["btrfs_disk", "pool", "rig"]


def ignore(_: int) -> None:
    return None


def streams(pool: PoolDriver) -> Streams:
    assert isinstance(pool, Streams)
    return pool


def said(path: Path) -> str:
    return subprocess.run(["qemu-img", "info", str(path)], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("format", FORMATS)
async def test_it_leaves_and_comes_whole(
    rig: Rig, pool: PoolDriver, tmp_path: Path, format: VolumeFormat, compress: bool
) -> None:
    base = (rig.base,) if format == "thin" else ()
    await pool.create(spec(ONE, 64 * MiB, *base, format=format))
    top = (await pool.attach(ONE)).layers[0]
    real = Path(top.uri).exists()
    if real:
        writing = ["qemu-io", "-f", top.format, "-c", "write -P 7 8M 2M", top.uri]
        subprocess.run(writing, check=True, stdout=subprocess.DEVNULL)
    file = tmp_path / "out.qcow2"
    await streams(pool).copy_out(ONE, file, compress=compress, told=ignore)
    assert "backing file" not in said(file)
    await streams(pool).copy_in(spec(TWO, 64 * MiB, format=format), file, told=ignore)
    usage = (await pool.volumes())[TWO]
    assert usage.provisioned == 64 * MiB
    assert (usage.allocated >= 64 * MiB) == (format == "full")
    below = (await pool.attach(TWO)).layers
    assert len(below) == 1, "it stands on nothing"
    if real:
        one = ["qemu-img", "compare", "-f", top.format, "-F", below[0].format, top.uri, below[0].uri]
        assert "identical" in subprocess.run(one, capture_output=True, text=True).stdout


async def test_absent_taken_and_full_leave_nothing(rig: Rig, pool: PoolDriver, tmp_path: Path) -> None:
    with pytest.raises(Absent):
        await streams(pool).copy_out(ONE, tmp_path / "none", compress=False, told=ignore)
    await pool.create(spec(ONE, 32 * MiB))
    file = tmp_path / "out.qcow2"
    await streams(pool).copy_out(ONE, file, compress=False, told=ignore)
    with pytest.raises(Exists):
        await streams(pool).copy_in(spec(ONE, 32 * MiB), file, told=ignore)
    full = rig.full()
    await full.open()
    with pytest.raises(Exhausted):
        await streams(full).copy_in(spec(TWO, 32 * MiB), file, told=ignore)
    assert set(await pool.volumes()) == {ONE}


async def test_what_cannot_be_copied_in_leaves_nothing(tmp_path: Path) -> None:
    """A disk with more on it than it was said to have."""
    from atoll.base.errors import AtollError
    from atoll.base.ids import PoolId
    from atoll.storage.drivers.dir import DirPool

    made = DirPool(PoolId("p"), "p", tmp_path / "pool", fresh=True)
    await made.open()
    broken = tmp_path / "broken.qcow2"
    broken.write_bytes(b"QFI\xfb" + bytes(1000))
    with pytest.raises(AtollError):
        await made.copy_in(spec(ONE, Bytes(32 * MiB)), broken, told=ignore)
    assert await made.volumes() == {}
    assert list((tmp_path / "pool" / "volumes").iterdir()) == []
