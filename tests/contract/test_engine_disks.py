"""What an engine promises of disks that come and go (engine.Disks), on the fake and on real QEMU."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from atoll.base.errors import Absent, AtollError, Exhausted, Refused
from atoll.base.ids import Bytes, VolumeId
from atoll.base.units import MiB
from atoll.instance.model import Disk, Hardware
from tests.kit.benches import SLOW, Bench, FakeBench, FullEngine, QemuBench
from tests.kit.images import Image, tiny
from tests.kit.plans import hardware

SLOT = 3


@pytest.fixture(scope="session")
def image() -> Image:
    return tiny()


@pytest.fixture(params=["fake", "qemu"])
def made_of(request: pytest.FixtureRequest) -> Image | None:
    return request.getfixturevalue("image") if request.param == "qemu" else None


@pytest.fixture
async def bench(made_of: Image | None, tmp_path: Path) -> AsyncIterator[Bench]:
    made: Bench = QemuBench(tmp_path, made_of) if made_of else FakeBench()
    yield made
    await made.close()


@pytest.fixture
async def engine(bench: Bench) -> FullEngine:
    made = await bench.engine()
    await made.adopt()
    return made


async def test_a_disk_comes_and_goes_and_a_new_engine_knows(bench: Bench, engine: FullEngine) -> None:
    plan, disk = await bench.plan(), await bench.empty_disk(SLOT)
    await engine.start(plan)
    await engine.add_disk(plan.id, disk)
    await engine.add_disk(plan.id, disk)
    bench.cling(plan.id, SLOT)
    with pytest.raises(Refused, match="did not let go"):
        await engine.remove_disk(plan.id, SLOT, timeout=0.3)
    await engine.grow_disk(plan.id, SLOT, Bytes(32 * MiB))
    if isinstance(bench, FakeBench):
        return
    await engine.ready(plan.id, timeout=SLOW)
    await engine.close()
    later = await bench.engine()
    await later.adopt()
    size = await later.execute(plan.id, ("cat", "/sys/block/vdb/size"))
    assert size.stdout == f"{32 * MiB // 512}\n".encode()
    assert await later.mounts(plan.id, SLOT) == ()
    await later.execute(
        plan.id, ("sh", "-c", "mke2fs -q /dev/vdb && mount /dev/vdb /mnt && mount --bind /mnt /srv")
    )
    assert set(await later.mounts(plan.id, SLOT)) >= {"/mnt"}
    await later.execute(plan.id, ("umount", "/srv", "/mnt"))
    for _ in range(2):
        await later.remove_disk(plan.id, SLOT, timeout=SLOW)
    await later.add_disk(plan.id, disk)
    await later.remove_disk(plan.id, SLOT, timeout=SLOW)
    await later.remove_disk(plan.id, SLOT, timeout=SLOW)


async def test_what_cannot_be_live_is_refused_and_leaves_nothing(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    disk = await bench.empty_disk(SLOT, "ahci")
    for _ in range(2):
        with pytest.raises(Refused) as caught:
            await engine.add_disk(plan.id, disk)
        assert caught.value.field == "bus"
    await engine.add_disk(plan.id, await bench.empty_disk(SLOT))
    await engine.pause(plan.id)
    with pytest.raises(Refused, match="paused"):
        await engine.remove_disk(plan.id, SLOT, timeout=0.3)
    await engine.stop(plan.id, grace=0)
    with pytest.raises(Absent):
        await engine.add_disk(plan.id, disk)
    with pytest.raises(Absent):
        await engine.remove_disk(plan.id, SLOT, timeout=1)


async def test_absent_is_success_where_a_disk_goes(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    await engine.remove_disk(plan.id, 5, timeout=1)
    assert await engine.mounts(plan.id, 5) == ()


def test_seats_are_given_out_once(made_of: Image | None, tmp_path: Path) -> None:
    from tests.kit.fake_engine import FakeEngine

    made: Hardware = hardware()
    seat = FakeEngine().seat if made_of is None else _qemu_seat
    for _ in range(14):
        made = seat(made, Disk(VolumeId("v"), "s", 0))
    slots = [disk.slot for disk in made.disks] + [nic.slot for nic in made.nics]
    assert len(set(slots)) == len(slots) == 16
    with pytest.raises(Exhausted):
        seat(made, Disk(VolumeId("v"), "s", 0))


def _qemu_seat(made: Hardware, disk: Disk) -> Hardware:
    from atoll.instance.engines.qemu.machine import seat

    with contextlib.suppress(AtollError):
        seat(hardware(machine="microvm"), Disk(VolumeId("v"), "s", 0, "scsi"))
        raise AssertionError("a microvm has no scsi")
    return seat(made, disk)
