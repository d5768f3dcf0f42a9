"""A daemon killed at every step of every verb, on fakes: the next one finishes or takes back, by the table."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from atoll.base import clock
from atoll.base.errors import Absent
from atoll.instance.model import Exit, InstanceSpec, Restart, State
from atoll.instance.verbs.args import Changes
from atoll.instance.verbs.change import Rename, Set
from atoll.instance.verbs.delete import Delete
from atoll.instance.verbs.launch import Launch
from atoll.instance.verbs.power import Pause, Resume, Revive, Start, Stop
from atoll.instance.verbs.power import Restart as RestartVerb
from atoll.operation.verb import Recovery
from tests.kit.world import World


class Died(BaseException):
    """Stands for kill -9: nothing below it may run on."""


ARGS: dict[str, dict[str, Any]] = {
    "instance.launch": {"spec": InstanceSpec(image="tiny")},
    "instance.delete": {"force": True},
    "instance.rename": {"to": "shop"},
    "instance.set": {"changes": Changes(cpus=3)},
    "instance.revive": {"generation": 1},
}
BEFORE = {
    "instance.launch": "absent", "instance.start": "stopped", "instance.revive": "stopped",
    "instance.resume": "paused",
}  # fmt: skip
VERBS = (Launch, Start, Revive, Stop, RestartVerb, Pause, Resume, Delete, Set, Rename)
MOMENTS = [
    (verb, step, moment)
    for verb in VERBS
    for step in verb.steps
    for moment in ("enter", "journalled")
] + [(verb, "", moment) for verb in VERBS for moment in ("ran", "closed")]  # fmt: skip

FINISHED = {
    "instance.launch": "running", "instance.start": "running", "instance.revive": "running",
    "instance.stop": "stopped", "instance.restart": "running", "instance.pause": "paused",
    "instance.resume": "running", "instance.delete": "absent", "instance.set": "running",
    "instance.rename": "renamed",
}  # fmt: skip


async def where(world: World) -> str:
    try:
        return (await world.get()).status.state.value
    except Absent:
        try:
            await world.get("shop")
            return "renamed"
        except Absent:
            return "absent"


@pytest.mark.parametrize(("verb", "step", "moment"), MOMENTS, ids=lambda v: getattr(v, "name", v) or "end")
async def test_killed_there_the_next_daemon_settles_it(tmp_path: Path, verb: Any, step: str, moment: str) -> None:
    world = World(tmp_path, back_off=(60.0,))
    before = BEFORE.get(verb.name, "running")

    def die(name: str, at: str, when: str) -> None:
        if (name, at, when) == (verb.name, step, moment):
            raise Died

    async with world.boot(die):
        if before != "absent":
            await world.launch(restart=Restart.ALWAYS if verb is Revive else Restart.NO)
        if before == "stopped":
            await world.do("instance.stop", keep_wanted=verb is Revive)
        if before == "paused":
            await world.do("instance.pause")
        assert await where(world) == before
        with pytest.raises(Died):
            await world.do(verb.name, **ARGS.get(verb.name, {}))
    async with world.boot():
        after = await where(world)
        finished = FINISHED[verb.name]
        steps = list(verb.steps)
        journalled = steps[: steps.index(step) + (moment == "journalled")] if step else steps
        last = verb.steps[journalled[-1]] if journalled else Recovery.TAKE_BACK
        if verb.name in ("instance.pause", "instance.resume"):
            assert after in (before, finished), "what was observed counts"
        else:
            assert after == (finished if last is Recovery.FINISH else taken_back(verb.name, before, step))
        assert await world.operations.journal.all() == {}
        assert await world.operations.book.running() == []
        if after == "absent":
            assert await world.leftovers() == []
        else:
            name = "shop" if after == "renamed" else "web"
            await world.do("instance.delete", name, force=True)
            assert await world.leftovers() == [], "and it can be removed wholly"


def taken_back(verb: str, before: str, step: str) -> str:
    """As it was, except that a deletion that had ended its guest leaves it stopped."""
    return "stopped" if (verb, step) == ("instance.delete", "remove") else before


async def test_a_guest_that_died_meanwhile_is_recorded_and_its_policy_kept(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.boot():
        await world.launch()
        again = await world.launch("again", restart=Restart.ON_FAILURE)
    web = await world.get()
    for view in (web, again):
        world.engine.die(view.id, Exit("killed by signal 9", False, clock.now(), ("last words",)))
    async with world.boot():
        dead = await world.get()
        assert (dead.status.state, dead.status.reason) == (State.STOPPED, "killed by signal 9")
        for _ in range(100):
            if (await world.get("again")).status.state is State.RUNNING:
                break
            await asyncio.sleep(0.02)
        assert (await world.get("again")).status.generation == 2


async def test_after_a_reboot_what_is_wanted_on_starts_in_order(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.boot():
        from atoll.instance.model import Autostart

        await world.launch("second", autostart=Autostart(order=2))
        await world.launch("first", autostart=Autostart(order=1, delay=0.05))
        await world.launch("never", autostart=Autostart(enabled=False))
        await world.launch("off")
        await world.do("instance.stop", "off")
    world.guests.guests.clear()
    world.nets.clear()
    async with world.boot(rebooted=True):
        for _ in range(100):
            if (await world.get("second")).status.state is State.RUNNING:
                break
            await asyncio.sleep(0.02)
        states = {view.name: view.status.state for view in await world.here.book.all()}
        assert states == {
            "first": State.RUNNING, "second": State.RUNNING, "never": State.STOPPED, "off": State.STOPPED,
        }  # fmt: skip
        started = [op.subject.name for op in await world.operations.book.latest() if op.verb == "instance.start"]
        assert started == ["second", "first"], "the latest first"
        assert (await world.get("never")).status.reason == "the host was restarted"


async def test_a_guest_without_a_record_is_ended(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.boot():
        web = await world.launch()
        await world.shared.commit(world.here.book.releasing(web))
    async with world.boot():
        assert await world.engine.observe() == {}


async def test_running_guests_go_on_untouched(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.boot():
        web = await world.launch()
        pid = (await world.engine.observe())[web.id].pid
    async with world.boot():
        assert (await world.engine.observe())[web.id].pid == pid
        assert (await world.get()).status == web.status
