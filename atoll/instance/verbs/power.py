"""start, stop, restart, pause, resume: from one power state to another, or told why not."""

from collections.abc import Collection, Mapping
from typing import ClassVar

import msgspec

from atoll.base.errors import Refused
from atoll.base.ids import Generation
from atoll.instance.book import InstanceView
from atoll.instance.book import status as status_of
from atoll.instance.here import ALIVE, Here
from atoll.instance.model import Exit, Instance, InstanceStatus, Power, State
from atoll.instance.model import Restart as RestartPolicy
from atoll.instance.verbs.args import DiedArgs, NamedArgs, StopArgs
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery, UndoStep

TAKE_BACK, FINISH = Recovery.TAKE_BACK, Recovery.FINISH
STARTABLE = frozenset({State.STOPPED, State.BROKEN})
STOPPABLE = frozenset({State.RUNNING, State.PAUSED, State.STOPPING, State.BROKEN})


def settle(work: RunningWork, view: InstanceView) -> UndoStep:
    """Undo of a state that was only on its way: record whatever the host really has."""
    return UndoStep("instance.settle", {"id": view.id, "operation": work.id})


def due(restart: RestartPolicy, power: Power, exit: Exit | None) -> bool:
    """Whether the restart policy asks for a new start after that end."""
    if power is Power.OFF or restart is RestartPolicy.NO:
        return False
    return restart is RestartPolicy.ALWAYS or exit is None or not exit.clean


def refuse_unless(states: Collection[State], view: InstanceView) -> None:
    if view.status.state not in states:
        raise Refused(f"{view.name} is {view.status.state}", hint=next_step(view))


STARTING: Mapping[str, Recovery] = {"claim": TAKE_BACK, "network": TAKE_BACK, "start": TAKE_BACK, "record": FINISH}


class Start:
    """Stopped or broken to running, as a new generation. Running already: nothing to do."""

    name = "instance.start"
    args = NamedArgs
    steps: ClassVar[Mapping[str, Recovery]] = STARTING

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: NamedArgs) -> None:
        view = await self._here.named(work, args.project, args.name)
        if work.resumed:
            await self._here.record_running(work, view)
        elif view.status.state is State.RUNNING:
            await want(self._here, work, view, Power.ON)
        else:
            await start(self._here, work, view)


class Revive:
    """The restart policy's start: of what died, unless its user or anybody else moved it on meanwhile."""

    name = "instance.revive"
    args = DiedArgs
    steps: ClassVar[Mapping[str, Recovery]] = STARTING

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: DiedArgs) -> None:
        view = await self._here.named(work, args.project, args.name)
        if work.resumed:
            await self._here.record_running(work, view)
        elif view.status.state is State.STOPPED and view.status.generation == args.generation:
            again = view.status.restarts + 1
            await self._here.seen(view.id, None, restarts=again)
            await start(self._here, work, await self._here.present(view.id), restarts=again)


async def start(here: Here, work: RunningWork, view: InstanceView, *, restarts: int = 0) -> InstanceView:
    """Claim the start by raising the generation, plug, run, record.

    `restarts`: which one in a row the policy's start is; 0: somebody wants it on.
    """

    async def terms(view: InstanceView) -> Mapping[str, object]:
        refuse_unless(STARTABLE, view)
        spec = view.instance.spec
        if restarts and not due(spec.restart, spec.power, view.status.exit):
            raise Refused(f"{view.name} is no longer to be started again")
        here.refuse_copied(view)
        here.check_limits(spec.kind, spec.limits)
        await here.admit(view)
        return {
            "generation": Generation(view.status.generation + 1),
            "reason": "",
            "restarts": restarts,
            "memory": spec.memory,
            "held": False,
        }

    refuse_unless(STARTABLE, view)
    await work.step("claim", settle(work, view), percent=10)
    async with here.admission:
        power = None if restarts else Power.ON
        view = await here.claim(work, view, State.STARTING, terms, power=power)
    await here.bring_up(work, view)
    await work.step("record", percent=95)
    return await here.record_running(work, view)


async def want(here: Here, work: RunningWork, view: InstanceView, power: Power) -> InstanceView:
    """Record what its user wants from now on."""

    async def change(view: InstanceView) -> Instance:
        return msgspec.structs.replace(view.instance, spec=msgspec.structs.replace(view.instance.spec, power=power))

    return await here.define(work, view, change)


class Stop:
    """Running or paused to stopped: asked to shut down, ended by force after its grace. Stopped: nothing to do."""

    name = "instance.stop"
    args = StopArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"ask": FINISH, "release": FINISH}

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: StopArgs) -> None:
        view = await self._here.named(work, args.project, args.name)
        if view.status.state is State.STOPPED:
            if not args.keep_wanted:
                await want(self._here, work, view, Power.OFF)
            view = await self._here.present(view.id)  # a start may have been faster
        if view.status.state is not State.STOPPED:
            await stop(self._here, work, view, grace=args.grace, keep_wanted=args.keep_wanted)


async def stop(
    here: Here, work: RunningWork, view: InstanceView, *, grace: float, keep_wanted: bool = False
) -> InstanceView:
    """Claim the stop, ask the guest, record its end. One under way already is taken over: it may get less grace."""
    refuse_unless(STOPPABLE, view)
    await work.step("ask", settle(work, view), percent=10, text=f"up to {grace:.0f} s for a clean shutdown")
    view = await claim_stop(here, work, view, power=None if keep_wanted else Power.OFF)
    await here.engine(view).stop(view.id, grace=grace)
    await work.step("release", percent=80)
    return await here.record_stopped(work, view)


async def claim_stop(here: Here, work: RunningWork, view: InstanceView, *, power: Power | None) -> InstanceView:
    """Claim it for ending it; as it is where nothing is left to end (broken, or ended by somebody else)."""

    async def terms(view: InstanceView) -> Mapping[str, object]:
        refuse_unless(STOPPABLE - {State.BROKEN}, view)
        return {}

    try:
        return await here.claim(work, view, State.STOPPING, terms, power=power)
    except Refused:
        view = await here.present(view.id)
        if view.status.state not in (State.BROKEN, State.STOPPED, State.GONE):
            raise
        return view if power is None else await want(here, work, view, power)


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
        view = await self._here.named(work, args.project, args.name)
        if work.resumed in STARTING:
            if await self._here.alive(view):
                await self._here.record_running(work, view)
                return
            view = await self._here.clear(work, view)
        stopped = view.status.state is State.STOPPED
        if not (stopped and work.resumed):
            refuse_unless(STOPPABLE - {State.BROKEN}, view)
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
        view = await self._here.named(work, args.project, args.name)
        if view.status.state is self.then:
            return
        refuse_unless({self.now}, view)

        def same(status: InstanceStatus) -> bool:
            return status.state in ALIVE and status.generation == view.status.generation

        await work.step(next(iter(self.steps)))  # nothing to take back: what it is then, the keeper records
        await self._act(view)
        done = await self._here.seen(view.id, self.then, only=same)
        if done is None or not same(done.status):
            raise Refused(f"{view.name} moved on: it is {done.status.state if done else 'deleted'}")
        work.changed(status_of(view.id), view.status_revision, done.status_revision)

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
