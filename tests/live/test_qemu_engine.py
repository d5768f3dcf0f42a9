"""What only real QEMU can show: deaths told apart, half-made starts, full disks, growth, long paths, both loops."""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import uvloop
from msgspec.structs import replace

from atoll.base.errors import AtollError, Refused
from atoll.base.ids import Bytes, Generation, InstanceId
from atoll.base.units import MiB
from atoll.host import process, sockets
from atoll.host.cgroups import Bounds
from atoll.instance.engines.qemu import adopt, rundir, spawn
from atoll.instance.engines.qemu.engine import Qemu
from atoll.instance.engines.qemu.guest import NO_SPACE
from atoll.instance.engines.qemu.rundir import Handle, RunDir
from atoll.instance.model import BootPlan, DirectBoot, DiskPlan, Exit, Limits, State
from atoll.storage.model import Attachment, Layer
from tests.kit.benches import SLOW, QemuBench, until
from tests.kit.images import Image, tiny
from tests.kit.plans import hardware


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


async def booted(bench: QemuBench, engine: Qemu, **changes: object) -> BootPlan:
    plan = await bench.plan(**changes)
    await engine.start(plan)
    await engine.ready(plan.id, timeout=SLOW)
    return plan


async def ended(engine: Qemu, guest: InstanceId) -> Exit:
    async with asyncio.timeout(SLOW):
        while (seen := (await engine.observe())[guest]).exit is None:
            await asyncio.sleep(0.05)
    return seen.exit


async def gone(pid: int) -> None:
    async with asyncio.timeout(SLOW):
        while process.start_time(pid) is not None:
            await asyncio.sleep(0.02)


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


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if "\t" in line)


async def test_it_is_confined(bench: QemuBench, engine: Qemu) -> None:
    """Own user, no right, seccomp, control groups, and a name and generation to see in `ps`."""
    plan = await bench.plan()
    await engine.start(plan)
    pid = (await engine.observe())[plan.id].pid
    status = status_of(pid)
    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "1"
    assert (
        f"guest=default/{plan.name}.g1," in process.command_line(pid)[process.command_line(pid).index("-name") + 1]
    )
    if plan.uid is not None:
        assert set(status["Uid"].split()) == {str(plan.uid)}
        assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    if bench.cgroups:
        assert bench.cgroups.pids(f"{plan.id}.1") == {pid}
    assert os.getsid(pid) == pid


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
    bench.cgroups.change(name, Bounds(memory=used + 8 * MiB))
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


async def test_a_reboot_is_the_same_process(bench: QemuBench, engine: Qemu) -> None:
    plan = await booted(bench, engine)
    before = (await engine.observe())[plan.id]
    first = (await engine.execute(plan.id, ("cat", "/proc/sys/kernel/random/boot_id"))).stdout
    events = engine.events()
    await engine.execute(plan.id, ("sh", "-c", "(sleep 0.5; reboot) >/dev/null 2>&1 &"))
    async with asyncio.timeout(SLOW):
        while (await anext(events)).seen.agent:
            pass
    await engine.ready(plan.id, timeout=SLOW)
    after = (await engine.observe())[plan.id]
    assert (after.pid, after.generation) == (before.pid, before.generation)
    assert (await engine.execute(plan.id, ("cat", "/proc/sys/kernel/random/boot_id"))).stdout != first


async def test_it_grows_while_it_runs(bench: QemuBench, engine: Qemu) -> None:
    plan = await booted(bench, engine)
    await engine.resize(plan.id, cpus=2, memory=Bytes(plan.memory + 256 * MiB))
    assert (await engine.execute(plan.id, ("nproc",))).stdout == b"2\n"
    free = (await engine.execute(plan.id, ("free", "-m"))).stdout.split()
    assert int(free[free.index(b"Mem:") + 1]) > 350
    with pytest.raises(Refused):
        await engine.resize(plan.id, cpus=1, memory=plan.memory)


async def test_limits_are_kept_by_whoever_adopts(bench: QemuBench, engine: Qemu) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    await engine.limit(plan.id, Limits(cpu=0.25))
    await engine.close()
    handle = RunDir(bench.run, plan.id, plan.generation, bench.tag).handle()
    assert handle
    assert handle.plan.limits.cpu == 0.25


async def test_everything_works_again_after_adoption(bench: QemuBench, engine: Qemu) -> None:
    plan = await booted(bench, engine)
    old = await engine.console(plan.id)
    await old.read()
    await engine.close()
    assert await old.read() == b""
    later = await bench.engine()
    await later.adopt()
    assert (await later.observe())[plan.id].agent
    assert (await later.execute(plan.id, ("echo", "still"))).stdout == b"still\n"
    stream = await later.console(plan.id)
    assert b"login" in await stream.read()
    await stream.write(b"echo con''sole\n")
    seen = b""
    async with asyncio.timeout(30):
        while b"\nconsole" not in seen:
            seen += await stream.read()
    assert (await later.stats(plan.id)).disk_reads > 0
    assert b"login" in await later.log(plan.id)


async def test_its_screen_is_served(bench: QemuBench, engine: Qemu) -> None:
    plan = await bench.plan()
    await engine.start(plan)
    sock = await sockets.connect(Path(await engine.display(plan.id)))
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    assert (await asyncio.wait_for(reader.readexactly(12), 10)).startswith(b"RFB ")
    writer.close()


@pytest.mark.parametrize("machine", ["microvm", "pc-i440fx-7.2"])
async def test_other_machines(bench: QemuBench, engine: Qemu, machine: str) -> None:
    micro = {"max_cpus": 1, "max_memory": Bytes(192 * MiB)} if machine == "microvm" else {}
    plan = await booted(bench, engine, hardware=hardware(machine=machine, **micro))
    assert (await engine.execute(plan.id, ("cat", "/sys/block/vda/serial"))).stdout.strip() == b"serial1"
    await engine.stop(plan.id, grace=60)
    assert (await ended(engine, plan.id)).reason == "the guest shut down"


async def test_forkable_memory_is_a_file_that_goes_with_it(bench: QemuBench, engine: Qemu) -> None:
    plan = await booted(bench, engine, forkable=True)
    ram = RunDir(bench.run, plan.id, plan.generation, bench.tag).ram
    assert ram.stat().st_size == plan.memory
    assert ram.stat().st_blocks > 0
    await engine.stop(plan.id, grace=0)
    assert not ram.exists()


async def test_paths_of_any_length(image: Image, tmp_path: Path) -> None:
    bench = QemuBench(tmp_path, image)
    bench.run = tmp_path / ("long-" * 20) / ("path-" * 20)
    engine = await bench.engine()
    await engine.adopt()
    plan = await bench.plan()
    await engine.start(plan)
    await (await engine.console(plan.id)).close()
    await bench.close()


async def test_what_cannot_start_leaves_nothing(bench: QemuBench, engine: Qemu) -> None:
    plan = await bench.plan()
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"atoll-test", os.fsencode(place), b"tmpfs", 0, b"size=48m") == 0, "mounting takes root"
    yield place
    libc.umount2(os.fsencode(place), 2)


async def test_a_full_host_disk_pauses_it_and_space_lets_it_go_on(
    bench: QemuBench, engine: Qemu, small_disk: Path, image: Image
) -> None:
    plan = await bench.plan()
    disk = small_disk / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image.disk, "-F", "qcow2", disk], check=True)
    top = replace(plan.disks[0].attachment.layers[0], uri=str(disk))
    layers = (top, *plan.disks[0].attachment.layers[1:])
    plan = replace(plan, disks=(DiskPlan("s", 0, Attachment(layers)),))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(24 * MiB))
    await engine.start(plan)
    await engine.ready(plan.id, timeout=SLOW)
    events = engine.events()
    fill = ("sh", "-c", "dd if=/dev/urandom of=/root/fill bs=1M count=30 conv=fsync")
    running = asyncio.create_task(engine.execute(plan.id, fill, timeout=SLOW))
    assert (await until(events, plan.id, State.PAUSED)).seen.reason == NO_SPACE
    await asyncio.sleep(1.5)
    assert (await engine.observe())[plan.id].reason == NO_SPACE
    running.cancel()
    ballast.unlink()
    assert (await until(events, plan.id, State.RUNNING)).seen.reason == ""
    await engine.stop(plan.id, grace=0)
    await engine.close()


async def test_logs_stay_bounded_while_the_guest_writes_on(bench: QemuBench, engine: Qemu) -> None:
    plan = await booted(bench, engine)
    run = RunDir(bench.run, plan.id, plan.generation, bench.tag)
    with run.serial.open("ab") as file:
        file.write(b"x" * (2 * MiB) + b"\nnewest\n")
    engine.trim_logs()
    assert run.serial.stat().st_size <= 300 << 10
    await engine.execute(plan.id, ("sh", "-c", "echo more >/dev/ttyS0"))
    async with asyncio.timeout(10):
        while b"\nnewest\nmore" not in run.serial.read_bytes():
            await asyncio.sleep(0.05)


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
