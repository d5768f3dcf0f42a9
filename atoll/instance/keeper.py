"""Keep records true and wishes fulfilled: what happens to guests reaches their records; policies act on it.

News comes from engines' events, never from polling. At a start of the daemon, `reconcile` compares what the
engines found with what is recorded.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence

import msgspec

from atoll.base import clock
from atoll.base.errors import AtollError
from atoll.base.ids import InstanceId, OperationId
from atoll.instance.book import InstanceView
from atoll.instance.engine import Engine, GuestEvent, Observed
from atoll.instance.here import ALIVE, Here
from atoll.instance.model import MAY_FOLLOW, Exit, InstanceStatus, Power, State
from atoll.instance.verbs.args import DiedArgs, NamedArgs
from atoll.instance.verbs.power import due
from atoll.operation.model import Actor, Subject
from atoll.operation.runner import Operations, Request

log = logging.getLogger(__name__)

BACK_OFF = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds before the 1st, 2nd, ... restart in a row; the last one from then on."""
AGAIN = (1.0, 30.0)
"""Seconds until news that could not be recorded is tried again: at first, and at most."""
HEALTHY = 300.0
"""Seconds of running after which the next death counts as the first again."""
LIVELY = frozenset({State.STARTING, State.RUNNING, State.PAUSED, State.MIGRATING})


class Keeper:
    def __init__(self, here: Here, operations: Operations, *, back_off: Sequence[float] = BACK_OFF) -> None:
        self._here, self._operations, self._back_off = here, operations, back_off
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Follow every engine from now on: call it before `reconcile`, so that nothing falls between."""
        for engine in self._here.engines.values():
            self._own(self._follow(engine), f"keeper of {engine.kind}")

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, engine: Engine) -> None:
        async for event in engine.events():
            try:
                await self.record(event)
            except Exception:
                log.exception("could not record %s of %s", event.seen.state, event.guest)
                self._own(self._again(event), f"news of {event.guest}")

    async def _again(self, event: GuestEvent) -> None:
        """Until it is on record: what cannot be written on a full disk can be when there is room."""
        delay = AGAIN[0]
        while True:
            await asyncio.sleep(delay)
            delay = min(delay * 2, AGAIN[1])
            try:
                await self.record(event)
                return
            except AtollError as error:
                log.warning("%s of %s is still not on record: %s", event.seen.state, event.guest, error)

    async def record(self, event: GuestEvent, *, wait: bool = True) -> None:
        """One piece of news into the record, unless it is of an older generation or a verb is at it.

        What dies in the middle of its start is looked at again once that has ended (`wait`).
        """
        view = await self._here.book.by_id(event.guest)
        if view is None or view.status.generation != event.seen.generation:
            return
        state, operation = view.status.state, view.status.operation
        if event.seen.state is State.STOPPED:
            if state in ALIVE:
                await self._died(view, event.seen)
            elif state in (State.CREATING, State.STARTING) and operation and wait:
                self._own(self._after(operation, event), f"death of {view.id}")
        elif event.seen.state in ALIVE:
            same = view.status.generation

            def only(now: InstanceStatus) -> bool:
                return now.state in ALIVE and now.generation == same

            latest = (await self._here.engine(view).observe()).get(event.guest)  # it may have gone on since
            if latest is not None and latest.state in ALIVE:
                await self._here.seen(view.id, latest.state, only=only, reason=latest.reason)

    async def _after(self, operation: OperationId, event: GuestEvent) -> None:
        await self._operations.wait(operation)
        await self.record(event, wait=False)

    async def _died(self, view: InstanceView, seen: Observed) -> None:
        reason = seen.exit.reason if seen.exit else "ended"
        log.info("%s/%s ended: %s", view.project, view.name, reason)
        ran = (clock.parse(clock.now()) - clock.parse(view.status.since)).total_seconds()
        restarts = 0 if ran > HEALTHY else view.status.restarts
        now = await self._here.ended(view, among=ALIVE, exit=seen.exit, reason=reason, restarts=restarts)
        if now is not None and now.status.state is State.STOPPED:
            self._revive(now)

    def _revive(self, view: InstanceView) -> None:
        spec = view.instance.spec
        if due(spec.restart, spec.power, view.status.exit):
            self._own(self._restart(view), f"restart of {view.id}")

    async def _restart(self, view: InstanceView) -> None:
        await asyncio.sleep(self._back_off[min(view.status.restarts, len(self._back_off) - 1)])
        args = DiedArgs(project=view.project, name=view.name, generation=view.status.generation)
        await self._submit("instance.revive", args, view, "restart-policy")

    async def _submit(self, verb: str, args: msgspec.Struct, view: InstanceView, why: str) -> None:
        subject = Subject("instance", view.project, view.name, view.id)
        request = Request(actor=Actor("atoll", why))
        try:
            await self._operations.do(verb, args, subject, request)
        except AtollError as error:
            log.warning("%s of %s/%s by %s failed: %s", verb, view.project, view.name, why, error)
            now = await self._here.book.by_id(view.id)
            if verb == "instance.revive" and now is not None and now.status.state is State.STOPPED:
                self._revive(now)

    def _own(self, work: object, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._let_go)
        return task

    def _let_go(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s ended badly", task.get_name(), exc_info=task.exception())

    async def reconcile(
        self, adopted: Mapping[InstanceId, Observed], *, rebooted: bool
    ) -> asyncio.Task[None] | None:
        """After a start of the daemon and the recovery of its operations: records follow what is there now,
        and of `adopted` only what had ended by then. (Recovery ends and starts guests.)

        `rebooted`: the host started anew, so everything wanted on is started in autostart order, by the task
        that is returned.
        """
        found = {guest: seen for guest, seen in adopted.items() if seen.state is State.STOPPED}
        for engine in self._here.engines.values():
            found |= await engine.observe()
        views = [view for view in await self._here.book.all() if view.status.host == self._here.host]
        busy = self._operations.busy()  # a verb that is still being finished keeps its own records
        for view in views:
            if view.id in busy:
                continue
            try:
                await self._compare(view, found.get(view.id), rebooted)
            except Exception:
                log.exception("could not reconcile %s/%s", view.project, view.name)
        known = {view.id for view in views}
        for guest in found.keys() - known:
            try:
                await self._end_orphan(guest)
            except AtollError as error:
                log.error("could not end guest %s: %s", guest, error)
        await self._here.supplies.sweep(await self._here.book.all(), busy=busy)
        return self._own(self._autostart(), "autostart") if rebooted else None

    async def _compare(self, view: InstanceView, seen: Observed | None, rebooted: bool) -> None:
        alive = seen is not None and seen.state in ALIVE and seen.generation == view.status.generation
        if alive and seen is not None:
            if view.status.state is not State.GONE:  # a deletion that failed half way: its user deletes again
                await self._found(view, seen)
            return
        if view.status.state in LIVELY | {State.STOPPING}:
            exit = seen.exit if seen and seen.exit else Exit("the host was restarted", rebooted, clock.now())
            now = await self._here.ended(view, exit=exit, reason=exit.reason)
            if now is not None and not rebooted:
                self._revive(now)
        elif view.status.state is State.CREATING:
            await self._here.seen(view.id, State.BROKEN, reason="its creation was never finished")
        elif view.status.state is State.STOPPED and not (
            rebooted or view.status.held
        ):  # a restart that was due, or begun and taken back
            self._revive(view)

    async def _found(self, view: InstanceView, seen: Observed) -> None:
        log.info("%s/%s is %s", view.project, view.name, seen.state)
        if seen.state is not view.status.state and seen.state not in MAY_FOLLOW[view.status.state]:
            await self._here.seen(view.id, State.BROKEN, reason=f"found {seen.state}")
        await self._here.seen(view.id, seen.state, reason=seen.reason)
        await self._here.supplies.plug(view, owner=await self._here.owner(view))

    async def _end_orphan(self, guest: InstanceId) -> None:
        log.warning("guest %s has no record: ending it", guest)
        for engine in self._here.engines.values():
            await engine.stop(guest, grace=0)
            await engine.forget(guest)

    async def _autostart(self) -> None:
        """What is wanted on, in order; each instance's delay passes before the next one starts."""
        views = [view for view in await self._here.book.all() if view.status.host == self._here.host]
        wanted = [v for v in views if v.instance.spec.power is Power.ON and v.instance.spec.autostart.enabled]
        for read in sorted(wanted, key=lambda v: (v.instance.spec.autostart.order, v.name)):
            view = await self._here.book.by_id(read.id)  # delays may be long: its user may have been faster
            if view is None or view.status.state is not State.STOPPED or view.instance.spec.power is Power.OFF:
                continue
            args = NamedArgs(project=view.project, name=view.name)
            await self._submit("instance.start", args, view, "autostart")
            await asyncio.sleep(view.instance.spec.autostart.delay)
