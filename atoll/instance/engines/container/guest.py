"""One held container: its monitor, its first process, what it is now. News of its end comes from the monitor's
pidfd; nobody but us freezes it."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from atoll.base import clock
from atoll.base.errors import Refused, Unreachable
from atoll.host.process import Process, boot_id, start_time
from atoll.instance.engine import Observed
from atoll.instance.engines.container import exitreason
from atoll.instance.engines.container.console import ContainerConsole
from atoll.instance.engines.container.groups import Groups
from atoll.instance.engines.container.rundir import Handle, RunDir
from atoll.instance.model import BootPlan, Exit, State

log = logging.getLogger(__name__)

_KILL_IN, _FREEZE_IN, _FREEZE_AGAIN = 15.0, 10.0, 0.25
_MONITOR_IN = 3.0  # seconds from the end of the last process to the end of the monitor
HALT = {
    "systemd": signal.SIGRTMIN + 3,
    "busybox": signal.SIGUSR2,
    "init": signal.SIGPWR,
    "openrc-init": signal.SIGINT,
}
"""What asks a first program to shut its system down; any other gets SIGTERM, as a program would."""


class Guest:
    """`monitor`: liblxc's, which ends with it. `tell` is called with every change. `ended` is done
    when everything of it has ended."""

    def __init__(
        self, handle: Handle, run: RunDir, monitor: Process, groups: Groups, tell: "Callable[[Guest], None]"
    ) -> None:
        self.handle, self.run, self.process, self._groups, self._tell = handle, run, monitor, groups, tell
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.console = ContainerConsole(run, handle.plan.name)
        self._paused = groups.frozen(run.name)
        self._asked = self._forced = False
        self._watching: asyncio.Task[None] | None = None

    @property
    def plan(self) -> BootPlan:
        return self.handle.plan

    @property
    def init(self) -> int:
        return self.handle.init

    @property
    def seen(self) -> Observed:
        if self.ended.done() and not self.ended.cancelled():
            return Observed(State.STOPPED, self.plan.generation, exit=self.ended.result())
        state = State.PAUSED if self._paused else State.RUNNING
        return Observed(state, self.plan.generation, pid=self.init, agent=True)

    @property
    def alive(self) -> bool:
        return not self.ended.done()

    def running(self) -> int:
        """The pid of its first process. Raises Refused where it does not run, or stands still."""
        if not self.alive or start_time(self.init) != self.handle.init_started:
            raise Refused(f"{self.plan.name} is not running", hint=f"atoll start {self.plan.name}")
        if self._paused:
            raise Refused(f"{self.plan.name} is paused", hint=f"atoll resume {self.plan.name}")
        return self.init

    def hold(self) -> None:
        """Follow it from now on."""
        self._watching = asyncio.create_task(self._watch(), name=f"container {self.plan.name}")

    async def close(self) -> None:
        """Let go of it; it goes on."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if not self.ended.done():
            self.ended.cancel()
        await self.console.close()
        self.process.close()

    async def _watch(self) -> None:
        await self.process.watch()
        oom = self._groups.oom_kills(self.run.name)
        exit = exitreason.of(self.run, oom_kills=oom, asked=self._asked, forced=self._forced)
        try:
            self.run.write_exit(exit)
            await sweep(self._groups, self.run.name)
            await self.console.close()
        except Exception:  # what it left is found again; its death is news now
            log.exception("could not clear what %s left", self.plan.name)
        self._paused = False
        self.ended.set_result(exit)
        self._tell(self)

    def replan(self, plan: BootPlan) -> None:
        """Remember, also for an engine that adopts it, what it has become."""
        self.handle = replace(self.handle, plan=plan)
        self.run.write(self.handle)

    async def pause(self, *, on: bool) -> None:
        """Raises Refused, Lacking, Broken, Unreachable."""
        if not self.alive:
            raise Refused(f"{self.plan.name} is not running", hint=f"atoll start {self.plan.name}")
        self._groups.freeze(self.run.name, on=on)
        until = clock.monotonic() + _FREEZE_IN
        again = clock.monotonic() + _FREEZE_AGAIN
        while self._groups.frozen(self.run.name) is not on:
            if clock.monotonic() > until:
                self._groups.freeze(self.run.name, on=False)
                raise Unreachable(f"{self.plan.name} does not stand still", hint="a process of it waits for a disk")
            if on and clock.monotonic() > again:  # v1 may never come to an end with a process that just forks
                self._groups.freeze(self.run.name, on=False)
                self._groups.freeze(self.run.name, on=True)
                again = clock.monotonic() + _FREEZE_AGAIN
            await asyncio.sleep(0.002)
        if self._paused is not on:
            self._paused = on
            self._tell(self)

    async def stop(self, *, grace: float) -> None:
        """Returns when nothing of it runs. Raises Unreachable where even SIGKILL did not end it."""
        if self.alive and self._paused:
            self._groups.freeze(self.run.name, on=False)  # also for SIGKILL: what is frozen does not die
        if grace > 0 and self.alive:
            self._asked = True
            self._signal(halt_signal(self.init))
            if await self.process.wait(grace):
                await asyncio.wait({self.ended}, timeout=_KILL_IN)
        if self.alive and not self.process.watch().done():
            self._forced = True
            self._signal(signal.SIGKILL)
            if not await self.process.wait(_KILL_IN):
                self.process.signal(signal.SIGKILL)
        await asyncio.wait({self.ended}, timeout=_KILL_IN)
        if self.alive:
            raise Unreachable(f"{self.plan.name} does not end", hint="a process of it waits for a disk that hangs")

    def _signal(self, number: int) -> None:
        init = Process.open(self.init, started=self.handle.init_started)
        if init is not None:
            init.signal(number)  # type: ignore[arg-type]
            init.close()


def halt_signal(init: int) -> int:
    try:
        program = Path(os.readlink(f"/proc/{init}/exe")).name
    except OSError:
        return signal.SIGTERM
    return HALT.get(program, signal.SIGTERM)


async def sweep(groups: Groups, name: str) -> None:
    """End what is left in its groups, then remove them."""
    until = clock.monotonic() + _KILL_IN
    while left := groups.pids(name):
        groups_frozen = groups.frozen(name)
        if groups_frozen:
            groups.freeze(name, on=False)
        for pid in left:
            if found := Process.open(pid):
                found.signal(signal.SIGKILL)
                found.close()
        if clock.monotonic() > until:
            raise Unreachable(f"processes of {name} do not end: {sorted(left)[:5]}")
        await asyncio.sleep(0.005)
    await groups.remove(name)


def born(handle: Handle, monitor: Process, init: int) -> Handle:
    """With its processes. An `init` that ended already has no start time."""
    return replace(
        handle,
        boot=boot_id(),
        monitor=monitor.pid,
        monitor_started=monitor.started,
        init=init,
        init_started=start_time(init) or 0,
    )
