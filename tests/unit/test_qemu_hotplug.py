import pytest

from atoll.base.errors import Refused
from atoll.base.ids import Bytes
from atoll.base.units import GiB, MiB
from atoll.instance.engines.qemu import hotplug
from tests.kit.plans import boot_plan, hardware

PLAN = boot_plan(hardware=hardware(max_cpus=4, max_memory=Bytes(1 * GiB)))


@pytest.mark.parametrize(
    ("cpus", "memory", "why"),
    [
        (1, 256 * MiB, "restart"),
        (2, 128 * MiB, "restart"),
        (5, 256 * MiB, "4 CPUs"),
        (2, 2 * GiB, "1GiB"),
        (2, 300 * MiB, "128MiB"),
    ],
)
def test_refused_with_the_reason(cpus: int, memory: int, why: str) -> None:
    with pytest.raises(Refused, match=why):
        hotplug.refuse(PLAN, cpus=cpus, memory=memory, has_cpus=2, has_memory=256 * MiB)


def test_allowed() -> None:
    hotplug.refuse(PLAN, cpus=4, memory=1 * GiB, has_cpus=2, has_memory=256 * MiB)
    hotplug.refuse(PLAN, cpus=2, memory=256 * MiB, has_cpus=2, has_memory=256 * MiB)


def test_some_machines_cannot() -> None:
    micro = boot_plan(hardware=hardware(machine="microvm"))
    with pytest.raises(Refused, match="microvm"):
        hotplug.refuse(micro, cpus=2, memory=256 * MiB, has_cpus=1, has_memory=256 * MiB)
    with pytest.raises(Refused, match="forkable"):
        hotplug.refuse(boot_plan(forkable=True), cpus=1, memory=512 * MiB, has_cpus=1, has_memory=256 * MiB)


def test_free_places_for_cpus_in_their_order() -> None:
    slots = [
        {"type": "qemu64-x86_64-cpu", "props": {"core-id": core, "thread-id": 0, "socket-id": 0}}
        for core in (3, 2, 1)
    ] + [{"type": "x", "props": {"core-id": 0}, "qom-path": "/machine/unattached/device[0]"}]
    devices = hotplug.cpus_to_add(slots, 2)
    assert [device["core-id"] for device in devices] == [1, 2]
    assert len({device["id"] for device in devices}) == 2
    assert devices[0]["driver"] == "qemu64-x86_64-cpu"
