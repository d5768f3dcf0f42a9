"""Real deaths, told apart; and what a start or a daemon that did not finish leaves: nothing."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop
from msgspec.structs import replace

from atoll.base.errors import AtollError, Refused
from atoll.base.ids import Generation
from atoll.base.units import MiB
from atoll.host import process
from atoll.host.cgroups import Bounds
from atoll.instance.engines.qemu import adopt, rundir, spawn
from atoll.instance.engines.qemu.engine import Qemu
from atoll.instance.engines.qemu.rundir import Handle, RunDir
from atoll.instance.model import BootPlan, DirectBoot, DiskPlan, Exit, State
from atoll.storage.model import Attachment, Layer
from tests.kit.benches import SLOW, QemuBench, booted, ended, gone, until
from tests.kit.images import Image, tiny


@pytest.fixture(scope="session")
def image() -> Image:
    return tiny()


@pytest.fixture
async def bench(image: Image, tmp_path: Path) -> AsyncIterator[QemuBench]:
    made = QemuBench(tmp_path, image)
    yield made
    await made.close()
    assert not adopt.living(made.tag, made.cgroups)
    assert rundir.all_in(made.run, made.tag) == []


@pytest.fixture
async def engine(bench: QemuBench) -> Qemu:
    made = await bench.engine()
    await made.adopt()
    return made


async def away(bench: QemuBench, engine: Qemu, plan: BootPlan, how: str) -> Exit:
    """How an engine that was not there judges an end."""
    pid = (await engine.observe())[plan.id].pid
    if how == "poweroff":
        await engine.execute(plan.id, ("sh", "-c", "(sleep 1; poweroff) >/dev/null 2>&1 &"))
    await engine.close()
    if how != "poweroff":
        os.kill(pid, signal.Signals[how])
    await gone(pid)
    later = await bench.engine()
    return (await later.adopt())[plan.id].exit or Exit("none", False, Exit.__name__)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "reason", "clean"),
    [
        ("poweroff", "the guest shut down", True),
        ("SIGKILL", "killed or crashed", False),
        ("SIGTERM", "ended by a signal from the host: SIGTERM", False),
    ],
)
async def test_ends_are_told_apart_by_who_was_away(
    bench: QemuBench, engine: Qemu, how: str, reason: str, clean: bool
) -> None:
    plan = await booted(bench, engine)
    await engine.execute(plan.id, ("sh", "-c", "echo here >/dev/ttyS0"))
    exit = await away(bench, engine, plan, how)
    assert reason in exit.reason
    assert exit.clean is clean
    assert exit.lines


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "killed by SIGKILL"),
        (signal.SIGSEGV, "QEMU crashed (SIGSEGV)"),
        (signal.SIGTERM, "ended by a signal from the host"),
    ],
)
async def test_ends_are_told_apart_while_we_look(
    bench: QemuBench, engine: Qemu, number: signal.Signals, reason: str
) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    os.kill((await engine.observe())[plan.id].pid, number)
    assert reason in (await ended(engine, plan.id)).reason


async def test_out_of_memory_is_told(bench: QemuBench, engine: Qemu) -> None:
    assert bench.cgroups, "root may make control groups"
    plan = await booted(bench, engine)
    name = f"{plan.id}.1"
    used = bench.cgroups.usage(name).memory
    await bench.cgroups.change(name, Bounds(memory=used + 8 * MiB))
    with contextlib.suppress(AtollError):
        await engine.execute(plan.id, ("sh", "-c", "dd if=/dev/zero of=/run/fill bs=1M count=80"), timeout=SLOW)
    exit = await ended(engine, plan.id)
    assert "out of memory" in exit.reason
    assert not exit.clean


async def test_a_panic_is_told(bench: QemuBench, engine: Qemu) -> None:
    plan = await booted(bench, engine)
    await engine.execute(plan.id, ("modprobe", "pvpanic-pci"))
    with contextlib.suppress(AtollError):
        await engine.execute(plan.id, ("sh", "-c", "sleep 0.2; echo c > /proc/sysrq-trigger"), timeout=SLOW)
    exit = await ended(engine, plan.id)
    assert exit.reason == "the guest's kernel panicked"
    assert any("sysrq" in line or "TASK" in line or "panic" in line for line in exit.lines), exit


async def test_what_cannot_start_leaves_nothing(bench: QemuBench, engine: Qemu) -> None:
    plan = await bench.plan()
    assert plan.boot is not None
    bad_kernel = replace(plan, boot=DirectBoot("/etc/hostname", plan.boot.initrd, ""))
    bad_disk = replace(plan, disks=(DiskPlan("s", 0, Attachment((Layer("/etc/hostname", "qcow2"),))),))
    no_disk = replace(plan, disks=(DiskPlan("s", 0, Attachment((Layer("/no/such", "qcow2"),))),))
    for wrong in (bad_kernel, bad_disk, no_disk):
        with pytest.raises(AtollError) as caught:
            await engine.start(wrong)
        assert caught.value.message
        assert await engine.observe() == {}
        assert rundir.all_in(bench.run, bench.tag) == []
        assert not adopt.living(bench.tag, bench.cgroups)
        assert not bench.cgroups or not bench.cgroups.names()
    await engine.start(plan)


async def test_a_disk_in_use_is_refused(bench: QemuBench, engine: Qemu) -> None:
    plan, other = await bench.plan(), await bench.plan()
    await engine.start(plan)
    with pytest.raises(Refused, match="in use"):
        await engine.start(replace(other, disks=plan.disks))


async def test_cancelled_at_any_moment_it_leaves_nothing(bench: QemuBench, engine: Qemu) -> None:
    for delay in (0, 0.001, 0.01, 0.03, 0.06):
        task = asyncio.create_task(engine.start(await bench.plan()))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if task.cancelled():
            assert await engine.observe() == {}
            assert not adopt.living(bench.tag, bench.cgroups)
        for guest in await engine.observe():
            await engine.stop(guest, grace=0)
            await engine.forget(guest)


async def test_a_half_made_start_is_ended(bench: QemuBench, engine: Qemu) -> None:
    """A daemon killed between fork and handle, or before `cont`: nobody knows that guest, so it must not live."""
    plan = await bench.plan()
    run = RunDir(bench.run, plan.id, plan.generation, bench.tag)
    run.make(plan.uid)
    run.write(Handle(plan, process.boot_id()))
    orphan = spawn.spawn(plan, run, bench.cgroups, tag=bench.tag, tsc_khz=0)
    later = await bench.engine()
    assert await later.adopt() == {}
    assert await orphan.wait(5)
    orphan.close()
    frozen = replace(plan, generation=Generation(2))
    run = RunDir(bench.run, frozen.id, frozen.generation, bench.tag)
    run.make(frozen.uid)
    known = spawn.spawn(frozen, run, bench.cgroups, tag=bench.tag, tsc_khz=0)
    run.write(Handle(frozen, process.boot_id(), known.pid, known.started))
    await later.close()
    assert await (await bench.engine()).adopt() == {}
    assert await known.wait(5)
    known.close()


async def test_an_orphan_without_a_directory_is_ended(bench: QemuBench, engine: Qemu) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    pid = (await engine.observe())[plan.id].pid
    await engine.close()
    RunDir(bench.run, plan.id, plan.generation, bench.tag).remove()
    assert await (await bench.engine()).adopt() == {}
    await gone(pid)


async def test_after_a_reboot_of_the_host(bench: QemuBench, engine: Qemu) -> None:
    plan = await bench.plan()
    run = RunDir(bench.run, plan.id, plan.generation, bench.tag)
    run.make(None)
    run.write(Handle(plan, "another-boot", os.getpid(), 1))
    seen = (await (await bench.engine()).adopt())[plan.id]
    assert seen.exit
    assert seen.exit.reason == "the host was restarted"


def test_a_daemon_of_its_own_killed_leaves_the_guest(image: Image, tmp_path: Path) -> None:
    """The whole of it on uvloop, as in production: one process starts and is killed, another adopts."""
    bench = QemuBench(tmp_path, image)
    script = (
        "import asyncio, sys, uvloop, msgspec\nfrom pathlib import Path\n"
        "from atoll.host import cgroups\nfrom atoll.instance.engines.qemu.engine import Qemu\n"
        "from atoll.instance.model import BootPlan\nfrom tests.kit.benches import tcg\n"
        "async def main():\n"
        "    tag, run = sys.argv[1:3]\n"
        "    engine = Qemu(Path(run), host_tag=tag, cgroups=cgroups.detect(tag), accel=tcg)\n"
        "    await engine.adopt()\n"
        "    await engine.start(msgspec.json.decode(sys.stdin.buffer.read(), type=BootPlan))\n"
        "    print('running', flush=True)\n    await asyncio.sleep(1000)\n"
        "uvloop.run(main())\n"
    )

    async def check() -> None:
        import msgspec

        plan = await bench.plan()
        daemon = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, bench.tag, str(bench.run), stdin=-1, stdout=-1
        )
        assert daemon.stdin
        assert daemon.stdout
        daemon.stdin.write(msgspec.json.encode(plan))
        daemon.stdin.write_eof()
        assert await asyncio.wait_for(daemon.stdout.readline(), 60) == b"running\n"
        daemon.kill()
        await daemon.wait()
        engine = await bench.engine()
        assert (await engine.adopt())[plan.id].state is State.RUNNING
        await engine.ready(plan.id, timeout=SLOW)
        assert (await engine.execute(plan.id, ("true",))).code == 0
        events = engine.events()
        os.kill((await engine.observe())[plan.id].pid, signal.SIGKILL)
        await asyncio.wait_for(until(events, plan.id, State.STOPPED), 1)
        await bench.close()

    uvloop.run(check())
