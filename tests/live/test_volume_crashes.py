"""kill -9 of the daemon at every step and moment of every verb of volumes and pools, beside a real guest that goes
on: the next daemon finishes or takes back, by the tables of the verbs, and records, files and guest agree."""

import http.client
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from atoll.instance.verbs.disks import AttachVolume, DetachVolume, GrowVolume
from atoll.operation.verb import Recovery
from atoll.storage.verbs.pools import CreatePool, DeletePool
from atoll.storage.verbs.volumes import CreateVolume, DeleteVolume, RenameVolume
from tests.kit.daemon import MIB, Daemon, daemon, until
from tests.live.test_daemon_crashes import moments, recovered

VOLUMES, POOLS = "/v1/projects/default/volumes", "/v1/projects/default/pools"
DATA, FAST = f"{VOLUMES}/data", f"{POOLS}/fast"


class Seen(NamedTuple):
    """`volumes`: names and MiB. `attached`: what the guest has beside its own disk."""

    volumes: tuple[tuple[str, int], ...] = ()
    attached: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()


class Case(NamedTuple):
    verb: Any
    before: Seen
    done: Seen
    method: str
    path: str
    body: Any = None


IDLE, HELD = Seen((("data", 16),)), Seen((("data", 16),), ("data",))
CASES = (
    Case(CreateVolume, Seen(), IDLE, "POST", VOLUMES, {"name": "data", "size": 16 * MIB, "format": "raw"}),
    Case(DeleteVolume, IDLE, Seen(), "DELETE", DATA),
    Case(RenameVolume, IDLE, Seen((("files", 16),)), "POST", f"{DATA}/rename", {"to": "files"}),
    Case(AttachVolume, IDLE, HELD, "POST", f"{DATA}/attach", {"instance": "web"}),
    Case(DetachVolume, HELD, IDLE, "POST", f"{DATA}/detach", {}),
    Case(GrowVolume, HELD, Seen((("data", 32),), ("data",)), "POST", f"{DATA}/grow", {"size": 32 * MIB}),
    Case(CreatePool, Seen(), Seen(pools=("fast",)), "POST", POOLS, {"name": "fast", "driver": "dir", "path": ""}),
    Case(DeletePool, Seen(pools=("fast",)), Seen(), "DELETE", FAST),
)
TABLE = [pytest.param(case, *at, id="-".join((case.verb.name, *at))) for case in CASES for at in moments(case.verb)]


@pytest.fixture(scope="module")
def world(base: Path) -> Iterator[Daemon]:
    """One host for the whole table, with a guest that is up."""
    with daemon(base) as made:
        made.start()
        made.launch("web")
        made.ready("web")
        yield made
        shutil.rmtree(place(made), ignore_errors=True)


def place(atoll: Daemon) -> Path:
    return atoll.state.with_name(atoll.state.name + "-fast")


def to(atoll: Daemon, wanted: Seen) -> None:
    """From what is there to what shall be, by the verbs themselves."""
    now = seen(atoll)
    for name in now.attached:
        atoll.do("POST", f"{VOLUMES}/{name}/detach", {})
    for name, _ in now.volumes:
        atoll.do("DELETE", f"{VOLUMES}/{name}")
    for name in now.pools:
        atoll.do("DELETE", f"{POOLS}/{name}")
    for name, size in wanted.volumes:
        atoll.do("POST", VOLUMES, {"name": name, "size": size * MIB, "format": "raw"})
    for name in wanted.attached:
        atoll.do("POST", f"{VOLUMES}/{name}/attach", {"instance": "web"})
    for name in wanted.pools:
        atoll.do("POST", POOLS, {"name": name, "driver": "dir", "path": str(place(atoll))})


def seen(atoll: Daemon) -> Seen:
    views = [view for view in atoll.http("GET", VOLUMES).json if view["volume"]["named"]]
    assert {view["volume"]["state"] for view in views} <= {"ready"}
    pools = [view for view in atoll.http("GET", POOLS).json if view["pool"]["name"] != "default"]
    assert {view["state"] for view in pools} <= {"ready"}
    return Seen(
        tuple((view["volume"]["name"], view["volume"]["size"] // MIB) for view in views),
        tuple(view["volume"]["name"] for view in views if view["instance"] == "web"),
        tuple(view["pool"]["name"] for view in pools),
    )


def in_the_guest(atoll: Daemon) -> list[int]:
    """MiB of the disks that the guest sees beside its own."""
    found = atoll.exec("web", "sh", "-c", "cat /sys/block/vd[b-z]/size 2>/dev/null; true").out
    return sorted(int(size) * 512 // MIB for size in found.split())


@pytest.mark.parametrize(("case", "step", "moment"), TABLE)
def test_killed_there_the_next_daemon_settles_it(world: Daemon, case: Case, step: str, moment: str) -> None:
    atoll = world
    if atoll.process is None or atoll.process.poll() is not None:
        atoll.start()
    atoll.crash_at("")
    to(atoll, case.before)
    pid = atoll.pid_of("web")
    atoll.crash_at(f"{case.verb.name}/{step}/{moment}")
    body = {**case.body, "path": str(place(atoll))} if case.verb is CreatePool else case.body
    try:
        assert atoll.http(case.method, case.path, body).status == 202
    except (OSError, http.client.HTTPException):
        assert atoll.process is not None
        atoll.process.wait(10)
    atoll.wait_dead()
    atoll.start()
    recovered(atoll)
    steps = list(case.verb.steps)
    journalled = steps[: steps.index(step) + (moment == "journalled")] if step else steps
    last = case.verb.steps[journalled[-1]] if journalled else Recovery.TAKE_BACK
    wanted = case.done if last is Recovery.FINISH else case.before
    assert seen(atoll) == wanted, atoll.said()
    assert atoll.pid_of("web") == pid, "its guest went on"
    if case.before.attached or case.done.attached:
        sizes = [size for name, size in wanted.volumes if name in wanted.attached]
        until(lambda: in_the_guest(atoll) == sizes, lambda: f"{sizes}, not {in_the_guest(atoll)}", 30)
    files = [p for p in atoll.state.glob("pools/*/volumes/*") if not p.name.endswith(".qcow2")]
    assert len(files) == len(wanted.volumes), files
    marker = place(atoll) / ".atoll-pool"
    assert marker.exists() == bool(wanted.pools)
