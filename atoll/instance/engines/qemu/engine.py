"""Guests as QEMU processes, driven over QMP: the engine's contract, whose parts are the files beside this one."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from signal import SIGKILL

from atoll.base.errors import AtollError, Broken, Exhausted, Lacking, Refused, Unreachable
from atoll.base.ids import Bytes, Generation, InstanceId
from atoll.host import process
from atoll.host.cgroups import Cgroups
from atoll.host.files import translated
from atoll.host.probe.accel import Accel
from atoll.host.probe.qemu import qemu
from atoll.host.process import Process
from atoll.instance.engine import EngineTraits, Furnish, Observed, Outcome, Stats, Stream
from atoll.instance.engines.adoption import decide
from atoll.instance.engines.holding import Holding
from atoll.instance.engines.kept import tail
from atoll.instance.engines.qemu import (
    adopt,
    argv,
    disc,
    exitreason,
    hotdisk,
    hotplug,
    inside,
    machine,
    nics,
    screen,
    stats,
    tsc,
)
from atoll.instance.engines.qemu.adopt import Trace
from atoll.instance.engines.qemu.exitreason import Remains
from atoll.instance.engines.qemu.guest import Guest
from atoll.instance.engines.qemu.rundir import Handle, RunDir
from atoll.instance.engines.qemu.space import SpaceWatch
from atoll.instance.engines.qemu.spawn import bounds, spawn
from atoll.instance.model import BootPlan, Disk, DiskPlan, Hardware, Kind, Limits, NicPlan, State

MONITOR_IN = 60.0
"""Seconds for QEMU to answer at its start: it may have much memory to set up, on a busy host."""
ADOPT_IN = 1.0
"""Seconds for a guest's monitor to answer at adoption; one that is silent is held all the same, and asked again.
A process younger than MONITOR_IN gets YOUNG_IN: it may be a half-made start, which must not pass for a guest."""
YOUNG_IN = 20.0
_AT_ONCE = 32
"""Guests adopted at the same time."""
_END_IN = 10.0
EXEC_WAITS = 10.0
"""Seconds that a program waits for an agent that is not there yet."""


class Qemu(Holding[Guest]):
    """`run`: where run directories are kept. `host_tag`: 6 hexadecimal digits of this Atoll, from which every name
    on the host derives. `cgroups`: None where this user may make none. `accel`: the host's settled verdict."""

    kind = Kind.VM

    def __init__(
        self, run: Path, *, host_tag: str, cgroups: Cgroups | None, accel: Callable[[], Awaitable[Accel]]
    ) -> None:
        super().__init__()
        self.traits = EngineTraits(hot_cpus=True, hot_memory=True, pauses=True, limits=cgroups is not None)
        self._run, self._tag, self._cgroups, self._accel = run, host_tag, cgroups, accel
        self._space = SpaceWatch()
        self._tsc_khz: int | None = None

    # finding and keeping

    async def adopt(self) -> Mapping[InstanceId, Observed]:
        with translated("make the run directory"):
            self._run.mkdir(parents=True, exist_ok=True, mode=0o700)
        measured = asyncio.create_task(asyncio.to_thread(tsc.measure_khz))
        decision = decide(await asyncio.to_thread(adopt.look, self._run, self._tag, self._cgroups))
        seats = asyncio.Semaphore(_AT_ONCE)
        await asyncio.gather(*(self._clear(trace) for trace in decision.clear))
        for trace in decision.report:
            await self._report(trace)
        await asyncio.gather(*(self._hold(trace, seats) for trace in decision.hold))
        self._tsc_khz = await measured
        return await self.observe()

    async def _hold(self, trace: Trace, seats: asyncio.Semaphore) -> None:
        handle = trace.handle
        found = Process.open(handle.pid, started=handle.started) if handle else None
        if handle is None or found is None:  # it ended just now
            await self._report(trace)
            return
        guest = Guest(handle.plan, self._dir(handle.plan), found, self._cgroups, self._changed)
        unheard = ""
        patience = ADOPT_IN if process.age(handle.started) > MONITOR_IN else YOUNG_IN
        async with seats:
            try:
                if await guest.connect(timeout=patience) == "prelaunch":
                    await guest.close()
                    await self._clear(trace)
                    return
            except AtollError as error:
                unheard = f"its monitor does not answer: {error.message}"
        guest.hold(unheard=unheard)
        self._guests[trace.id] = guest
        self._space.look_after(guest)

    async def _report(self, trace: Trace) -> None:
        """A guest that ended while nobody looked."""
        exit = trace.exit
        if exit is None:
            run = RunDir(self._run, trace.id, trace.generation, self._tag)
            rebooted = trace.handle is not None and trace.handle.boot != process.boot_id()
            oom = await self._cgroups.oom_kills(run.name) if self._cgroups else 0
            exit = exitreason.of(run, Remains(rebooted=rebooted, oom_kills=oom))
            run.write_exit(exit)
        self._ended[trace.id] = Observed(State.STOPPED, trace.generation, exit=exit)

    async def _clear(self, trace: Trace) -> None:
        """End and remove what must not be there: an older generation, a half-made start."""
        await asyncio.gather(*(self._end(pid, trace) for pid in trace.pids))
        await self._remove(trace.id, trace.generation)

    async def _end(self, pid: int, trace: Trace) -> None:
        found = Process.open(pid)
        if found is None:
            return
        try:
            name = f"{trace.id}.{trace.generation}"
            inside = self._cgroups is not None and pid in self._cgroups.pids(name)
            if inside or adopt.marked(process.command_line(pid), self._tag) == (trace.id, trace.generation):
                found.signal(SIGKILL)
                await found.wait(_END_IN)
        finally:
            found.close()

    async def _remove(self, id: InstanceId, generation: Generation) -> None:
        run = RunDir(self._run, id, generation, self._tag)
        if self._cgroups:
            await self._cgroups.remove(run.name)
        await asyncio.to_thread(run.remove)

    def _dir(self, plan: BootPlan) -> RunDir:
        return RunDir(self._run, plan.id, plan.generation, self._tag)

    def _changed(self, guest: Guest) -> None:
        super()._changed(guest)
        self._space.look_after(guest)

    async def close(self) -> None:
        await self._space.close()
        await super().close()

    # the contract

    async def furnish(self, want: Furnish) -> Hardware:
        verdict = await self._accel()
        accel = machine.choose_accel(want.accel, verdict.kind, verdict.reason)
        cpu = machine.parse_cpu(await asyncio.to_thread(Path("/proc/cpuinfo").read_text))
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return machine.furnish(want, accel=accel, qemu=await qemu(), cpu=cpu, memory=memory)

    async def _launch(self, plan: BootPlan) -> Guest:
        if self._tsc_khz is None:
            self._tsc_khz = await asyncio.to_thread(tsc.measure_khz)
        run, boot = self._dir(plan), process.boot_id()
        guest: Guest | None = None
        try:
            run.make(plan.uid)
            run.write(Handle(plan, boot))
            started = spawn(plan, run, self._cgroups, tag=self._tag, tsc_khz=self._tsc_khz)
            guest = Guest(plan, run, started, self._cgroups, self._changed)
            run.write(Handle(plan, boot, started.pid, started.started))
            await guest.connect(timeout=MONITOR_IN)
            await guest.launch()
        except BaseException as error:
            said = tail(run.log, 8 << 10)
            await asyncio.shield(self._take_back(run, guest))
            if isinstance(error, AtollError) and guest is not None:
                raise refused(plan.name, error, said) from error
            raise
        return guest

    async def _take_back(self, run: RunDir, guest: Guest | None) -> None:
        if guest is not None:
            guest.process.signal(SIGKILL)
            await guest.process.wait(_END_IN)
            await guest.close()
        await self._remove(run.id, run.generation)

    async def pause(self, guest: InstanceId) -> None:
        await self.guest(guest).pause()

    async def resume(self, guest: InstanceId) -> None:
        await self.guest(guest).resume()

    async def resize(self, guest: InstanceId, *, cpus: int, memory: Bytes) -> None:
        held = self.guest(guest)
        qmp = held.monitor()
        has_cpus, has_memory = await hotplug.present(qmp)
        hotplug.refuse(held.plan, cpus=cpus, memory=memory, has_cpus=has_cpus, has_memory=has_memory)
        if self._cgroups:
            await self._cgroups.change(held.run.name, bounds(held.plan, held.plan.limits, memory=memory))
        if memory > has_memory:
            await hotplug.add_memory(qmp, memory - has_memory)
        if cpus > has_cpus:
            await hotplug.add_cpus(qmp, cpus - has_cpus)
        if held.seen.agent:
            await inside.put_online(held.agent, cpus=cpus)

    async def limit(self, guest: InstanceId, limits: Limits) -> None:
        held = self.guest(guest)
        if self._cgroups is None:
            raise Lacking("this user may make no control groups", hint="run the daemon as root")
        _, memory = await hotplug.present(held.monitor())
        await self._cgroups.change(held.run.name, bounds(held.plan, limits, memory=memory))
        held.relimit(limits)

    def seat(self, hardware: Hardware, disk: Disk) -> Hardware:
        return machine.seat(hardware, disk)

    async def add_disk(self, guest: InstanceId, disk: DiskPlan) -> None:
        await hotdisk.add(self.guest(guest), disk)

    async def remove_disk(self, guest: InstanceId, slot: int, *, timeout: float) -> None:
        await hotdisk.remove(self.guest(guest), slot, timeout=timeout)

    async def grow_disk(self, guest: InstanceId, slot: int, size: Bytes) -> None:
        await hotdisk.grow(self.guest(guest), slot, size)

    async def mounts(self, guest: InstanceId, slot: int) -> tuple[str, ...]:
        return await hotdisk.mounts(self.guest(guest), slot)

    # beside the contract: Consoles, Executes, Measures, Displays, Ejects, HotNics

    async def console(self, guest: InstanceId) -> Stream:
        return await self.guest(guest).console.open()

    async def log(self, guest: InstanceId, *, limit: int = 64 << 10) -> bytes:
        run = RunDir(self._run, guest, await self._last(guest), self._tag)
        own = tail(run.log, limit // 4)
        return tail(run.serial, limit - len(own)) + own

    async def display(self, guest: InstanceId) -> str:
        held = self.guest(guest)
        if machine.family(held.plan.hardware.machine) == "microvm":
            raise Refused("a microvm has no screen", hint=f"atoll console {held.plan.name}")
        return str(held.run.own / argv.VNC)

    async def screenshot(self, guest: InstanceId) -> bytes:
        await self.display(guest)
        held = self.guest(guest)
        return await screen.shot(held.monitor(), held.run.own)

    async def eject(self, guest: InstanceId) -> None:
        await disc.eject(self.guest(guest))

    async def insert(self, guest: InstanceId, iso: str) -> None:
        await disc.insert(self.guest(guest), iso)

    def place(self, hardware: Hardware) -> int:
        return nics.free_slot(hardware)

    async def add_nic(self, guest: InstanceId, nic: NicPlan) -> None:
        await nics.add(self.guest(guest), nic)

    async def remove_nic(self, guest: InstanceId, slot: int) -> None:
        await nics.remove(self.guest(guest), slot)

    async def set_link(self, guest: InstanceId, slot: int, *, up: bool) -> None:
        await nics.set_link(self.guest(guest), slot, up=up)

    async def stats(self, guest: InstanceId) -> Stats:
        held = self.guest(guest)
        blocks = await held.monitor().execute("query-blockstats")
        usage = self._cgroups.usage(held.run.name) if self._cgroups else None
        return stats.combine(held.plan, held.process.pid, usage, blocks)

    async def ready(self, guest: InstanceId, *, timeout: float) -> None:
        await self.guest(guest).agent_ready(timeout=timeout)

    async def execute(
        self,
        guest: InstanceId,
        argv: tuple[str, ...],
        *,
        input: bytes = b"",
        env: Mapping[str, str] = {},
        timeout: float | None = None,
    ) -> Outcome:
        held = await self._answering(guest)
        try:
            async with asyncio.timeout(timeout):
                return await inside.execute(held.agent, argv, input=input, env=env)
        except TimeoutError as error:
            raise Unreachable(
                f"{argv[0]} did not end within {timeout:g} s", hint="it goes on in the guest"
            ) from error

    async def pull(self, guest: InstanceId, path: str) -> AsyncIterator[bytes]:
        held = await self._answering(guest)
        async with contextlib.aclosing(inside.pull(held.agent, path)) as parts:
            async for part in parts:
                yield part

    async def push(self, guest: InstanceId, path: str, chunks: AsyncIterator[bytes], *, mode: int) -> int:
        held = await self._answering(guest)
        return await inside.push(held.agent, path, chunks, mode=mode)

    async def addresses(self, guest: InstanceId) -> Mapping[str, tuple[str, ...]]:
        return await inside.addresses((await self._answering(guest)).agent)

    async def _answering(self, guest: InstanceId) -> Guest:
        """Raises Absent, Refused (it is paused, or has no agent), Unreachable."""
        held = self.guest(guest)
        if held.seen.state is not State.RUNNING:
            raise Refused(f"{held.plan.name} is {held.seen.state}", hint=f"atoll resume {held.plan.name}")
        if not held.plan.agent:
            raise Refused(f"the image of {held.plan.name} has no guest agent")
        if not held.seen.agent:
            await held.agent_ready(timeout=EXEC_WAITS)
        return held


def refused(name: str, error: AtollError, said: bytes) -> AtollError:
    """Why QEMU did not start, from the last it said."""
    words = said.decode(errors="replace")
    last = next((line for line in reversed(words.splitlines()) if "qemu-system" in line or "setpriv" in line), "")
    reason = last.partition("qemu-system-x86_64: ")[2] or last
    if not reason:
        return error
    if "Cannot allocate memory" in words or "cannot set up guest memory" in words:
        return Exhausted(f"{name}: the host has not the memory for it", hint=reason)
    if "lock" in reason and "Failed to get" in words:
        return Refused(f"{name}: its disk is in use by another process", hint=reason)
    return Broken(f"{name}: QEMU did not start: {reason}", hint="atoll host probe")
