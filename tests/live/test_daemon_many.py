"""Many at once, and two Atolls beside each other."""

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.kit.daemon import Daemon, daemon, until
from tests.kit.netns import namespace

TEN = [f"n{number}" for number in range(10)]


@pytest.mark.timeout(600)
def test_ten_launches_at_once_and_nothing_after_their_deletion(fresh: Daemon) -> None:
    fresh.start()
    fresh.launch("first")
    fresh.delete("first")
    before = fresh.account()
    launches = [
        subprocess.Popen(
            fresh.cli("launch", "tiny", name, "-m", "128MiB", "--ready-timeout", "8m"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=fresh.env,
            cwd="/",
        )
        for name in TEN
    ]
    try:
        for launch in launches:
            said, _ = launch.communicate(timeout=500)
            assert launch.returncode == 0, said
    finally:
        for launch in launches:
            launch.kill()
            launch.communicate()
    views = fresh.all()
    assert sorted(views) == sorted(TEN)
    nics = [nic for view in views.values() for nic in view["instance"]["hardware"]["nics"]]
    addresses = [address for nic in nics for address in nic["addresses"]]
    assert len(addresses) == len(set(addresses)) == 20
    assert len({nic["mac"] for nic in nics}) == 10
    assert len(fresh.qemus()) == len(fresh.taps()) == 10
    for name in ("n0", "n9"):
        assert fresh.exec(name, "hostname").out.strip() == name
    assert fresh.exec("n0", "ping", "-c", "5", "-W", "5", "n9").code == 0
    fresh.atoll("delete", "--all", "--force")
    fresh.settled_at(before)


@pytest.fixture
def neighbours(base: Path) -> Iterator[tuple[Daemon, Daemon]]:
    """Two Atolls on one host; the second begins with nothing but its images."""
    with namespace("atoll") as net, daemon(base, net=net) as one, daemon(net=net) as two:
        one.start()
        two.start()
        two.atoll("image", "build", "tiny", timeout=600)
        yield one, two


def own(atoll: Daemon) -> list[str]:
    """All that it has, of the shared packet filter only its own table."""
    assert atoll.net is not None
    rules = atoll.rules()
    table = atoll.net.run("nft", "-s", "list", "table", "inet", f"atoll_{atoll.tag}_1").splitlines()
    return [*(item for item in atoll.account() if item not in rules), *table]


def reached(atoll: Daemon) -> bool:
    return atoll.exec("web", "ping", "-c", "1", "-W", "5", "db", check=False).code == 0


def uids(atoll: Daemon) -> set[int]:
    return {Path(f"/proc/{pid}").stat().st_uid for pid in atoll.qemus()}


@pytest.mark.timeout(600)
def test_two_atolls_side_by_side_never_meet(neighbours: tuple[Daemon, Daemon]) -> None:
    one, two = neighbours
    for atoll in neighbours:
        atoll.launch("web")
        atoll.launch("db")
    for atoll in neighbours:
        atoll.ready("web")
        atoll.ready("db")
        until(partial(reached, atoll), "one guest reaches the other by name", 30)
    assert one.tag != two.tag
    assert len(one.taps()) == len(two.taps()) == 2
    assert not set(one.taps()) & set(two.taps())
    assert not set(one.cgroups()) & set(two.cgroups())
    assert len(uids(one) | uids(two)) == 4
    assert min(uids(one) | uids(two)) > 1_000_000, "each guest has a user of its own"
    addresses = [
        nic["addresses"][0].rpartition(".")[0]
        for atoll in neighbours
        for nic in atoll.show("web")["instance"]["hardware"]["nics"]
    ]
    assert len(set(addresses)) == 2, "networks that do not overlap"
    for table in (f"atoll_{one.tag}_1", f"atoll_{two.tag}_1"):
        assert any(table in line for line in one.rules())
    pids, account = two.qemus().keys(), own(two)
    one.atoll("delete", "--all", "--force")
    one.atoll("down")
    assert (one.qemus(), one.taps(), one.cgroups()) == ({}, [], [])
    assert two.qemus().keys() == pids
    assert own(two) == account
    assert two.exec("web", "echo", "still").out == "still\n"
    until(partial(reached, two), "and goes on reaching it", 30)
