"""Where disks and NICs go, and which must wait for the next start."""

import pytest
from msgspec.structs import replace

from atoll.base.errors import Exhausted, Invalid
from atoll.base.ids import PortId, VolumeId
from atoll.instance.engines.qemu import argv, machine, nics, places
from atoll.instance.engines.qemu.argv import NicHanded
from atoll.instance.model import Disk, DiskPlan, Hardware, Nic, NicPlan
from atoll.network.model import Plugged
from atoll.storage.model import Attachment, Bus
from tests.kit.plans import boot_plan, hardware, user_nic

EIGHT = {f"slot{number}" for number in range(8)}


def disk(slot: int, bus: Bus = "virtio") -> DiskPlan:
    return DiskPlan("s", slot, Attachment(()), bus)


@pytest.mark.parametrize("kind", ["pc-q35-7.2", "pc-i440fx-7.2"])
def test_no_place_is_given_twice(kind: str) -> None:
    fixed: Hardware = hardware(machine=kind)
    count = machine.SLOTS[machine.family(kind)]
    for number in range(count - 2):
        if number % 2:
            fixed = machine.seat(fixed, Disk(VolumeId(f"v{number}"), "s", 0))
        else:
            nic = Nic(PortId(f"p{number}"), "n", "52:54:00:00:00:02", nics.free_slot(fixed))
            fixed = replace(fixed, nics=(*fixed.nics, nic))
    assert sorted([*(d.slot for d in fixed.disks), *(n.slot for n in fixed.nics)]) == list(range(count))
    with pytest.raises(Invalid, match=f"all {count} places"):
        nics.free_slot(fixed)
    with pytest.raises(Exhausted, match=f"all {count} places"):
        machine.seat(fixed, Disk(VolumeId("v"), "s", 0))


@pytest.mark.parametrize(
    ("kind", "style", "wanted", "why"),
    [
        ("pc-q35-7.2", "virtio", disk(7), ""),
        ("pc-q35-7.2", "virtio", user_nic(7), ""),
        ("pc-q35-7.2", "virtio", disk(8), "without port 8"),
        ("pc-q35-7.2", "virtio", user_nic(8), "without port 8"),
        ("pc-q35-7.2", "compatible", user_nic(3), "an e1000 of a q35"),
        ("pc-i440fx-7.2", "compatible", user_nic(3), ""),
        ("pc-i440fx-7.2", "virtio", disk(9), ""),
        ("pc-i440fx-7.2", "virtio", disk(9, "ahci"), "a disk on ahci"),
        ("microvm", "virtio", user_nic(3), "no NIC"),
        ("microvm", "virtio", disk(3), "no disk"),
    ],
)
def test_what_must_wait(kind: str, style: str, wanted: DiskPlan | NicPlan, why: str) -> None:
    plan = boot_plan(hardware=hardware(machine=kind, style=style))
    there = EIGHT if "q35" in kind else set()
    found = places.waits(plan, wanted, there)
    assert why in found
    assert bool(why) == bool(found)


def test_a_nic_that_is_plugged_in_is_that_of_the_command_line() -> None:
    wanted = NicPlan("52:54:00:00:00:03", 4, Plugged("tap", link="tap1", mtu=1450))
    backend, device = nics.arguments(argv.nic(boot_plan(), wanted, NicHanded(fd=9)))
    assert backend == {"type": "tap", "id": "net4", "fd": "9"}
    assert (device["driver"], device["bus"], device["host_mtu"]) == ("virtio-net-pci", "slot4", 1450)
    old = boot_plan(hardware=hardware(machine="pc-i440fx-7.2", style="compatible"))
    _, device = nics.arguments(argv.nic(old, wanted, NicHanded(fd=9)))
    assert (device["driver"], device["bus"], device["addr"]) == ("e1000", "pci.0", "14.0")
