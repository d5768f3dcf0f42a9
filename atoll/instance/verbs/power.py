"""start, stop, restart, pause, resume: from one power state to another, or told why not."""

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from atoll.base import clock
from atoll.base.errors import Refused
from atoll.base.ids import Generation
from atoll.instance.book import InstanceView
from atoll.instance.here import Here
from atoll.instance.model import Power, State
from atoll.instance.verbs.args import DiedArgs, NamedArgs, StopArgs
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery, UndoStep

TAKE_BACK, FINISH = Recovery.TAKE_BACK, Recovery.FINISH


def settle(view: InstanceView) -> UndoStep:
    """Undo of a state that was only on its way: record whatever the host really has."""
    return UndoStep("instance.settle", {"id": view.id})


async def wanted(here: Here, view: InstanceView, power: Power) -> InstanceView:
    """Record what its user wants from now on."""
    if view.instance.spec.power is power:
        return view
    spec = msgspec.structs.replace(view.instance.spec, power=power)
    return await here.book.write_definition(view, msgspec.structs.replace(view.instance, spec=spec))


STARTING: Mapping[str, Recovery] = {"claim": TAKE_BACK, "network": TAKE_BACK, "start": TAKE_BACK, "record": FINISH}


class Start:
    """Stopped or broken to running, as a new generation. Running already: nothing to do."""

    name = "instance.start"
    args = NamedArgs
    steps: ClassVar[Mapping[str, Recovery]] = STARTING

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: NamedArgs) -> None:
        view = await self._here.book.get(args.project, args.name)
        work.about(id=view.id)
        if work.resumed:
            await self._here.record_running(work, view)
            return
        if view.status.state is State.RUNNING:
            await wanted(self._here, view, Power.ON)
            return
        await start(self._here, work, view)


class Revive:
    """The restart policy's start: of what died, unless its user or anybody else moved it on meanwhile."""

    name = "instance.revive"
    args = DiedArgs
    steps: ClassVar[Mapping[str, Recovery]] = STARTING

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: DiedArgs) -> None:
        view = await self._here.book.get(args.project, args.name)
        work.about(id=view.id)
        status = view.status
        if work.resumed:
            await self._here.record_running(work, view)
        elif status.state is State.STOPPED and status.generation == args.generation:
            await self._here.seen(view.id, None, restarts=status.restarts + 1)
            await start(self._here, work, await self._here.present(view.id))


async def start(here: Here, work: RunningWork, view: InstanceView) -> InstanceView:
    """Claim the start by raising the generation, plug, run, record. For start, restart and the daemon itself."""
    if view.status.state not in (State.STOPPED, State.BROKEN):
        raise Refused(f"{view.name} is {view.status.state}", hint=next_step(view))
    view = await wanted(here, view, Power.ON)
    async with here.admission:
        await here.admit(view)
        await work.step("claim", settle(view), percent=10)
        before = view.status_revision
        view = await here.book.move(
            view,
            State.STARTING,
            generation=Generation(view.status.generation + 1),
            operation=work.id,
            reason="",
            since=clock.now(),
        )
        work.changed(f"status/{view.id}", before, view.status_revision)
    await here.bring_up(work, view)
    await work.step("record", percent=95)
    return await here.record_running(work, view)


class Stop:
    """Running or paused to stopped: asked to shut down, ended by force after its grace. Stopped: nothing to do."""

    name = "instance.stop"
    args = StopArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"ask": FINISH, "release": FINISH}

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: StopArgs) -> None:
        view = await self._here.book.get(args.project, args.name)
        work.about(id=view.id)
        if view.status.state is State.STOPPED:
            if not args.keep_wanted:
                await wanted(self._here, view, Power.OFF)
            return
        await stop(self._here, work, view, grace=args.grace, keep_wanted=args.keep_wanted)


STOPPABLE = frozenset({State.RUNNING, State.PAUSED, State.STOPPING, State.BROKEN})


async def stop(
    here: Here, work: RunningWork, view: InstanceView, *, grace: float, keep_wanted: bool = False
) -> InstanceView:
    if view.status.state not in STOPPABLE:
        raise Refused(f"{view.name} is {view.status.state}", hint=next_step(view))
    if not keep_wanted:
        view = await wanted(here, view, Power.OFF)
    await work.step("ask", settle(view), percent=10, text=f"up to {grace:.0f} s for a clean shutdown")
    if view.status.state in (State.RUNNING, State.PAUSED):
        before = view.status_revision
        view = await here.book.move(view, State.STOPPING, operation=work.id, since=clock.now())
        work.changed(f"status/{view.id}", before, view.status_revision)
    await here.engine(view).stop(view.id, grace=grace)
    await work.step("release", percent=80)
    return await here.record_stopped(view.id)


class Restart:
    """Stop, then start: a new process with the settings of now."""

    name = "instance.restart"
    args = StopArgs
    steps: ClassVar[Mapping[str, Recovery]] = dict.fromkeys(
        ("ask", "release", "claim", "network", "start", "record"), FINISH
    )

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: StopArgs) -> None:
        view = await self._here.book.get(args.project, args.name)
        work.about(id=view.id)
        if work.resumed in STARTING:
            if await self._here.alive(view):
                await self._here.record_running(work, view)
                return
            view = await self._here.clear(view)
        if view.status.state not in (State.RUNNING, State.PAUSED, State.STOPPING, State.STOPPED):
            raise Refused(f"{view.name} is {view.status.state}", hint=next_step(view))
        if view.status.state is State.STOPPED and not work.resumed:
            raise Refused(f"{view.name} is stopped", hint=f"atoll start {view.name}")
        if view.status.state is not State.STOPPED:
            view = await stop(self._here, work, view, grace=args.grace, keep_wanted=True)
        await start(self._here, work, view)


class Pause:
    """Running to paused: its CPUs stand still, its memory stays. Paused already: nothing to do."""

    name = "instance.pause"
    args = NamedArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"pause": TAKE_BACK}
    now, then = State.RUNNING, State.PAUSED

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: NamedArgs) -> None:
        view = await self._here.book.get(args.project, args.name)
        work.about(id=view.id)
        if view.status.state is self.then:
            return
        if view.status.state is not self.now:
            raise Refused(f"{view.name} is {view.status.state}", hint=next_step(view))
        await work.step(next(iter(self.steps)), settle(view))
        await self._act(view)
        await self._here.seen(view.id, self.then)

    async def _act(self, view: InstanceView) -> None:
        if not self._here.engine(view).traits.pauses:
            raise Refused(f"{view.name} cannot be paused: its engine has no pause")
        await self._here.engine(view).pause(view.id)


class Resume(Pause):
    """Paused to running. Running already: nothing to do."""

    name = "instance.resume"
    steps: ClassVar[Mapping[str, Recovery]] = {"resume": TAKE_BACK}
    now, then = State.PAUSED, State.RUNNING

    async def _act(self, view: InstanceView) -> None:
        await self._here.engine(view).resume(view.id)


def next_step(view: InstanceView) -> str:
    """The hint for a verb that this state forbids."""
    name, id = view.name, view.status.operation
    return {
        State.STOPPED: f"atoll start {name}",
        State.RUNNING: f"atoll stop {name}",
        State.PAUSED: f"atoll resume {name}, or atoll stop {name}",
        State.BROKEN: f"atoll start {name} tries again; atoll show {name} tells the reason",
        State.GONE: f"it is being deleted: atoll delete {name} goes on with that",
    }.get(view.status.state, f"wait for it: atoll operation wait {id}" if id else f"atoll history {name}")
