"""Operations on a memory store: outcomes, undo, cancel, recovery after a death at every step, the audit."""

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import pytest

from atoll.base.errors import Broken, Cancelled, Compacted, Invalid, Refused
from atoll.base.ids import HostId
from atoll.operation.book import OperationBook
from atoll.operation.events import KEPT, Events
from atoll.operation.journal import Journal
from atoll.operation.model import Actor, News, Operation, OperationStatus, Subject
from atoll.operation.runner import Operations, Request, RunningWork
from atoll.operation.verb import Recovery, UndoStep
from atoll.store.memory import MemoryStore

ME = Request(actor=Actor("uid", "0"))
BOX = Subject("box", "default", "b1")


class Args(msgspec.Struct, frozen=True):
    fail_at: str = ""
    hang_at: str = ""


class World:
    """Two things made in turn, then a last step that can only be finished."""

    def __init__(self) -> None:
        self.shared, self.local = MemoryStore(), MemoryStore()
        self.things: set[str] = set()
        self.reached = asyncio.Event()
        self.epoch = 0

    async def boot(self, hook: Any = None) -> Operations:
        self.epoch += 1
        events = Events(self.local)
        await events.start()
        host = HostId("h")
        extra = {"hook": hook} if hook else {}
        runner = Operations(
            OperationBook(self.shared), Journal(self.local), events, host=host, epoch=self.epoch, **extra
        )

        async def unmake(args: Mapping[str, str]) -> None:
            self.things.discard(args["thing"])

        runner.know(Make(self), undoers={"unmake": unmake})
        return runner


class Make:
    name = "box.make"
    args = Args
    steps: ClassVar[Mapping[str, Recovery]] = {
        "one": Recovery.TAKE_BACK,
        "two": Recovery.TAKE_BACK,
        "seal": Recovery.FINISH,
    }

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self, work: RunningWork, args: Args) -> dict[str, str]:
        for step in ("one", "two", "seal") if not work.resumed else ("seal",):
            await work.step(step, UndoStep("unmake", {"thing": step}))
            self.world.things.add(step)
            if step == args.hang_at:
                self.world.reached.set()
                await asyncio.Event().wait()
            if step == args.fail_at:
                raise Broken(f"{step} broke", hint="mend it")
        work.changed("box", 0, 7)
        return {"made": "b1"}


class Died(BaseException):
    """Stands for kill -9: nothing below it may run on."""


async def outcome(runner: Operations, args: Args, **request: str) -> Operation:
    operation = await runner.submit("box.make", args, BOX, msgspec.structs.replace(ME, **request))
    return await runner.wait(operation.id, 5)


async def test_done_keeps_steps_result_and_revisions() -> None:
    world = World()
    runner = await world.boot()
    done = await outcome(runner, Args())
    assert (done.status, world.things) == (OperationStatus.DONE, {"one", "two", "seal"})
    assert [step.name for step in done.steps] == ["one", "two", "seal"]
    assert (bytes(done.result), done.after) == (b'{"made":"b1"}', {"box": 7})
    assert (await runner.book.get(done.id)).status is OperationStatus.DONE
    assert await runner.journal.all() == {}


async def test_failure_takes_everything_back_and_keeps_the_reason() -> None:
    world = World()
    runner = await world.boot()
    failed = await outcome(runner, Args(fail_at="two"))
    assert (failed.status, world.things) == (OperationStatus.FAILED, set())
    assert failed.problem is not None
    assert (failed.problem.code, failed.problem.hint) == ("broken", "mend it")
    with pytest.raises(Broken, match="two broke"):
        await runner.do("box.make", Args(fail_at="two"), BOX, ME)


async def test_cancel_takes_back_even_when_cancelled_twice() -> None:
    world = World()
    runner = await world.boot()
    operation = await runner.submit("box.make", Args(hang_at="two"), BOX, ME)
    await world.reached.wait()
    await runner.cancel(operation.id)
    await runner.cancel(operation.id)
    ended = await runner.wait(operation.id, 5)
    assert (ended.status, world.things) == (OperationStatus.CANCELLED, set())
    with pytest.raises(Cancelled):
        raise_of(ended)


async def test_cancel_is_refused_past_the_point_of_return() -> None:
    world = World()
    runner = await world.boot()
    operation = await runner.submit("box.make", Args(hang_at="seal"), BOX, ME)
    await world.reached.wait()
    with pytest.raises(Refused, match="point of return"):
        await runner.cancel(operation.id)
    task = next(t for t in asyncio.all_tasks() if t.get_name().endswith(operation.id))
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("moment", ["enter", "journalled"])
@pytest.mark.parametrize("step", [*Make.steps])
async def test_death_at_every_step_is_recovered_by_the_table(step: str, moment: str) -> None:
    world = World()

    def die(verb: str, at: str, when: str) -> None:
        if (at, when) == (step, moment):
            raise Died

    first = await world.boot(die)
    task = asyncio.create_task(first.submit("box.make", Args(), BOX, ME))
    await asyncio.sleep(0.02)
    runner = await world.boot()
    [ended] = await runner.recover()
    finishes = (step, moment) == ("seal", "journalled")
    assert ended.status is (OperationStatus.DONE if finishes else OperationStatus.FAILED)
    assert world.things == ({"one", "two", "seal"} if finishes else set())
    assert await runner.journal.all() == {}
    assert await runner.book.running() == []
    assert await runner.recover() == []
    await task


async def test_recovery_leaves_this_daemons_own_operations_alone() -> None:
    world = World()
    runner = await world.boot()
    operation = await runner.submit("box.make", Args(hang_at="two"), BOX, ME)
    await world.reached.wait()
    assert await runner.recover() == []
    assert operation.id in await runner.journal.all()
    await runner.cancel(operation.id)
    await runner.wait(operation.id, 5)


async def test_idempotency_key_gives_the_same_operation_or_is_refused() -> None:
    world = World()
    runner = await world.boot()
    first = await outcome(runner, Args(), idempotency_key="k", fingerprint="f")
    again = await outcome(runner, Args(), idempotency_key="k", fingerprint="f")
    assert first.id == again.id
    with pytest.raises(Invalid, match="another request"):
        await outcome(runner, Args(fail_at="one"), idempotency_key="k", fingerprint="g")
    assert (await outcome(runner, Args(), idempotency_key="other")).id != first.id


async def test_history_is_newest_first_and_by_subject() -> None:
    world = World()
    runner = await world.boot()
    made = [await outcome(runner, Args()) for _ in range(3)]
    made.reverse()
    assert [op.id for op in await runner.book.latest(limit=2)] == [op.id for op in made[:2]]
    assert [op.id for op in await runner.book.latest(limit=5, after=made[0].id)] == [op.id for op in made[1:]]
    assert {op.id for op in await runner.book.of(BOX)} == {op.id for op in made}
    assert await runner.book.of(Subject("box", "default", "b")) == []


async def test_events_resume_by_id_across_a_restart() -> None:
    store = MemoryStore()
    events = Events(store)
    await events.start()
    for number in range(3):
        events.publish(f"box.{number}", BOX)
    stream = events.follow("0")
    seen = [await anext(stream) for _ in range(3)]
    await events.close()
    later = Events(store)
    await later.start()
    later.publish("box.3", BOX)
    resumed = later.follow(seen[0].id)
    assert [(await anext(resumed)).kind for _ in range(3)] == ["box.1", "box.2", "box.3"]
    await later.close()


async def test_progress_is_heard_but_never_kept() -> None:
    events = Events(MemoryStore())
    await events.start()
    stream = events.follow(None)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    events.publish("operation.progress", BOX, keep=False)
    assert (await waiting).id == ""
    events.publish("box.made", BOX)
    assert (await anext(events.follow("0"))).kind == "box.made"
    await events.close()


async def test_events_too_old_or_too_slow_are_said_so() -> None:
    events = Events(MemoryStore())
    await events.start()
    slow = events.follow(None)
    first = asyncio.ensure_future(anext(slow))
    await asyncio.sleep(0)
    for _ in range(KEPT + 10):
        events.publish("box.made", BOX)
    await first
    while (await anext(events.follow("0"))).id == f"{1:016d}":
        await asyncio.sleep(0.01)
    with pytest.raises(Compacted):
        await anext(events.follow("1"))

    async def drain() -> list[News]:
        return [news async for news in slow]

    with pytest.raises(Compacted, match="too far behind"):
        await asyncio.wait_for(drain(), 10)
    await events.close()


def raise_of(operation: Operation) -> None:
    from atoll.operation.model import as_error

    assert operation.problem is not None
    raise as_error(operation.problem)
