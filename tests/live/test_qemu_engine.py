"""What only real QEMU can show: deaths told apart, half-made starts, full disks, growth, long paths, both loops."""

import asyncio
import ctypes
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from atoll.base.errors import Refused
from atoll.base.ids import Bytes
from atoll.base.units import MiB
from atoll.host import process, sockets
from atoll.instance.engines.qemu import adopt, rundir
from atoll.instance.engines.qemu.engine import Qemu
from atoll.instance.engines.qemu.guest import NO_SPACE
from atoll.instance.engines.qemu.rundir import RunDir
from atoll.instance.model import DiskPlan, Limits, State
from atoll.storage.model import Attachment
from tests.kit.benches import SLOW, QemuBench, booted, ended, until
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
    await engine.close()
    async with asyncio.timeout(10):
        while await old.read():
            pass  # what it had said by then
    later = await bench.engine()
    await later.adopt()
    assert (await later.observe())[plan.id].agent
    assert (await later.execute(plan.id, ("echo", "still"))).stdout == b"still\n"
    stream = await later.console(plan.id)
    seen = b""
    async with asyncio.timeout(SLOW):
        while b"login" not in seen:
            seen += await stream.read()
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
    async with asyncio.timeout(SLOW):
        while b"login" not in run.serial.read_bytes():
            await asyncio.sleep(0.05)
    with run.serial.open("ab") as file:
        file.write(b"x" * (2 * MiB) + b"\nnewest\n")
    engine.trim_logs()
    assert run.serial.stat().st_size <= 300 << 10
    await engine.execute(plan.id, ("sh", "-c", "echo more >/dev/ttyS0"))
    async with asyncio.timeout(SLOW):
        while not re.search(rb"\nnewest\n.*more", run.serial.read_bytes(), re.DOTALL):
            await asyncio.sleep(0.05)
