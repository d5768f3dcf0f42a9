"""Run verbs as operations: accept now, finish later, keep the outcome, take back what a failure began."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from atoll.base import clock
from atoll.base.errors import AtollError, Bug, Cancelled, Exists, Interrupted, Refused
from atoll.base.ids import HostId, OperationId, new_time_id
from atoll.operation.book import OperationBook
from atoll.operation.events import Events
from atoll.operation.journal import Journal, Note
from atoll.operation.model import (
    Actor,
    Operation,
    OperationStatus,
    Problem,
    Progress,
    StepDone,
    Subject,
    as_error,
    as_problem,
)
from atoll.operation.verb import Recovery, Undoer, UndoStep, Unknown, Verb

log = logging.getLogger(__name__)

AGAIN = 1.0
"""Seconds until an outcome that could not be recorded (a full disk) is tried again."""

PATIENCE = 3.0
"""Seconds that new operations wait for one that a former daemon left and this one finishes."""

Hook = Callable[[str, str, str], None]
"""Told (verb, step, moment) at "enter" (the former act is done), "journalled" (the coming act is not begun), and
with step "" at "ran", "closed". Fault injection only: the daemon's own is `nothing`."""


def nothing(_verb: str, _step: str, _moment: str) -> None:
    return None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Who asked for a change, and how to tell the same request sent twice.

    `fingerprint`: of what was sent, so that a key used for something else is found out.
    """

    actor: Actor
    id: str = ""
    idempotency_key: str = ""
    fingerprint: str = ""


class RunningWork:
    """See operation.verb.Work."""

    def __init__(self, runner: "Operations", verb: Verb, operation: Operation, resumed: str = "") -> None:
        self.id = operation.id
        self.operation = operation
        self.resumed = resumed
        self.task: asyncio.Task[Any] | None = None
        self.progress = Progress(operation.id, "")
        self.left = False
        self._runner, self._verb = runner, verb

    async def step(self, name: str, *undo: UndoStep, percent: int | None = None, text: str = "") -> None:
        if name not in self._verb.steps:
            raise Bug(f"{self._verb.name} has no step {name}")
        self._runner.hook(self._verb.name, name, "enter")
        await self._runner.journal.add(self.id, Note(name, undo, self.operation.subject.id))
        self._runner.hook(self._verb.name, name, "journalled")
        done = StepDone(name, clock.now())
        self.operation = msgspec.structs.replace(self.operation, steps=(*self.operation.steps, done))
        self.progress = Progress(self.id, name, percent, text)
        self._runner.tell(self)

    def tell(self, percent: int | None = None, text: str = "") -> None:
        self.progress = Progress(self.id, self.progress.step, percent, text)
        self._runner.tell(self)

    def changed(self, key: str, before: int, after: int) -> None:
        old = self.operation
        earlier = old.before.get(key, before)
        self.operation = msgspec.structs.replace(
            old, before={**old.before, key: earlier}, after={**old.after, key: after}
        )

    def about(self, *, name: str = "", id: str = "") -> None:
        subject = self.operation.subject
        subject = msgspec.structs.replace(subject, name=name or subject.name, id=id or subject.id)
        self.operation = msgspec.structs.replace(self.operation, subject=subject)

    @property
    def rule(self) -> Recovery:
        steps = self.operation.steps
        return self._verb.steps.get(steps[-1].name, Recovery.TAKE_BACK) if steps else Recovery.TAKE_BACK


class Operations:
    def __init__(
        self,
        book: OperationBook,
        journal: Journal,
        events: Events,
        *,
        host: HostId,
        epoch: int,
        hook: Hook = nothing,
    ) -> None:
        self.book, self.journal, self.events, self.hook = book, journal, events, hook
        self._host, self._epoch = host, epoch
        self._verbs: dict[str, Verb] = {}
        self._undoers: dict[str, Undoer] = {}
        self._works: dict[OperationId, RunningWork] = {}
        self._closing = False
        self._settled = asyncio.Event()
        self._settled.set()

    def hold(self) -> None:
        """Accept operations, but let none begin before `go`: the host is not yet as its records say."""
        self._settled.clear()

    def go(self) -> None:
        self._settled.set()

    @property
    def settled(self) -> bool:
        """Whether operations begin as they come."""
        return self._settled.is_set()

    def busy(self) -> frozenset[str]:
        """Ids of what operations are at, where they are known."""
        return frozenset(work.operation.subject.id for work in self._works.values() if work.operation.subject.id)

    def know(self, *verbs: Verb, undoers: Mapping[str, Undoer] | None = None) -> None:
        """Verbs it may run and acts that take back: given once, by the composition root."""
        self._verbs |= {verb.name: verb for verb in verbs}
        self._undoers |= undoers or {}

    @property
    def verbs(self) -> Mapping[str, Verb]:
        return self._verbs

    async def submit(self, verb: str, args: msgspec.Struct, subject: Subject, request: Request) -> Operation:
        """Accept a change. It runs on its own; `wait` or the events tell its outcome."""
        operation, _ = await asyncio.shield(self._accept(verb, args, subject, request))
        return operation

    async def _accept(
        self, verb: str, args: msgspec.Struct, subject: Subject, request: Request
    ) -> tuple[Operation, RunningWork | None]:
        """Shielded from its caller: what is recorded as running has a task."""
        asked = self._asked(verb, args, subject, request)
        operation = await self.book.open(asked, request.idempotency_key, request.fingerprint)
        if operation.id != asked.id:
            return operation, self._works.get(operation.id)
        work = RunningWork(self, self._verbs[verb], operation)
        self._begin(work, args)
        return operation, work

    def _asked(self, verb: str, args: msgspec.Struct, subject: Subject, request: Request) -> Operation:
        return Operation(
            id=OperationId(new_time_id()),
            verb=verb,
            subject=subject,
            status=OperationStatus.RUNNING,
            actor=request.actor,
            request_id=request.id or new_time_id(),
            host=self._host,
            epoch=self._epoch,
            created=clock.now(),
            request=msgspec.Raw(msgspec.json.encode(args)),
        )

    async def do(self, verb: str, args: msgspec.Struct, subject: Subject, request: Request) -> Any:
        """Submit and wait: what the verb returned, or the error it ended with."""
        operation, work = await asyncio.shield(self._accept(verb, args, subject, request))
        if work is not None and work.task is not None:
            value = await asyncio.shield(work.task)
            operation = work.operation
        else:
            operation, value = await self.book.get(operation.id), None
        if operation.problem is not None:
            raise as_error(operation.problem)
        return value

    @asynccontextmanager
    async def audited(
        self, verb: str, args: msgspec.Struct, subject: Subject, request: Request
    ) -> AsyncIterator[None]:
        """A change that a route carries out itself (exec, a token): on record before it begins, with its outcome
        after it. Where the daemon ends in between, the next one records that.

        Raises Exists where its idempotency key was used: what was answered then is not kept.
        """
        asked = self._asked(verb, args, subject, request)
        opened = await self.book.open(asked, request.idempotency_key, request.fingerprint)
        if opened.id != asked.id:
            raise Exists(f"this was sent before: {verb} {opened.status}", hint=f"atoll operation show {opened.id}")
        problem: Problem | None = as_problem(Interrupted(f"{verb} was given up by who asked for it"))
        try:
            yield
            problem = None
        except AtollError as error:
            problem = as_problem(error)
            raise
        except Exception:
            problem = as_problem(Bug("Atoll itself failed"))
            raise
        finally:
            status = OperationStatus.FAILED if problem else OperationStatus.DONE
            ended = msgspec.structs.replace(asked, status=status, finished=clock.now(), problem=problem)
            await asyncio.shield(self.book.close(ended))
            self._announce(f"operation.{status}", ended)

    async def wait(self, id: OperationId, timeout: float | None = None) -> Operation:
        """The operation once it ended, or as it stands at the deadline."""
        work = self._works.get(id)
        if work is None or work.task is None:
            return await self.book.get(id)
        await asyncio.wait([work.task], timeout=timeout)
        return work.operation

    def progress(self, id: OperationId) -> Progress | None:
        work = self._works.get(id)
        return work.progress if work else None

    async def cancel(self, id: OperationId) -> Operation:
        """Ask a running operation to stop and take back what it began; one that ended stays as it is.

        Raises Refused once it has reached a step that can only be finished.
        """
        work = self._works.get(id)
        if work is None or work.task is None:
            return await self.book.get(id)
        if work.rule is Recovery.FINISH:
            raise Refused(
                f"{work.operation.verb} of {work.operation.subject.name} is past the point of return",
                hint=f"wait for it: atoll operation wait {id}",
            )
        work.task.cancel()
        return work.operation

    async def close(self, grace: float = 10.0) -> None:
        """Let running operations end; after `grace` seconds cancel those that can be taken back, and leave those
        that are finished or resumed to the next daemon, as if this one had been killed."""
        works = [work for work in self._works.values() if work.rule is not Recovery.RESUME]
        tasks = [work.task for work in works if work.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        self._closing = True
        late = list(self._works.values())
        for work in late:
            work.left = work.rule is not Recovery.TAKE_BACK
            if work.task is not None:
                work.task.cancel()
        await asyncio.gather(*(work.task for work in late if work.task is not None), return_exceptions=True)

    async def recover(self) -> list[Operation]:
        """After a start: take back whatever a former daemon left in the middle, or finish it. Returns them: what
        takes longer to finish than PATIENCE (a guest's grace, a download) goes on beside new operations."""
        journals = await self.journal.all()
        ours = {op.id: op for op in await self.book.running() if op.host == self._host and op.epoch < self._epoch}
        ended = await asyncio.gather(
            *(self._recover(operation, journals.pop(id, [])) for id, operation in sorted(ours.items())),
            return_exceptions=True,
        )
        for outcome in ended:
            if isinstance(outcome, Exception):
                log.error("an operation could not be recovered", exc_info=outcome)
        for id in journals.keys() - self._works.keys():  # its outcome was recorded, its journal not yet closed
            await self.journal.close(id)
        await self.book.forget_keys()
        return [outcome for outcome in ended if isinstance(outcome, Operation)]

    async def _recover(self, operation: Operation, notes: list[Note]) -> Operation:
        verb = self._verbs.get(operation.verb, Unknown(operation.verb))
        work = RunningWork(self, verb, operation, resumed=notes[-1].step if notes else "")
        work.operation = msgspec.structs.replace(
            operation, steps=tuple(StepDone(note.step, operation.created) for note in notes)
        )
        work.about(id=next((note.about for note in reversed(notes) if note.about), ""))
        if notes and work.rule is not Recovery.TAKE_BACK:
            log.info("finishing %s of %s from step %s", verb.name, operation.subject.name, work.resumed)
            args = msgspec.json.decode(operation.request, type=verb.args)
            self._begin(work, args)
            assert work.task is not None
            if work.rule is Recovery.FINISH:
                await asyncio.wait([work.task], timeout=PATIENCE)
            return work.operation
        log.info("taking back %s of %s", verb.name, operation.subject.name)
        left = await self._take_back(notes)
        error = Interrupted(f"the daemon ended in the middle of {verb.name}", hint="run the command again")
        await self._end(work, None, error, left)
        return work.operation

    def _begin(self, work: RunningWork, args: msgspec.Struct) -> None:
        self._works[work.id] = work
        self._announce("operation.started", work.operation)
        work.task = asyncio.create_task(self._run(work, args), name=f"{work.operation.verb} {work.id}")
        work.task.add_done_callback(lambda task: self._ended(work.id, task))

    def _ended(self, id: OperationId, task: asyncio.Task[Any]) -> None:
        self._works.pop(id, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("operation %s ended badly", id, exc_info=task.exception())

    async def _run(self, work: RunningWork, args: msgspec.Struct) -> Any:
        value: Any = None
        error: AtollError | None = None
        try:
            if not work.resumed:
                await self._settled.wait()
            value = await self._verbs[work.operation.verb].run(work, args)
            self.hook(work.operation.verb, "", "ran")
        except asyncio.CancelledError:
            if work.left:
                return None
            error = Cancelled(f"{work.operation.verb} of {work.operation.subject.name} was cancelled")
        except AtollError as failure:
            error = failure
        except Exception:
            log.exception("bug in %s of %s", work.operation.verb, work.operation.subject.name)
            error = Bug("Atoll itself failed", hint=f"see the daemon's log for operation {work.id}")
        ending = asyncio.ensure_future(self._finish(work, value, error))
        while not ending.done():  # a second cancel must not stop the taking back
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                if ending.cancelled():
                    raise
        ending.result()
        return value

    async def _finish(self, work: RunningWork, value: Any, error: AtollError | None) -> None:
        notes = await self.journal.of(work.id) if error is not None else []
        left = await self._take_back(notes)
        await self._end(work, value, error, left)

    async def _take_back(self, notes: list[Note]) -> list[str]:
        """Replay undo steps, the newest note first. What could not be taken back is told, never raised."""
        left = []
        for note in reversed(notes):
            for undo in note.undo:
                try:
                    await self._undoers[undo.name](undo.args)
                except Exception as failure:  # the first error is the story, this one a footnote
                    log.exception("could not take back %s %s", undo.name, undo.args)
                    left.append(f"{undo.name} {' '.join(undo.args.values())}: {failure}")
        return left

    async def _end(self, work: RunningWork, value: Any, error: AtollError | None, left: list[str]) -> None:
        status = OperationStatus.DONE
        if error is not None:
            status = OperationStatus.CANCELLED if isinstance(error, Cancelled) else OperationStatus.FAILED
        result = value if isinstance(value, dict | list | str | int | type(None)) else None
        work.operation = msgspec.structs.replace(
            work.operation,
            status=status,
            finished=clock.now(),
            problem=as_problem(error) if error else None,
            result=msgspec.Raw(msgspec.json.encode(result)),
            note="; ".join(f"left behind: {what}" for what in left),
        )
        while not await self._kept(work):
            await asyncio.sleep(AGAIN)
        self.hook(work.operation.verb, "", "closed")
        await self.journal.close(work.id)
        self._announce(f"operation.{status}", work.operation)

    async def _kept(self, work: RunningWork) -> bool:
        """Record the outcome. False where it could not be: until then the operation runs, or it would run again."""
        try:
            await self.book.close(work.operation)
        except AtollError as error:
            log.error("the outcome of %s %s waits to be kept: %s", work.operation.verb, work.id, error)
            if self._closing:
                raise
            return False
        return True

    def tell(self, work: RunningWork) -> None:
        self.events.publish("operation.progress", work.operation.subject, work.progress, keep=False)

    def _announce(self, kind: str, operation: Operation) -> None:
        body = {
            "operation": operation.id,
            "verb": operation.verb,
            "actor": operation.actor,
            "problem": operation.problem,
        }
        self.events.publish(kind, operation.subject, body)
