"""Delete: everything of an instance, in an order that a crash can only finish."""

from collections.abc import Mapping
from typing import ClassVar

from atoll.base.errors import Absent, Refused
from atoll.instance.book import InstanceView, definition, status
from atoll.instance.here import Here
from atoll.instance.model import State
from atoll.instance.verbs.args import DeleteArgs
from atoll.instance.verbs.power import STOPPABLE, claim_stop, refuse_unless, settle
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
            view = await self._here.named(work, args.project, args.name)
        except Absent:
            if work.resumed:
                return
            raise
        removable = DELETABLE | STOPPABLE if args.force else DELETABLE

        async def terms(view: InstanceView) -> Mapping[str, object]:
            refuse_unless(DELETABLE, view)
            self._here.refuse_copied(view)
            return {}

        if view.status.state in STOPPABLE - removable:
            name, state = view.name, view.status.state
            raise Refused(f"{name} is {state}", hint=f"atoll stop {name}, or atoll delete --force {name}")
        refuse_unless(removable, view)
        before = view
        await work.step("mark", settle(work, view), percent=10)
        if view.status.state not in DELETABLE:
            view = await claim_stop(self._here, work, view, power=None)
            await self._here.engine(view).stop(view.id, grace=0)
            view = await self._here.record_stopped(work, view)
        await work.step("remove", percent=40)
        try:
            view = await self._here.claim(work, view, State.GONE, terms)
            await self._here.remove(view)
        except Absent:  # another deletion was faster
            if await self._here.book.by_id(view.id) is not None:
                raise
        work.changed(status(view.id), before.status_revision, 0)
        work.changed(definition(view.id), before.revision, 0)
