"""Containers by liblxc: the engine's contract, whose parts are the files beside this one.

Every container is a monitor (lxc-start) of its own, outside the daemon, as every VM is a QEMU.
"""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from signal import SIGKILL

from msgspec.structs import replace

from atoll.base.errors import AtollError, Broken, Invalid, Refused
from atoll.base.ids import Bytes, Generation, InstanceId
from atoll.host import process
from atoll.host.files import translated
from atoll.host.process import Process
from atoll.host.run import find
from atoll.instance.engine import (
    Command,
    EngineTraits,
    Furnish,
    Observed,
    Outcome,
    Session,
    Stats,
    Stream,
)
from atoll.instance.engines.adoption import decide
from atoll.instance.engines.container import (
    adopt,
    emulation,
    exitreason,
    inside,
    launch,
    mounts,
    nics,
    sessions,
    stats,
)
from atoll.instance.engines.container.adopt import Trace
from atoll.instance.engines.container.groups import Groups
from atoll.instance.engines.container.guest import Guest, sweep
from atoll.instance.engines.container.rundir import Handle, RunDir, names_of
from atoll.instance.engines.container.workshop import Workshop
from atoll.instance.engines.holding import Holding
from atoll.instance.engines.kept import tail
from atoll.instance.model import BootPlan, Hardware, Kind, Limits, MountSpec, NicPlan, State

_END_IN = 10.0
MACHINE = "lxc"


class Containers(Holding[Guest]):
    """`run`: where run directories are kept; its path names this Atoll to liblxc, so that two never meet."""

    kind = Kind.CONTAINER
    traits = EngineTraits(hot_cpus=True, hot_memory=True, pauses=True, limits=True, exec_terminal=True)

    def __init__(self, run: Path, groups: Groups) -> None:
        super().__init__()
        self._run, self._groups, self._names = run, groups, names_of(groups.tag)
        self._workshop = Workshop()

    # finding and keeping

    async def adopt(self) -> Mapping[InstanceId, Observed]:
        with translated("make the run directory"):
            self._run.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._names.mkdir(parents=True, exist_ok=True, mode=0o755)
        decision = decide(await asyncio.to_thread(adopt.look, self._run, self._names, self._groups))
        await asyncio.gather(*(self._clear(trace) for trace in decision.clear))
        for trace in decision.report:
            await self._report(trace)
        for trace in decision.hold:
            await self._hold(trace)
        return await self.observe()

    async def _hold(self, trace: Trace) -> None:
        handle = trace.handle
        found = Process.open(handle.monitor, started=handle.monitor_started) if handle else None
        if handle is None or found is None:  # it ended just now
            await self._report(trace)
            return
        guest = Guest(handle, self._dir(handle.plan), found, self._groups, self._changed)
        guest.hold()
        self._guests[trace.id] = guest

    async def _report(self, trace: Trace) -> None:
        """A container that ended while nobody looked."""
        run, exit = self._run_dir(trace.id, trace.generation), trace.exit
        if exit is None:
            rebooted = trace.handle is not None and trace.handle.boot != process.boot_id()
            oom = self._groups.oom_kills(run.name)
            exit = exitreason.of(run, rebooted=rebooted, oom_kills=oom)
            run.write_exit(exit)
        with contextlib.suppress(AtollError):
            await sweep(self._groups, run.name)
        self._ended[trace.id] = Observed(State.STOPPED, trace.generation, exit=exit)

    async def _clear(self, trace: Trace) -> None:
        """End and remove what must not be there: an older generation, a half-made start."""
        for pid in trace.monitors:
            found = Process.open(pid)
            if found is not None:
                if adopt.marked(process.command_line(pid), self._names) == (trace.id, trace.generation):
                    found.signal(SIGKILL)
                    await found.wait(_END_IN)
                found.close()
        await self._remove(trace.id, trace.generation)

    async def _remove(self, id: InstanceId, generation: Generation) -> None:
        run = self._run_dir(id, generation)
        await sweep(self._groups, run.name)
        await asyncio.to_thread(run.remove)

    def _dir(self, plan: BootPlan) -> RunDir:
        return self._run_dir(plan.id, plan.generation)

    def _run_dir(self, id: InstanceId, generation: Generation) -> RunDir:
        return RunDir(self._run, id, generation, self._names)

    async def close(self) -> None:
        idle = not self._guests
        await super().close()
        self._workshop.close()
        if idle:  # what runs on has its name there
            with contextlib.suppress(OSError):
                self._names.rmdir()
                self._names.parent.rmdir()

    # the contract

    async def furnish(self, want: Furnish) -> Hardware:
        """A container has the kernel of its host: no machine type, no firmware. Its root has slot 0."""
        find("lxc-start")
        own, cpu = os.uname().machine, emulation.cpu_of(want.arch)
        count = len(os.sched_getaffinity(0))
        if want.cpus > count:
            raise Invalid(f"a container has at most the host's {count} CPUs", field="spec.cpus")
        if len(want.disks) > 1:
            raise Invalid(
                "a container takes no disks: volumes are for VMs", hint="--mount HOSTDIR:/path", field="volumes"
            )
        return Hardware(
            arch=own,
            machine=MACHINE,
            accel="none",
            cpu=cpu,
            max_cpus=count,
            max_memory=Bytes(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
            disks=want.disks,
            nics=tuple(replace(nic, slot=number + 1) for number, nic in enumerate(want.nics)),
        )

    async def _launch(self, plan: BootPlan) -> Guest:
        run = self._dir(plan)
        monitor: Process | None = None
        try:
            run.make()
            cpus = launch.cpus(plan.cpus, self._load())
            handle = Handle(plan, process.boot_id(), cpus=cpus)
            run.write(handle)
            launch.configure(plan, run, self._groups, cpus)
            with launch.Up(run) as up:
                monitor = await self._workshop.do(launch.order(plan, run, self._groups))
                if monitor is None:
                    raise Broken(f"{plan.name}: lxc-start ended at once")
                pid = await up.pid(monitor)
                await mounts.begin(plan, run, pid, self._workshop)
                if foreign := emulation.emulated(plan.hardware.cpu):
                    await emulation.register(pid, foreign)
                up.go()
                handle = await up.started(handle, monitor, pid)
            run.write(handle)
            return Guest(handle, run, monitor, self._groups, self._changed)
        except BaseException as error:
            said = launch.why(run)
            await asyncio.shield(self._take_back(run, monitor))
            if isinstance(error, launch.Died):
                raise Broken(f"{plan.name} could not be started: {said}") from error
            raise

    def _load(self) -> Mapping[int, int]:
        return Counter(cpu for guest in self._guests.values() for cpu in guest.handle.cpus)

    async def _take_back(self, run: RunDir, monitor: Process | None) -> None:
        if monitor is not None:
            monitor.signal(SIGKILL)
            await monitor.wait(_END_IN)
            monitor.close()
        await self._remove(run.id, run.generation)

    async def pause(self, guest: InstanceId) -> None:
        await self.guest(guest).pause(on=True)

    async def resume(self, guest: InstanceId) -> None:
        await self.guest(guest).pause(on=False)

    async def resize(self, guest: InstanceId, *, cpus: int, memory: Bytes) -> None:
        held = self.guest(guest)
        if cpus > held.plan.hardware.max_cpus:
            raise Refused(f"this host has {held.plan.hardware.max_cpus} CPUs")
        chosen = held.handle.cpus if cpus == held.plan.cpus else launch.cpus(cpus, self._load())
        plan = replace(held.plan, cpus=cpus, memory=memory)
        try:
            self._groups.change(held.run.name, launch.limit(plan, chosen))
        except Broken as error:
            raise Refused(f"it holds more than that: {error.message}", hint="stop some of its programs") from error
        held.handle = replace(held.handle, cpus=chosen)
        held.replan(plan)

    async def limit(self, guest: InstanceId, limits: Limits) -> None:
        held = self.guest(guest)
        plan = replace(held.plan, limits=limits)
        self._groups.change(held.run.name, launch.limit(plan, held.handle.cpus))
        held.replan(plan)

    # beside the contract: Consoles, Executes, Measures, HotNics

    async def console(self, guest: InstanceId) -> Stream:
        return await self.guest(guest).console.open()

    async def log(self, guest: InstanceId, *, limit: int = 64 << 10) -> bytes:
        run = self._run_dir(guest, await self._last(guest))
        failed = exitreason.failures(tail(run.log, 32 << 10).decode(errors="replace"))
        own = "".join(f"lxc: {line}\n" for line in failed).encode()[-limit // 4 :]
        return tail(run.console, limit - len(own)) + own

    async def add_mount(self, guest: InstanceId, mount: MountSpec) -> None:
        await mounts.add(self.guest(guest), mount, self._workshop)

    async def remove_mount(self, guest: InstanceId, path: str) -> None:
        await mounts.remove(self.guest(guest), path, self._workshop)

    def place(self, hardware: Hardware) -> int:
        return nics.free_slot(hardware)

    async def add_nic(self, guest: InstanceId, nic: NicPlan) -> None:
        await nics.add(self.guest(guest), nic)

    async def remove_nic(self, guest: InstanceId, slot: int) -> None:
        await nics.remove(self.guest(guest), slot)

    async def set_link(self, guest: InstanceId, slot: int, *, up: bool) -> None:
        held = self.guest(guest)
        await nics.set_link(held, nics.find(held, slot), up=up)

    async def stats(self, guest: InstanceId) -> Stats:
        return stats.of(self.guest(guest), self._groups)

    async def ready(self, guest: InstanceId, *, timeout: float) -> None:  # noqa: ARG002 - it is at once
        self.guest(guest).running()

    async def execute(
        self,
        guest: InstanceId,
        argv: tuple[str, ...],
        *,
        input: bytes = b"",
        env: Mapping[str, str] = {},
        timeout: float | None = None,
    ) -> Outcome:
        held = self.guest(guest)
        return await inside.within(timeout, inside.execute(held, argv, input=input, env=env), argv[0])

    async def open(self, guest: InstanceId, command: Command) -> Session:
        return await sessions.open_session(self.guest(guest), command)

    async def login(self, guest: InstanceId, *, user: str, columns: int, rows: int) -> Session:
        term = "xterm-256color"
        command = Command(argv=tuple(sessions.login()), user=user, terminal=(columns, rows), term=term)
        return await sessions.open_session(self.guest(guest), command)

    def pull(self, guest: InstanceId, path: str) -> AsyncIterator[bytes]:
        return inside.pull(self.guest(guest), path)

    async def push(self, guest: InstanceId, path: str, chunks: AsyncIterator[bytes], *, mode: int) -> int:
        return await inside.push(self.guest(guest), path, chunks, mode=mode)

    async def addresses(self, guest: InstanceId) -> Mapping[str, tuple[str, ...]]:
        return await inside.addresses(self.guest(guest))
