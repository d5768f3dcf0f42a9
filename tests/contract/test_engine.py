"""The contract of an engine, on the fake and on real QEMU with a real guest."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from atoll.base.errors import Absent, Exists, Invalid, Lacking, Refused, Unreachable
from atoll.base.ids import Bytes, Generation, InstanceId, PortId, VolumeId, new_uuid
from atoll.base.units import MiB
from atoll.instance.engine import Furnish, Stream
from atoll.instance.model import Disk, Limits, Nic, State
from tests.kit.benches import SLOW, Bench, FakeBench, FullEngine, QemuBench, until
from tests.kit.containers import ContainerBench
from tests.kit.images import Image, tiny
from tests.kit.plans import hardware

NOBODY = InstanceId(new_uuid())
WANT = Furnish(
    arch="x86_64",
    machine="auto",
    accel="auto",
    cpus=2,
    memory=Bytes(512 * MiB),
    disks=(Disk(VolumeId("v"), "s", 0), Disk(VolumeId("w"), "t", 0)),
    nics=(Nic(PortId("p"), "default", "52:54:00:00:00:01", 0),),
)


@pytest.fixture(scope="session")
def image() -> Image:
    return tiny()


@pytest.fixture(params=["fake", "qemu", "container"])
def made_of(request: pytest.FixtureRequest) -> Image | str:
    """What the guests are made of. (Not asynchronous, as the building of images is.)"""
    made: Image | str = request.getfixturevalue("image") if request.param == "qemu" else request.param
    return made


MACHINES = pytest.mark.parametrize("made_of", ["fake", "qemu"], indirect=True)
"""For what is said of virtual hardware alone."""


@pytest.fixture
async def bench(made_of: Image | str, tmp_path: Path) -> AsyncIterator[Bench]:
    made: Bench
    if isinstance(made_of, Image):
        made = QemuBench(tmp_path, made_of)
    else:
        made = FakeBench() if made_of == "fake" else ContainerBench(tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def engine(bench: Bench) -> AsyncIterator[FullEngine]:
    made = await bench.engine()
    assert await made.adopt() == {}
    yield made
    await made.close()


async def test_a_started_guest_is_observed_and_told_of(bench: Bench, engine: FullEngine) -> None:
    plan, events = await bench.plan(), engine.events()
    await engine.start(plan)
    seen = (await engine.observe())[plan.id]
    assert (seen.state, seen.generation, seen.exit) == (State.RUNNING, 1, None)
    assert seen.pid > 0
    assert (await until(events, plan.id, State.RUNNING)).seen.pid == seen.pid


async def test_what_runs_cannot_be_started(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    before = (await engine.observe())[plan.id]
    with pytest.raises(Exists):
        await engine.start(plan)
    with pytest.raises(Exists):
        await engine.start(replace(plan, generation=Generation(2)))
    assert (await engine.observe())[plan.id].pid == before.pid


async def test_stopped_at_once(bench: Bench, engine: FullEngine) -> None:
    plan, events = await bench.plan(), engine.events()
    await engine.start(plan)
    await engine.stop(plan.id, grace=0)
    seen = (await engine.observe())[plan.id]
    assert seen.state is State.STOPPED
    assert seen.exit
    assert seen.exit.clean
    assert (await until(events, plan.id, State.STOPPED)).seen == seen


async def test_asked_to_stop_it_shuts_down(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    await engine.ready(plan.id, timeout=SLOW)
    await engine.stop(plan.id, grace=60)
    exit = (await engine.observe())[plan.id].exit
    assert exit
    assert (exit.clean, exit.reason) == (True, "the guest shut down")


async def test_paused_and_resumed(bench: Bench, engine: FullEngine) -> None:
    plan, events = await bench.plan(), engine.events()
    await engine.start(plan)
    await engine.pause(plan.id)
    assert (await engine.observe())[plan.id].state is State.PAUSED
    await until(events, plan.id, State.PAUSED)
    await engine.resume(plan.id)
    assert (await engine.observe())[plan.id].state is State.RUNNING
    await until(events, plan.id, State.RUNNING)


async def test_a_paused_guest_can_be_stopped(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    await engine.pause(plan.id)
    await engine.stop(plan.id, grace=0)
    assert (await engine.observe())[plan.id].state is State.STOPPED


async def test_nics_come_and_go_while_it_runs(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan(hardware=hardware())
    await engine.start(plan)
    slot = engine.place(plan.hardware)
    assert slot not in (plan.hardware.disks[0].slot, plan.hardware.nics[0].slot)
    added = await bench.nic(slot)
    await engine.ready(plan.id, timeout=SLOW)
    await engine.add_nic(plan.id, added)
    await engine.add_nic(plan.id, added)
    await engine.set_link(plan.id, slot, up=False)
    await engine.set_link(plan.id, slot, up=True)
    again = await bench.engine()
    await engine.close()
    await again.adopt()
    await again.remove_nic(plan.id, slot)
    await again.remove_nic(plan.id, slot)
    await again.stop(plan.id, grace=0)
    with pytest.raises((Absent, Refused)):
        await again.add_nic(plan.id, added)
    await again.close()


async def test_absent_is_success_where_something_ends(engine: FullEngine) -> None:
    await engine.stop(NOBODY, grace=5)
    await engine.forget(NOBODY)


async def test_absent_is_told_where_something_is_asked(engine: FullEngine) -> None:
    for call in (engine.pause, engine.resume, engine.console, engine.log, engine.stats):
        with pytest.raises(Absent):
            await call(NOBODY)
    with pytest.raises(Absent):
        await engine.resize(NOBODY, cpus=1, memory=Bytes(512 * MiB))
    with pytest.raises(Absent):
        await engine.limit(NOBODY, Limits())
    with pytest.raises(Absent):
        await engine.execute(NOBODY, ("true",))


async def test_forgotten_only_when_it_ended(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    with pytest.raises(Refused):
        await engine.forget(plan.id)
    await engine.stop(plan.id, grace=0)
    await engine.stop(plan.id, grace=0)
    assert isinstance(await engine.log(plan.id), bytes)
    await engine.forget(plan.id)
    assert await engine.observe() == {}
    with pytest.raises(Absent):
        await engine.log(plan.id)


async def test_started_again_with_the_next_generation(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    await engine.stop(plan.id, grace=0)
    await engine.start(replace(plan, generation=Generation(2)))
    assert (await engine.observe())[plan.id].generation == 2


async def test_a_death_is_news_within_a_second(bench: Bench, engine: FullEngine) -> None:
    plan, events = await bench.plan(), engine.events()
    await engine.start(plan)
    await bench.kill(plan.id)
    async with asyncio.timeout(1):
        event = await until(events, plan.id, State.STOPPED)
    assert event.seen.exit.reason == "killed by SIGKILL"
    assert not event.seen.exit.clean


async def test_the_next_engine_finds_it(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    before = (await engine.observe())[plan.id]
    await engine.close()
    second = await bench.engine()
    found = await second.adopt()
    assert found[plan.id].pid == before.pid
    assert found[plan.id].state is State.RUNNING
    with pytest.raises(Exists):
        await second.start(plan)
    events = second.events()
    await second.pause(plan.id)
    await until(events, plan.id, State.PAUSED)
    await second.stop(plan.id, grace=0)
    await until(events, plan.id, State.STOPPED)
    await second.close()


async def test_a_pause_is_found_too(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    await engine.pause(plan.id)
    await engine.close()
    second = await bench.engine()
    assert (await second.adopt())[plan.id].state is State.PAUSED
    await second.close()


async def test_a_death_while_nobody_looked_is_reported_until_forgotten(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    await engine.close()
    await bench.kill(plan.id)
    await asyncio.sleep(0.2)
    for _ in range(2):
        later = await bench.engine()
        seen = (await later.adopt())[plan.id]
        assert seen.state is State.STOPPED
        assert seen.exit
        assert not seen.exit.clean
        await later.close()
    last = await bench.engine()
    await last.adopt()
    await last.forget(plan.id)
    await last.close()
    fresh = await bench.engine()
    assert await fresh.adopt() == {}
    await fresh.close()


async def test_two_generations_alive_leave_the_newest(bench: Bench, engine: FullEngine) -> None:
    old = await bench.plan()
    await engine.start(old)
    await engine.close()
    other = await bench.engine()  # has not looked, as a daemon whose host was cut off
    new = replace(old, generation=Generation(2), disks=(await bench.plan()).disks)
    await other.start(new)
    await other.close()
    third = await bench.engine()
    found = await third.adopt()
    assert found[old.id].generation == 2
    await third.stop(old.id, grace=0)
    await third.forget(old.id)
    await third.close()
    assert await (await bench.engine()).adopt() == {}


async def test_programs_run_in_it(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    await engine.ready(plan.id, timeout=SLOW)
    assert (await engine.observe())[plan.id].agent
    assert (await engine.execute(plan.id, ("echo", "a", "b"))).stdout == b"a b\n"
    assert (await engine.execute(plan.id, ("cat",), input=b"\0\xff in")).stdout == b"\0\xff in"
    assert (await engine.execute(plan.id, ("false",))).code == 1
    assert b"COLOUR=blue\n" in (await engine.execute(plan.id, ("env",), env={"COLOUR": "blue"})).stdout
    with pytest.raises(Absent):
        await engine.execute(plan.id, ("no-such-program",))
    with pytest.raises(Unreachable):
        await engine.execute(plan.id, ("sleep", "5"), timeout=0.5)
    long = asyncio.create_task(engine.execute(plan.id, ("sleep", "2")))
    assert (await engine.execute(plan.id, ("echo", "meanwhile"))).stdout == b"meanwhile\n"
    assert not long.done()
    await long
    await engine.pause(plan.id)
    with pytest.raises(Refused):
        await engine.execute(plan.id, ("true",))


async def test_files_go_in_and_out(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    await engine.ready(plan.id, timeout=SLOW)
    content = bytes(range(256)) * 800

    async def chunks() -> AsyncIterator[bytes]:
        yield content[:100_000]
        yield content[100_000:]

    assert await engine.push(plan.id, "/root/file", chunks(), mode=0o600) == len(content)
    assert b"".join([part async for part in engine.pull(plan.id, "/root/file")]) == content
    with pytest.raises(Absent):
        _ = [part async for part in engine.pull(plan.id, "/no/such")]


async def test_every_console_sees_the_last_lines_and_what_comes(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    await engine.ready(plan.id, timeout=SLOW)
    first, second = await engine.console(plan.id), await engine.console(plan.id)
    assert await first.read()
    await first.write(b"echo se''en\n")
    await _reads(second, b"se")
    await first.close()
    await second.close()


async def _reads(stream: Stream, text: bytes) -> None:
    seen = b""
    async with asyncio.timeout(30):
        while text not in seen:
            more = await stream.read()
            assert more
            seen += more


async def test_it_is_measured(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    await asyncio.sleep(0.3)
    stats = await engine.stats(plan.id)
    assert stats.cpu_seconds > 0
    assert stats.memory > 0


@MACHINES
async def test_it_has_a_screen_and_a_drive(bench: Bench, engine: FullEngine) -> None:
    with pytest.raises(Absent):
        await engine.display(NOBODY)
    plan = await bench.plan()
    await engine.start(plan)
    assert plan.id in await engine.display(plan.id)
    assert (await engine.screenshot(plan.id)).startswith(b"\x89PNG")
    await engine.eject(plan.id)  # it has no drive: that is success
    with pytest.raises(Refused, match="no CD-ROM drive"):
        await engine.insert(plan.id, "/nowhere.iso")


async def test_limits_change_while_it_runs(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    await engine.limit(plan.id, Limits(cpu=0.5, cpu_weight=50))


@MACHINES
async def test_it_shrinks_or_outgrows_its_birth_only_at_the_next_start(bench: Bench, engine: FullEngine) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    for cpus, memory in ((64, plan.memory), (1, Bytes(plan.memory // 2))):
        with pytest.raises(Refused):
            await engine.resize(plan.id, cpus=cpus, memory=memory)


@MACHINES
async def test_hardware_is_resolved_at_birth(engine: FullEngine) -> None:
    made = await engine.furnish(WANT)
    assert made.machine.startswith("pc-q35-")
    assert made.accel == "tcg"
    assert made.max_cpus >= 2
    assert made.max_memory >= WANT.memory
    slots = [disk.slot for disk in made.disks] + [nic.slot for nic in made.nics]
    assert slots == sorted(set(slots))
    assert (await engine.furnish(replace(WANT, machine="pc"))).machine.startswith("pc-i440fx-")


@MACHINES
async def test_compatible_hardware_has_ahci_for_virtio(engine: FullEngine) -> None:
    more = Disk(VolumeId("v2"), "serial2", 0, named=True)
    disks = (*WANT.disks, replace(more, bus="scsi"))
    made = await engine.furnish(replace(WANT, style="compatible", disks=disks))
    assert [disk.bus for disk in made.disks] == ["ahci", "ahci", "scsi"]
    made = engine.seat(engine.seat(made, more), replace(more, bus="scsi"))
    assert [disk.bus for disk in made.disks[3:]] == ["ahci", "scsi"]


@MACHINES
async def test_hardware_that_cannot_be_is_refused(engine: FullEngine) -> None:
    with pytest.raises(Lacking):
        await engine.furnish(replace(WANT, arch="riscv64"))
    with pytest.raises(Lacking):
        await engine.furnish(replace(WANT, accel="kvm"))
    with pytest.raises(Invalid):
        await engine.furnish(replace(WANT, memory=Bytes(4096)))
