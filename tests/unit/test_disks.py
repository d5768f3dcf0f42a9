"""The door to qemu-img, on real images."""

import os
from pathlib import Path

import pytest

from atoll.base.errors import Absent, Broken, Refused
from atoll.base.units import GiB, MiB
from atoll.host import disks
from atoll.host.disks import Tuning
from atoll.host.run import run
from atoll.storage.layers import read_layers
from atoll.storage.model import Layer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.raw"
    path.write_bytes(os.urandom(3 * MiB))
    return path


async def qemu_io(path: Path, *commands: str) -> str:
    return (await run(["qemu-io", "-f", "qcow2", *(f"-c{command}" for command in commands), str(path)])).text


@pytest.mark.parametrize("size", [8 * MiB, disks.METADATA_UP_TO + GiB])
async def test_an_overlay_is_whole_and_reads_as_its_base(tmp_path: Path, base: Path, size: int) -> None:
    over = tmp_path / "over.qcow2"
    await disks.create_overlay(over, size, backing=str(base), backing_format="raw")
    await run(["qemu-img", "check", "-q", "-f", "qcow2", str(over)])
    await run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", str(over), str(base)])
    assert over.stat().st_blocks * 512 < 8 * MiB


async def test_writes_stay_in_the_overlay(tmp_path: Path, base: Path) -> None:
    before, over = base.read_bytes(), tmp_path / "over.qcow2"
    await disks.create_overlay(over, 8 * MiB, backing=str(base), backing_format="raw")
    await qemu_io(over, "write -P 7 1M 4k", "write -P 9 5M 4k")
    said = await qemu_io(over, "read -P 7 1M 4k", "read -P 9 5M 4k", "read -P 0 6M 4k")
    assert "verification failed" not in said
    assert base.read_bytes() == before
    await run(["qemu-img", "check", "-q", "-f", "qcow2", str(over)])


async def test_info_names_format_size_and_base(tmp_path: Path, base: Path) -> None:
    over = tmp_path / "over.qcow2"
    await disks.create_overlay(over, 8 * MiB, backing="base.raw", backing_format="raw")
    info = await disks.info(over, "qcow2")
    assert (info.format, info.virtual_size, info.backing_format) == ("qcow2", 8 * MiB, "raw")
    assert (info.backing, info.outside) == ("base.raw", "")
    top, bottom = read_layers(over, "qcow2", [tmp_path])
    assert top == Layer(str(over), "qcow2")
    assert bottom == Layer(str(base), "raw", read_only=True)


async def test_a_raw_disk_is_never_probed(tmp_path: Path) -> None:
    """A guest that writes a qcow2 header into its raw disk would otherwise choose what we open."""
    path = tmp_path / "evil.raw"
    await run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1G"])
    info = await disks.info(path, "raw")
    assert info.format == "raw"
    assert info.virtual_size < GiB


@pytest.mark.parametrize("to", [4 * GiB, disks.METADATA_UP_TO + GiB])
async def test_resize_keeps_the_content_and_the_tuning(tmp_path: Path, base: Path, to: int) -> None:
    over = tmp_path / "over.qcow2"
    await disks.create_overlay(over, 8 * MiB, backing=str(base), backing_format="raw")
    await disks.resize(over, "qcow2", to)
    assert (await disks.info(over, "qcow2")).virtual_size == to
    await run(["qemu-img", "check", "-q", "-f", "qcow2", str(over)])
    await run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", str(over), str(base)])


async def test_resize_of_a_large_disk(tmp_path: Path, base: Path) -> None:
    over = tmp_path / "over.qcow2"
    await disks.create_overlay(over, disks.METADATA_UP_TO + GiB, backing=str(base), backing_format="raw")
    await disks.resize(over, "qcow2", disks.METADATA_UP_TO + 2 * GiB)
    assert (await disks.info(over, "qcow2")).virtual_size == disks.METADATA_UP_TO + 2 * GiB


async def test_resize_never_shrinks(tmp_path: Path, base: Path) -> None:
    with pytest.raises(Refused):
        await disks.resize(base, "raw", MiB)
    assert base.stat().st_size == 3 * MiB


async def test_an_absent_file_and_a_wrong_format(tmp_path: Path, base: Path) -> None:
    with pytest.raises(Absent):
        await disks.info(tmp_path / "nothing", "raw")
    with pytest.raises(Broken, match="not in qcow2 format"):
        await disks.info(base, "qcow2")
    with pytest.raises(Absent):
        await disks.create_overlay(tmp_path / "o", MiB, backing=str(tmp_path / "nothing"), backing_format="raw")


async def test_measure_tells_what_a_conversion_takes(base: Path) -> None:
    room = await disks.measure(base, "raw", to="qcow2")
    assert 3 * MiB < room.required <= room.full < 4 * MiB


def test_large_disks_are_made_quickly() -> None:
    assert disks.tuning(disks.METADATA_UP_TO) is Tuning.QUICK_WRITES
    assert disks.tuning(disks.METADATA_UP_TO + 1) is Tuning.QUICK_CREATE
