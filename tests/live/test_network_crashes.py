"""kill -9 of the daemon at the steps of the network verbs: the next one finishes or takes back, by their tables."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from atoll.instance.verbs.nic import AddNic, RemoveNic, SetNic
from atoll.network.verbs import ChangeGroup, CreateGroup, CreateNetwork, DeleteGroup, DeleteNetwork
from atoll.operation.verb import Recovery
from tests.kit.daemon import INSTANCES, Daemon, daemon, until
from tests.live.test_daemon_crashes import Case, go, recovered

NETWORKS, GROUPS = "/v1/projects/default/networks", "/v1/projects/default/groups"
NICS = f"{INSTANCES}/web/nics"
MAC = "02:00:00:00:00:77"
ONE = f"{NICS}/{MAC.replace(':', '-')}"
RULE = {"direction": "ingress", "protocol": "tcp", "port": 80}

CASES = (
    Case(CreateNetwork, "", "network", "POST", NETWORKS, {"name": "lan", "subnets": ["10.77.1.0/24"]}),
    Case(DeleteNetwork, "network", "", "DELETE", f"{NETWORKS}/lan"),
    Case(CreateGroup, "", "group", "POST", GROUPS, {"name": "db"}),
    Case(ChangeGroup, "group", "rule", "PATCH", f"{GROUPS}/db", {"add": [RULE]}),
    Case(DeleteGroup, "group", "", "DELETE", f"{GROUPS}/db"),
    Case(AddNic, "", "nic", "POST", NICS, {"mac": MAC, "forwards": [{"port": 8080, "to": 80}]}),
    Case(SetNic, "nic", "out", "PATCH", ONE, {"link": False, "down": {"ceiling": 10**7}}),
    Case(RemoveNic, "nic", "", "DELETE", ONE),
)


class At(NamedTuple):
    step: str
    moment: str


def moments(verb: Any) -> list[At]:
    """Where something has been done: before the first step nothing was."""
    steps = list(verb.steps)
    return [
        At(steps[0], "journalled"),
        *(At(s, m) for s in steps[1:] for m in ("enter", "journalled")),
        At("", "ran"),
    ]


TABLE = [pytest.param(case, at, id="-".join((case.verb.name, *at))) for case in CASES for at in moments(case.verb)]


@pytest.fixture(scope="module")
def world(base: Path) -> Iterator[Daemon]:
    """One guest that runs through it all."""
    with daemon(base) as made:
        made.start()
        made.launch("web")
        made.ready("web")
        yield made


def state(world: Daemon) -> str:
    """What there is of what the cases make."""
    found = [view["network"]["name"] for view in world.http("GET", NETWORKS).json]
    if "lan" in found:
        return "network"
    groups = world.http("GET", GROUPS).json
    if groups:
        return "rule" if len(groups[0]["group"]["rules"]) > 1 else "group"
    nics = world.show("web")["instance"]["spec"]["nics"]
    return "" if len(nics) == 1 else "nic" if nics[1]["link"] else "out"


def reach(world: Daemon, wanted: str) -> None:
    """From nothing to what a case begins with, or back to nothing."""
    made: dict[str, tuple[str, str, Any]] = {
        case.done: (case.method, case.path, case.body) for case in CASES if not case.before
    }
    gone = {"network": f"{NETWORKS}/lan", "group": f"{GROUPS}/db", "rule": f"{GROUPS}/db", "nic": ONE, "out": ONE}
    if (now := state(world)) != wanted and now:
        world.do("DELETE", gone[now])
    if wanted and state(world) != wanted:
        world.do(*made[wanted])


def expected(case: Case, at: At) -> str:
    steps = list(case.verb.steps)
    last = steps[-1] if not at.step else steps[steps.index(at.step) - (at.moment == "enter")]
    return case.done if case.verb.steps[last] is Recovery.FINISH else case.before


@pytest.mark.parametrize(("case", "at"), TABLE)
def test_killed_there_the_next_daemon_settles_it(world: Daemon, case: Case, at: At) -> None:
    if world.process is None or world.process.poll() is not None:
        world.start()
    reach(world, "")
    before, guest = world.account(), world.pid_of("web")
    reach(world, case.before)
    world.crash_at(f"{case.verb.name}/{at.step}/{at.moment}")
    go(world, case)
    world.wait_dead()
    world.start()
    recovered(world)
    wanted = expected(case, at)
    until(lambda: state(world) == wanted, lambda: f"{wanted!r}, not {state(world)!r}\n{world.said()}", 20)
    links = 1 if wanted in ("nic", "out") else 0
    until(lambda: len(world.taps()) == 1 + links, lambda: f"{wanted}: {world.taps()}\n{world.said()}", 20)
    inside = world.exec("web", "ls", "/sys/class/net").out.split()
    assert len(inside) == 2 + links, "the guest has what the record says"
    assert world.pid_of("web") == guest
    reach(world, "")
    world.settled_at(before)
