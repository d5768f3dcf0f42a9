"""One host for the engine contract's suite, fake or real: engines over it, plans for it, and deaths on it."""

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec.structs import replace

from atoll.base import clock
from atoll.base.ids import Bytes, InstanceId
from atoll.base.units import MiB
from atoll.host import cgroups, process
from atoll.host.probe.accel import Accel
from atoll.host.run import run
from atoll.instance.engine import Consoles, Disks, Displays, Ejects, Engine, Executes, HotNics, Measures
from atoll.instance.engines.qemu import adopt
from atoll.instance.engines.qemu.engine import Qemu
from atoll.instance.model import BootPlan, DirectBoot, DiskPlan, Exit, NicPlan, State
from atoll.storage.model import Attachment, Bus, Layer
from tests.kit.fake_engine import FakeEngine, FakeHost
from tests.kit.images import Image
from tests.kit.plans import boot_plan, hardware, layers, user_nic

SLOW = 120.0
"""Seconds for a guest under TCG on a busy machine."""


class FullEngine(Engine, Consoles, Executes, Measures, Displays, Ejects, Disks, HotNics, Protocol):
    pass


class Bench(Protocol):
    async def engine(self) -> FullEngine:
        """A new engine over the same host; the one before must be closed."""

    async def plan(self, **changes: Any) -> BootPlan: ...

    async def kill(self, guest: InstanceId) -> None:
        """End the guest's process from outside."""

    async def empty_disk(self, slot: int, bus: Bus = "virtio") -> DiskPlan:
        """A new one of 16 MiB, raw."""

    async def nic(self, slot: int) -> NicPlan:
        """A new one, to be plugged in."""

    def cling(self, guest: InstanceId, slot: int) -> None:
        """A guest that has just been started lets go of nothing yet."""

    async def close(self) -> None: ...


class FakeBench:
    def __init__(self) -> None:
        self._host = FakeHost()
        self._last = FakeEngine(self._host)

    async def engine(self) -> FullEngine:
        self._last = FakeEngine(self._host)
        return self._last

    async def plan(self, **changes: Any) -> BootPlan:
        return boot_plan(**changes)

    async def empty_disk(self, slot: int, bus: Bus = "virtio") -> DiskPlan:
        return DiskPlan(f"empty{slot}", slot, Attachment((Layer("/fake/empty", "raw"),)), bus)

    async def nic(self, slot: int) -> NicPlan:
        return replace(user_nic(slot), mac="52:54:00:00:00:77")

    def cling(self, guest: InstanceId, slot: int) -> None:
        next(g for (id, _), g in self._host.guests.items() if id == guest).clings.add(slot)

    async def kill(self, guest: InstanceId) -> None:
        self._last.die(guest)

    async def close(self) -> None:
        return None


async def tcg() -> Accel:
    return Accel(kind="tcg", reason="tests run anywhere", checked=clock.now())


class QemuBench:
    """Real QEMU with the `tiny` image, under its own tag, in its own control groups, as an unprivileged user."""

    def __init__(self, place: Path, image: Image) -> None:
        self._place, self._image = place, image
        self.tag = secrets.token_hex(3)
        self.cgroups = cgroups.detect(self.tag)
        self.run = place / "run"
        self._engines: list[Qemu] = []

    async def engine(self) -> Qemu:
        engine = Qemu(self.run, host_tag=self.tag, cgroups=self.cgroups, accel=tcg)
        self._engines.append(engine)
        return engine

    async def disk(self, name: str) -> Path:
        path = self._place / f"{name}.qcow2"
        if not path.exists():
            base = ["-b", str(self._image.disk), "-F", "qcow2"]
            await run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(path)])
            path.chmod(0o600)
        return path

    async def plan(self, **changes: Any) -> BootPlan:
        made = boot_plan(**changes)
        disk = await self.disk(str(made.id))
        fixed: dict[str, Any] = {
            "disks": (DiskPlan("serial1", 0, layers(disk, self._image.disk)),),
            "nics": (user_nic(),),
            "boot": DirectBoot(str(self._image.kernel), str(self._image.initrd), self._image.cmdline),
            "uid": 1_900_000_000 + secrets.randbelow(60_000) if os.geteuid() == 0 else None,
            "memory": Bytes(192 * MiB),
            "hardware": hardware(nics=()),
        }
        return boot_plan(**{"id": made.id, "name": made.name, **fixed, **changes})

    async def empty_disk(self, slot: int, bus: Bus = "virtio") -> DiskPlan:
        path = self._place / f"empty{slot}.raw"
        path.touch(0o600)
        os.truncate(path, 16 * MiB)
        return DiskPlan(f"empty{slot}", slot, Attachment((Layer(str(path), "raw"),)), bus)

    async def nic(self, slot: int) -> NicPlan:
        return replace(user_nic(slot), mac="52:54:00:00:00:77")

    def cling(self, guest: InstanceId, slot: int) -> None:
        return None

    async def kill(self, guest: InstanceId) -> None:
        os.kill(self._pid(guest), signal.SIGKILL)

    def _pid(self, guest: InstanceId) -> int:
        traces = [trace for trace in adopt.look(self.run, self.tag, None) if trace.id == guest and trace.pids]
        return max(max(trace.pids) for trace in traces)

    async def close(self) -> None:
        """Nothing may be left: the last engine's guests are ended, and what an adopting engine finds too."""
        await end_all(self._engines, await self.engine())
        if self.cgroups:
            assert not self.cgroups.names()
            self.cgroups.remove_all()


async def end_all(engines: Sequence[Engine], last: Engine) -> None:
    """The engines are closed; guests that they left are ended and forgotten by the last."""
    for engine in engines:
        if engine is not last:
            await engine.close()
    for guest, seen in (await last.adopt()).items():
        if seen.state is not State.STOPPED:
            await last.stop(guest, grace=0)
        await last.forget(guest)
    await last.close()


async def until(events: AsyncIterator[Any], guest: InstanceId, state: State) -> Any:
    """The first news of a guest that is in `state`."""
    async with asyncio.timeout(SLOW):
        async for event in events:
            if event.guest == guest and event.seen.state is state:
                return event
    raise AssertionError("the events ended")


async def booted(bench: QemuBench, engine: Qemu, **changes: Any) -> BootPlan:
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
