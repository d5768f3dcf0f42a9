"""kill -9 of the daemon at every step and moment of every verb, with real guests: the next one finishes or takes
back, by the table of the verbs themselves, and nothing of it stays on the host."""

import http.client
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from atoll.image.imports import ImportImage
from atoll.image.verbs import Build, DeleteImage, PruneImages, RenameImage
from atoll.instance.verbs.change import Rename, Set
from atoll.instance.verbs.delete import Delete
from atoll.instance.verbs.launch import Launch
from atoll.instance.verbs.power import Pause, Restart, Resume, Revive, Start, Stop
from atoll.operation.verb import Recovery
from tests.kit.daemon import INSTANCES, MIB, SMALL, Daemon, daemon, until
from tests.kit.mirror import mirror

IMAGES = "/v1/projects/default/images"
AT_ONCE = {"grace": 0}


class Case(NamedTuple):
    """`before`: the instance's state to begin with. `done`: what it is when the verb was finished."""

    verb: Any
    before: str
    done: str
    method: str
    path: str
    body: Any = None


CASES = (
    Case(Launch, "absent", "running", "POST", INSTANCES,
         {"name": "web", "spec": {"image": "tiny", "memory": SMALL, "forkable": True}}),
    Case(Start, "stopped", "running", "POST", f"{INSTANCES}/web/start"),
    Case(Revive, "running", "running", "KILL", ""),
    Case(Stop, "running", "stopped", "POST", f"{INSTANCES}/web/stop", AT_ONCE),
    Case(Restart, "running", "running", "POST", f"{INSTANCES}/web/restart", AT_ONCE),
    Case(Pause, "running", "paused", "POST", f"{INSTANCES}/web/pause"),
    Case(Resume, "paused", "running", "POST", f"{INSTANCES}/web/resume"),
    Case(Delete, "running", "absent", "DELETE", f"{INSTANCES}/web?force=true"),
    Case(Set, "running", "running", "PATCH", f"{INSTANCES}/web", {"cpus": 2, "memory": SMALL + 128 * MIB}),
    Case(Rename, "running", "renamed", "POST", f"{INSTANCES}/web/rename", {"to": "shop"}),
)  # fmt: skip


def moments(verb: Any) -> list[tuple[str, str]]:
    inner = [(step, moment) for step in verb.steps for moment in ("enter", "journalled")]
    return [*inner, ("", "ran"), ("", "closed")]


TABLE = [pytest.param(case, *at, id="-".join((case.verb.name, *at))) for case in CASES for at in moments(case.verb)]


@pytest.fixture(scope="module")
def world(base: Path) -> Iterator[Daemon]:
    """One host for the whole table, in which a network has been up."""
    with daemon(base) as made:
        (made.state / "atoll.toml").write_text('[images]\nprivate = ["127.0.0.0/8"]\n')
        made.start()
        made.launch("first")
        made.delete("first")
        yield made


@pytest.fixture
def atoll(world: Daemon) -> Iterator[Daemon]:
    """Running and without instances, whatever the case before it came to."""
    if world.process is None or world.process.poll() is not None:
        world.start()
    world.delete(*world.all())
    yield world
    world.crash_at("")


def expected(case: Case, step: str, moment: str) -> str:
    """By the verb's table: the last journalled step says whether it is finished or taken back."""
    steps = list(case.verb.steps)
    journalled = steps[: steps.index(step) + (moment == "journalled")] if step else steps
    if journalled and case.verb.steps[journalled[-1]] is not Recovery.TAKE_BACK:
        return case.done
    if (case.verb.name, step) == ("instance.delete", "remove"):
        return "stopped"  # as it was, but for its guest, which had ended by then
    if case.verb is Revive:
        return "running"  # taken back it is a guest that died: its policy starts it again
    return case.before


def where(atoll: Daemon) -> str:
    return "renamed" if atoll.state_of("shop") != "absent" else atoll.state_of("web")


@pytest.mark.parametrize(("case", "step", "moment"), TABLE)
def test_killed_there_the_next_daemon_settles_it(atoll: Daemon, case: Case, step: str, moment: str) -> None:
    before = atoll.account()
    prepare(atoll, case)
    was = atoll.pid_of("web") if case.before in ("running", "paused") else 0
    atoll.crash_at(f"{case.verb.name}/{step}/{moment}")
    go(atoll, case)
    atoll.wait_dead()
    atoll.start()
    recovered(atoll)
    wanted = expected(case, step, moment)
    if case.verb in (Pause, Resume):
        until(lambda: where(atoll) in (case.before, case.done), f"what was observed counts: {where(atoll)}", 20)
    else:
        until(lambda: where(atoll) == wanted, lambda: f"{wanted}, not {where(atoll)}\n{atoll.said()}", 20)
    consistent(atoll, was if case.verb in (Pause, Resume, Set, Rename) else 0)
    name = "shop" if where(atoll) == "renamed" else "web"
    if case.verb is Set:
        size = atoll.show(name)["instance"]["spec"]["memory"]
        assert size == (SMALL if (step, moment) == ("write", "enter") else SMALL + 128 * MIB)
    if atoll.state_of(name) in ("stopped", "paused"):
        atoll.act(name, "start" if atoll.state_of(name) == "stopped" else "resume")
    if where(atoll) != "absent":
        atoll.delete(name)
    atoll.settled_at(before)


def prepare(atoll: Daemon, case: Case) -> None:
    if case.before == "absent":
        return
    restart = "always" if case.verb is Revive else "no"
    atoll.launch("web", start=case.before != "stopped", restart=restart, forkable=case.verb is Restart)
    if case.before == "paused":
        atoll.act("web", "pause")
    assert where(atoll) == case.before


def go(atoll: Daemon, case: Case) -> None:
    if case.method == "KILL":
        os.kill(atoll.pid_of("web"), signal.SIGKILL)
        return
    try:
        got = atoll.http(case.method, case.path, case.body)
        assert got.status == 202, got
    except (OSError, http.client.HTTPException):
        assert atoll.process is not None
        atoll.process.wait(10)  # it died before it had answered


def recovered(atoll: Daemon) -> None:
    until(lambda: not [key for key in atoll.records() if "/journal/" in key or "running/" in key], "recovery", 60)


def consistent(atoll: Daemon, same: int) -> None:
    """As many processes, taps and control groups as the record has guests. `same`: the pid that went on."""
    alive = [name for name, view in atoll.all().items() if view["status"]["state"] in ("running", "paused")]
    until(
        lambda: (len(atoll.qemus()), len(atoll.taps())) == (len(alive), len(alive)),
        lambda: f"{alive}, but {atoll.qemus()} and {atoll.taps()}\n{atoll.said()}",
        20,
    )
    assert not same or list(atoll.qemus()) == [same]


FROM_URL = "a URL"
"""Stands for a body with the address of the test's own web server."""
DISK = bytes(510) + b"\x55\xaa" + os.urandom(MIB)

IMAGE_CASES = (
    Case(Build, "absent", "other", "POST", IMAGES, {"recipe": "tiny", "name": "other"}),
    Case(RenameImage, "other", "third", "POST", f"{IMAGES}/other/rename", {"to": "third"}),
    Case(DeleteImage, "other", "absent", "DELETE", f"{IMAGES}/other"),
    Case(PruneImages, "other", "other", "DELETE", f"{IMAGES}?unused=true"),
    Case(ImportImage, "absent", "other", "POST", f"{IMAGES}/other/import", FROM_URL),
    Case(ImportImage, "absent", "other", "PUT", f"{IMAGES}/other/content", DISK),
)
IMAGE_TABLE = [
    pytest.param(case, *at, id="-".join((case.verb.name, case.method, *at)))
    for case in IMAGE_CASES
    for at in moments(case.verb)
]


@pytest.fixture(scope="module")
def url(world: Daemon) -> Iterator[str]:
    with mirror(DISK, world.net) as made:
        yield f"{made.url}/file"


@pytest.mark.parametrize(("case", "step", "moment"), IMAGE_TABLE)
def test_killed_there_the_next_daemon_settles_the_image(
    atoll: Daemon, url: str, case: Case, step: str, moment: str
) -> None:
    def names() -> set[str]:
        return {image["name"] for image in atoll.http("GET", IMAGES).json}

    def files() -> list[str]:
        return sorted(str(p) for p in (atoll.state / "images").rglob("*") if p.is_file())

    before, content = atoll.account(), files()
    if case.before != "absent" and case.before not in names():
        atoll.do("POST", IMAGES, {"recipe": "tiny", "name": "other"})
    atoll.crash_at(f"{case.verb.name}/{step}/{moment}")
    go(atoll, case._replace(body={"url": url}) if case.body is FROM_URL else case)
    atoll.wait_dead()
    atoll.start()
    recovered(atoll)
    wanted = expected(case, step, moment)
    assert names() == {"tiny", wanted} - {"absent"}
    for name in names() - {"tiny"}:
        atoll.do("DELETE", f"{IMAGES}/{name}")
    atoll.settled_at(before)
    assert files() == content
