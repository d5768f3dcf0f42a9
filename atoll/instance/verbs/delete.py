"""Delete: everything of an instance, in an order that a crash can only finish."""

from collections.abc import Mapping
from typing import ClassVar

from atoll.base import clock
from atoll.base.errors import Absent, Refused
from atoll.instance.here import Here
from atoll.instance.model import State
from atoll.instance.verbs.args import DeleteArgs
from atoll.instance.verbs.power import STOPPABLE, next_step, settle
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery

DELETABLE = frozenset({State.STOPPED, State.BROKEN, State.GONE})


class Delete:
    name = "instance.delete"
    args = DeleteArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"mark": Recovery.TAKE_BACK, "remove": Recovery.FINISH}

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: DeleteArgs) -> None:
        try:
            view = await self._here.book.get(args.project, args.name)
        except Absent:
            if work.resumed:
                return
            raise
        work.about(id=view.id)
        state = view.status.state
        if state in STOPPABLE - DELETABLE and not args.force:
            raise Refused(
                f"{view.name} is {state}", hint=f"atoll stop {view.name}, or atoll delete --force {view.name}"
            )
        if state not in STOPPABLE | DELETABLE:
            raise Refused(f"{view.name} is {state}", hint=next_step(view))
        await work.step("mark", settle(view), percent=10)
        if state not in DELETABLE:
            await self._here.engine(view).stop(view.id, grace=0)
            view = await self._here.record_stopped(view.id)
        if view.status.state is not State.GONE:
            before = view.status_revision
            view = await self._here.book.move(view, State.GONE, operation=work.id, since=clock.now())
            work.changed(f"status/{view.id}", before, view.status_revision)
        await work.step("remove", percent=40)
        await self._here.remove(view)
        work.changed(f"definition/{view.id}", view.revision, 0)
