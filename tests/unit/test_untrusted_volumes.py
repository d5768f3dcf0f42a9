"""Volumes and bases that a guest, or its QEMU, has written to: no format is guessed, no name in them followed."""

import os
import struct
from pathlib import Path

import pytest

from atoll.base.errors import Broken
from atoll.base.ids import Bytes, PoolId, VolumeId
from atoll.base.units import MiB
from atoll.storage.drivers.dir import DirPool
from atoll.storage.model import Layer, VolumeSpec
from tests.kit import evil
from tests.kit.evil import qemu_img

ID, ONE = PoolId("the-pool"), VolumeId("one")


@pytest.fixture
def base(tmp_path: Path) -> Layer:
    path = tmp_path / "state" / "images" / "base.raw"
    path.parent.mkdir(parents=True)
    path.write_bytes(os.urandom(MiB))
    return Layer(str(path), "raw", read_only=True)


def spec(*base: Layer, size: int = 16 * MiB) -> VolumeSpec:
    return VolumeSpec(ONE, Bytes(size), base)


async def test_a_raw_base_with_a_qcow2_header_gains_nothing_cve_2026_24708(tmp_path: Path) -> None:
    """Nova let qemu-img guess the format of a guest's raw disk when it grew it: a guest that had written a qcow2
    header into it read files of the host. (CVE-2008-2004 is the first of that kind.)"""
    evil_disk = tmp_path / "state" / "images" / "evil.raw"
    evil_disk.parent.mkdir(parents=True)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", evil_disk, "1G")
    written = evil_disk.read_bytes()
    pool = DirPool(ID, "default", tmp_path / "state" / "pool", home=tmp_path / "state", fresh=True)
    await pool.open()
    await pool.create(spec(Layer(str(evil_disk), "raw", read_only=True), size=64 * MiB))
    later = DirPool(ID, "default", tmp_path / "state" / "pool", home=tmp_path / "state")
    own, below = (await later.attach(ONE)).layers
    assert (below.uri, below.format) == (str(evil_disk), "raw")
    await later.grow(ONE, Bytes(96 * MiB))
    assert len((await later.attach(ONE)).layers) == 2
    flat = tmp_path / "flat"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", own.uri, flat)
    assert flat.read_bytes()[: len(written)] == written  # its own bytes, and no file's that they name


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("-b", "/etc/passwd", "-F", "raw"), "not as it was made"),
        (("-b", "../../../images/../../etc/passwd", "-F", "raw"), "not as it was made"),
        (("-b", "../../images/base.raw"), "not guessed"),
        (("-b", "../../images/base.raw", "-F", "nbd"), "not guessed"),
        (("-b", "one.qcow2", "-F", "qcow2"), "stands on itself"),
        (("-o", "data_file=/tmp/x"), "not as it was made"),
    ],
)
async def test_a_volume_whose_header_its_qemu_rewrote_is_not_followed(
    tmp_path: Path, base: Layer, options: tuple[str, ...], why: str
) -> None:
    """A QEMU that a guest has taken over may write anything into the file of its own volume."""
    pool = DirPool(ID, "default", tmp_path / "state" / "pool", home=tmp_path / "state", fresh=True)
    await pool.open()
    await pool.create(spec(base))
    path = Path((await pool.attach(ONE)).layers[0].uri)
    qcow2_with(path, *options)
    later = DirPool(ID, "default", tmp_path / "state" / "pool", home=tmp_path / "state")
    with pytest.raises(Broken, match=why):
        await later.attach(ONE)


def qcow2_with(path: Path, *options: str) -> None:
    """A qcow2 with these options in its header; nothing that they name is opened or made."""
    data = [option for option in options if option.startswith("data_file")]
    if data:  # qemu-img would make the file: an extension by hand
        header_length = evil.fields(path)["header_length"]
        evil.poke(
            evil.change(path, incompatible=4), header_length, struct.pack(">II", 0x44415441, 6) + b"/tmp/x\0\0"
        )
        return
    named = "-F" in options
    qemu_img("create", "-q", "-u", "-f", "qcow2", *options, *(() if named else ("-F", "raw")), path, "8M")
    if not named:  # qemu-img makes none without: the format's name becomes an extension nobody knows
        evil.poke(path, path.read_bytes().index(b"\xe2\x79\x2a\xca"), b"\x11")
