"""One held guest: its process, its monitor, what it is now. News of it comes from QMP events and its pidfd."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any

from msgspec.structs import replace

from atoll.base import clock
from atoll.base.errors import AtollError, Broken, Refused, Unreachable
from atoll.host.cgroups import Cgroups
from atoll.host.process import Process, boot_id
from atoll.host.qmp import Event, Qmp
from atoll.instance.engine import Observed
from atoll.instance.engines.console import Console
from atoll.instance.engines.qemu import argv, exitreason, inside
from atoll.instance.engines.qemu.agent import Agent
from atoll.instance.engines.qemu.exitreason import Remains
from atoll.instance.engines.qemu.rundir import Handle, RunDir
from atoll.instance.engines.qemu.spawn import path_of
from atoll.instance.model import BootPlan, Exit, Limits, State

log = logging.getLogger(__name__)

NO_SPACE = "no space left on the host for its disk"
_SETTLE = 1.0  # seconds from QEMU's end to the end of its monitor, which may have last events in it
_RECONNECT = (0.1, 0.5, 2.0, 5.0, 15.0, 30.0)
_QUIT_IN, _KILL_IN = 3.0, 15.0
_WHY = {
    "internal-error": "the hypervisor failed inside it (see its log)",
    "guest-panicked": "its kernel panicked",
    "watchdog": "its watchdog fired",
}


class Guest:
    """`tell` is called with every change. `ended` is done when it has ended and everything about that is known."""

    def __init__(
        self,
        plan: BootPlan,
        run: RunDir,
        process: Process,
        cgroups: Cgroups | None,
        tell: "Callable[[Guest], None]",
    ) -> None:
        self.plan, self.run, self.process = plan, run, process
        self.agent = Agent(run.agent, plan.name)
        self.console = Console(run.console, run.serial, plan.name)
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._cgroups, self._tell = cgroups, tell
        self._qmp: Qmp | None = None
        self._state, self._reason = State.STARTING, ""
        self._cause = ""
        self._forced = False
        self._agent_open = asyncio.Event()
        self.let_go: set[str] = set()
        """Ids of devices that it is asked to let go of."""
        self.released = asyncio.Event()
        """Set each time that it let go of one."""
        self._watching: asyncio.Task[None] | None = None

    # what it is

    @property
    def seen(self) -> Observed:
        if self.ended.done() and not self.ended.cancelled():
            return Observed(State.STOPPED, self.plan.generation, exit=self.ended.result())
        return Observed(
            self._state,
            self.plan.generation,
            pid=self.process.pid,
            reason=self._reason,
            agent=self._agent_open.is_set(),
        )

    @property
    def alive(self) -> bool:
        return not self.ended.done()

    @property
    def starved(self) -> bool:
        """Whether it waits for space on the host."""
        return self.alive and self._state is State.PAUSED and self._reason == NO_SPACE

    def written(self) -> list[Path]:
        """The files its writable disks are in."""
        return [path_of(layer) for d in self.plan.disks for layer in d.attachment.layers if not layer.read_only]

    def monitor(self) -> Qmp:
        """Raises Refused (it does not run), Unreachable (its monitor is lost for the moment)."""
        if not self.alive:
            raise Refused(f"{self.plan.name} is not running", hint=f"atoll start {self.plan.name}")
        if self._qmp is None:
            raise Unreachable(f"the monitor of {self.plan.name} does not answer", hint="try again")
        return self._qmp

    # holding it

    async def connect(self, *, timeout: float) -> str:
        """Connect to its monitor and learn what it is: QEMU's run state. Raises Absent, Broken, Unreachable."""
        qmp = await Qmp.connect(self.run.qmp, self.plan.name, self._on_event, timeout=timeout)
        try:
            status: str = (await qmp.execute("query-status"))["status"]
            if status != "prelaunch":
                await self._catch_up(qmp, status)
        except BaseException:
            await qmp.close()
            raise
        self._qmp = qmp
        return status

    async def _catch_up(self, qmp: Qmp, status: str) -> None:
        """What events would have told, had we been there."""
        ports = {port["label"]: port["frontend-open"] for port in await qmp.execute("query-chardev")}
        if ports.get(argv.AGENT):
            self._agent_open.set()
        reason = _WHY.get(status, "")
        if status == "io-error":
            blocks = await qmp.execute("query-block")
            starved = any(block.get("io-status") == "nospace" for block in blocks)
            reason = NO_SPACE if starved else "an error of its disk on the host"
        self._state, self._reason = (State.RUNNING if status == "running" else State.PAUSED), reason

    async def launch(self) -> None:
        """Let a guest that was started frozen run."""
        for nic in self.plan.nics:
            if not nic.link:
                await self.monitor().execute("set_link", {"name": f"nic{nic.slot}", "up": False})
        await self.monitor().execute("cont")
        self._state = State.RUNNING

    def hold(self, *, unheard: str = "") -> None:
        """Follow it from now on. `unheard`: why its monitor does not answer, where it does not."""
        if unheard:
            self._state, self._reason = State.RUNNING, unheard
        self._watching = asyncio.create_task(self._watch(), name=f"guest {self.plan.name}")

    async def close(self) -> None:
        """Let go of it; it goes on."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if not self.ended.done():
            self.ended.cancel()
        await self._hang_up()
        self.process.close()

    async def _hang_up(self) -> None:
        qmp, self._qmp = self._qmp, None
        self.agent.close()
        await self.console.close()
        if qmp is not None:
            await qmp.close()

    async def _watch(self) -> None:
        gone, attempt = self.process.watch(), 0
        while not gone.done():
            if self._qmp is None:
                await self._reconnect(_RECONNECT[min(attempt, len(_RECONNECT) - 1)])
                attempt += 1
                continue
            attempt = 0
            await asyncio.wait({gone, self._qmp.lost}, return_when=asyncio.FIRST_COMPLETED)
            if not gone.done() and not await self.process.wait(_SETTLE):
                log.warning("lost the monitor of %s", self.plan.name)
                await self._hang_up()
        await self._died()

    async def _reconnect(self, delay: float) -> None:
        """Once more, after `delay` seconds: a monitor that was silent may answer by then."""
        if await self.process.wait(delay):
            return
        with contextlib.suppress(AtollError):
            if await self.connect(timeout=5) == "prelaunch":  # a half-made start of a former daemon
                self.process.signal(SIGKILL)
            self._tell(self)

    async def _died(self) -> None:
        if self._qmp is not None:
            await asyncio.wait({self._qmp.lost}, timeout=_SETTLE)
        oom = await self._cgroups.oom_kills(self.run.name) if self._cgroups else 0
        remains = Remains(cause=self._cause, status=self.process.status, oom_kills=oom, forced=self._forced)
        exit = exitreason.of(self.run, remains)
        try:
            self.run.write_exit(exit)
            if self._cgroups:
                await self._cgroups.remove(self.run.name)
            self.run.ram.unlink(missing_ok=True)
            await self._hang_up()
        except Exception:  # what it left is found again; its death is news now
            log.exception("could not clear what %s left", self.plan.name)
        self._agent_open.clear()
        self.ended.set_result(exit)
        self._tell(self)

    def _on_event(self, event: Event) -> None:
        data = event.get("data", {})
        before = self.seen
        match event["event"]:
            case "STOP":
                self._state = State.PAUSED
            case "RESUME":
                self._state, self._reason = State.RUNNING, ""
            case "SHUTDOWN":
                self._cause = data.get("reason", "")
            case "RESET":
                self._agent_open.clear()
            case "GUEST_PANICKED":
                self._reason = _WHY["guest-panicked"]
            case "BLOCK_IO_ERROR" if data.get("action") == "stop":
                said = data.get("reason", "error")
                self._reason = NO_SPACE if data.get("nospace") else f"an error of its disk on the host: {said}"
            case "DEVICE_DELETED":
                self.let_go.discard(str(data.get("device")))
                self.released.set()
            case "VSERPORT_CHANGE" if data.get("id") == argv.AGENT:
                (self._agent_open.set if data.get("open") else self._agent_open.clear)()
        if self._watching is not None and self.seen != before:
            self._tell(self)

    def relimit(self, limits: Limits) -> None:
        """Remember, also for an engine that adopts it, what it is limited to now."""
        self.replan(replace(self.plan, limits=limits))

    def replan(self, plan: BootPlan) -> None:
        """Remember, also for an engine that adopts it, what it has become."""
        self.plan = plan
        self.run.write(Handle(self.plan, boot_id(), self.process.pid, self.process.started))

    # acting on it

    async def pause(self) -> None:
        await self.monitor().execute("stop")

    async def resume(self) -> None:
        await self.monitor().execute("cont")

    async def stop(self, *, grace: float) -> None:
        """Returns when it has ended. Raises Unreachable where even SIGKILL did not end it (a hung disk)."""
        if grace > 0 and self.alive:
            await self._ask(grace)
        if self.alive and not self.process.watch().done():
            await self._force()
        await asyncio.wait({self.ended}, timeout=_KILL_IN)

    async def _ask(self, grace: float) -> None:
        """Press the power button, several times: a booting guest hears only the later ones. Past a part of the
        grace also tell the agent."""
        until, wait, told = clock.monotonic() + grace, 1.0, False
        if self._state is State.PAUSED:
            with contextlib.suppress(AtollError):
                await self.resume()
        while (left := until - clock.monotonic()) > 0:
            with contextlib.suppress(AtollError):
                await self.monitor().execute("system_powerdown", timeout=min(5.0, left))
            if not told and left < grace * 0.6 and self._agent_open.is_set():
                told = True
                await inside.shut_down(self.agent)
            if await self.process.wait(min(wait, left)):
                return
            wait = min(wait * 2, 8.0)

    async def _force(self) -> None:
        """`quit` lets QEMU close its disks in good order; SIGKILL ends what does not listen."""
        self._forced = True
        with contextlib.suppress(AtollError):
            await self.monitor().execute("quit", timeout=_QUIT_IN)
            if await self.process.wait(_QUIT_IN):
                return
        self.process.signal(SIGKILL)
        if not await self.process.wait(_KILL_IN):
            raise Unreachable(
                f"{self.plan.name}: process {self.process.pid} does not end", hint="it waits for a disk that hangs"
            )

    async def agent_ready(self, *, timeout: float) -> None:
        """Raises Unreachable at the deadline, Broken where the guest ends."""
        opened = asyncio.create_task(self._answers())
        ends: set[asyncio.Future[Any]] = {opened, self.ended}
        try:
            await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if opened.done():
                return await opened
        finally:
            opened.cancel()
            await asyncio.gather(opened, return_exceptions=True)
        if not self.alive:
            raise Broken(
                f"{self.plan.name} ended: {self.ended.result().reason}", hint=f"atoll log {self.plan.name}"
            )
        raise Unreachable(
            f"the agent of {self.plan.name} did not answer within {timeout:g} s",
            hint=f"is qemu-guest-agent in the image? atoll log {self.plan.name}",
        )

    async def _answers(self) -> None:
        while True:
            await self._agent_open.wait()
            with contextlib.suppress(Unreachable, Broken):
                return await inside.ping(self.agent, timeout=5)
            await asyncio.sleep(0.1)
