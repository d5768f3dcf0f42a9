"""How an instance boots, how far its cloud-init is, what a disk's table says: pure decisions."""

from typing import Any

import pytest

from atoll.base.errors import Invalid
from atoll.base.ids import Bytes, Digest
from atoll.base.names import image_name
from atoll.base.units import GiB
from atoll.image.model import File, Manifest
from atoll.image.recipes import bootdisk
from atoll.instance.boots import choose, seeded
from atoll.instance.cloudstate import judged
from atoll.instance.model import InstanceSpec

FILE = File(Digest("sha256:" + "0" * 64), Bytes(1))


def manifest(firmware: str, *roles: str) -> Manifest:
    return Manifest(arch="x86_64", files=dict.fromkeys(("disk", *roles), FILE), firmware=firmware)


TINY = manifest("", "kernel", "initrd")
DEBIAN = manifest("any", "kernel", "initrd")
CLOUD, WINDOWS = manifest("any"), manifest("uefi")


@pytest.mark.parametrize(
    ("image", "wanted", "way"),
    [
        (TINY, {}, "direct"),
        (DEBIAN, {}, "direct"),
        (DEBIAN, {"firmware": "uefi"}, "uefi"),
        (DEBIAN, {"hardware": "compatible"}, "bios"),
        (DEBIAN, {"cdrom": "x", "boot_cdrom": True}, "bios"),
        (CLOUD, {}, "bios"),
        (WINDOWS, {}, "uefi"),
        (None, {}, "bios"),
        (None, {"firmware": "uefi"}, "uefi"),
        (TINY, {"firmware": "bios", "cdrom": "x"}, "bios"),
    ],
)
def test_how_it_boots(image: Manifest | None, wanted: dict[str, Any], way: str) -> None:
    assert choose(InstanceSpec(image="x", **wanted), image) == way


@pytest.mark.parametrize(
    ("image", "firmware", "said"),
    [
        (TINY, "bios", "no bootloader for BIOS"),
        (WINDOWS, "bios", "it boots by UEFI"),
        (CLOUD, "direct", "no kernel to boot directly"),
        (None, "direct", "no kernel to boot directly"),
    ],
)
def test_how_it_cannot_boot(image: Manifest | None, firmware: Any, said: str) -> None:
    with pytest.raises(Invalid, match=said) as caught:
        choose(InstanceSpec(image="x", firmware=firmware), image)
    assert caught.value.field == "spec.firmware"
    assert caught.value.hint


def test_who_gets_a_seed() -> None:
    spec = InstanceSpec(image="x")
    assert seeded(spec, DEBIAN, "")
    assert not seeded(spec, TINY, "")
    assert seeded(spec, TINY, "given")
    assert seeded(InstanceSpec(image="x", ssh_keys=("ssh-rsa A",)), TINY, "")
    assert not seeded(spec, None, "")


@pytest.mark.parametrize(
    ("status", "result", "state", "errors"),
    [
        ({"v1": {"stage": "init-local", "init": {"errors": []}}}, None, "running", ()),
        ({"v1": {"stage": None, "init": {"errors": []}}}, {"v1": {"errors": []}}, "done", ()),
        ({"v1": {"final": {"errors": ["boom"]}}}, {"v1": {"errors": ["boom", "bang"]}}, "failed", ("boom", "bang")),
        ({"v1": {"init": {"recoverable_errors": {"ERROR": ["x"], "WARNING": ["y"]}}}}, {}, "failed", ("x",)),
        ({"v1": [1]}, {"v1": "?"}, "done", ()),
        ({"v1": {"stage": 7, "init": {"errors": "many"}}}, None, "running", ()),
        ({"v1": {"init": {"errors": ["e" * 5000] * 99}}}, {}, "failed", ("e" * 1000,) * 16),
    ],
)  # fmt: skip
def test_how_far_cloud_init_is(status: Any, result: Any, state: str, errors: tuple[str, ...]) -> None:
    found = judged(status, result)
    assert (found.status, found.errors) == (state, errors)


def test_names_of_recipes_and_images() -> None:
    assert [image_name(ref) for ref in ("tiny", "debian/12", "ubuntu/24.04")] == [
        "tiny",
        "debian-12",
        "ubuntu-24-04",
    ]
    assert image_name("sha256:ab") == "sha256:ab"
    assert image_name("a/b/c") == "a/b/c"


def test_the_root_partition_is_last_and_ends_before_the_second_table() -> None:
    ids = bootdisk.Ids(disk="d", bios="b", esp="e", root="r", volume="0")
    lines = bootdisk.table(3 * GiB, ids).splitlines()
    places = {}
    for line in lines[3:]:
        number, _, rest = line.partition(" : ")
        fields = dict(pair.split("=") for pair in rest.split(", "))
        places[int(number)] = (int(fields["start"]), int(fields["start"]) + int(fields["size"]))
    assert places[14][1] <= places[15][0] < places[15][1] <= places[1][0]
    assert places[1][1] * 512 == 3 * GiB - (1 << 20)
    assert all(start % 2048 == 0 for start, _ in places.values())
