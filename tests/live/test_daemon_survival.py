"""Guests outlive the daemon; a guest's death is known at once, or found out; policies and wishes are kept."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.kit.daemon import INSTANCES, Daemon, daemon, until


@pytest.fixture(scope="module")
def world(base: Path) -> Iterator[Daemon]:
    with daemon(base) as made:
        made.start()
        yield made


@pytest.fixture
def atoll(world: Daemon) -> Iterator[Daemon]:
    if world.process is None or world.process.poll() is not None:
        world.start()
    yield world
    if world.process is None or world.process.poll() is not None:
        world.start()
    world.delete(*world.all())
    assert (world.qemus(), world.taps(), world.cgroups()) == ({}, [], [])


def usable(atoll: Daemon, name: str) -> None:
    """Console, agent, statistics and network."""
    assert atoll.exec(name, "echo", "hello").out == "hello\n"
    said = atoll.atoll("console", name, "--linger", "1s", input=b"\r")
    assert said.code == 0
    assert atoll.http("GET", f"{INSTANCES}/{name}/stats").json["cpu_seconds"] > 0
    gateway = atoll.exec(name, "sh", "-c", "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'").out.strip()
    assert atoll.exec(name, "ping", "-c", "5", "-W", "5", gateway).code == 0


def test_running_guests_outlive_the_daemon(atoll: Daemon) -> None:
    for name in ("web", "frozen"):
        atoll.launch(name)
    atoll.ready("web")
    atoll.act("frozen", "pause")
    pids, account = atoll.qemus().keys(), atoll.account()
    atoll.kill()
    assert atoll.qemus().keys() == pids
    atoll.start()
    atoll.ready("web")
    usable(atoll, "web")
    assert atoll.qemus().keys() == pids, "the same processes"
    assert (atoll.state_of("web"), atoll.state_of("frozen")) == ("running", "paused")
    assert atoll.show("web")["status"]["generation"] == 1
    atoll.settled_at(account)
    assert atoll.atoll("down").code == 0
    assert atoll.process is not None
    atoll.process.wait(60)
    assert atoll.qemus().keys() == pids
    assert not (atoll.state / "atoll.sock").exists()
    atoll.start()
    usable(atoll, "web")
    atoll.act("frozen", "resume")
    assert atoll.qemus().keys() == pids


def test_up_starts_it_in_the_background_and_down_ends_it(fresh: Daemon) -> None:
    def up() -> str:
        import subprocess

        argv = fresh.command([*fresh.cli("up"), "--listen", "none"])
        done = subprocess.run(argv, env=fresh.env, cwd="/", capture_output=True, timeout=90, check=True)
        return done.stdout.decode()

    try:
        assert "answers" in up()
        assert "already" in up()
        assert fresh.all() == {}
    finally:
        assert fresh.atoll("down").code == 0
    assert "no daemon runs" in fresh.atoll("down").out
    gone = fresh.atoll("list", check=False)
    assert gone.code == 3
    assert "atoll up" in gone.err


def test_a_guest_killed_from_outside_is_recorded_at_once(atoll: Daemon) -> None:
    atoll.launch("web")
    until(lambda: "login" in atoll.atoll("log", "web").out, "its console has something to tell", 60)
    os.kill(atoll.pid_of("web"), signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: atoll.state_of("web") == "stopped", "it is recorded", 10)
    assert time.monotonic() - killed < 1.5, "within a second, and the moment of asking"
    status = atoll.show("web")["status"]
    assert "SIGKILL" in status["reason"]
    assert status["exit"]["clean"] is False
    assert status["exit"]["lines"], "the last of its log"
    assert (atoll.taps(), atoll.cgroups()) == ([], [])
    atoll.act("web", "start")
    assert atoll.show("web")["status"]["exit"] is None


def test_a_guest_that_shuts_itself_down_is_recorded(atoll: Daemon) -> None:
    atoll.launch("web", restart="on-failure")
    atoll.ready("web")
    atoll.exec("web", "poweroff", check=False)
    status = atoll.until_state("web", "stopped", 60)["status"]
    assert (status["exit"]["reason"], status["exit"]["clean"]) == ("the guest shut down", True)
    assert atoll.taps() == []


def test_deaths_are_found_out_when_nobody_looked(atoll: Daemon) -> None:
    for name in ("killed", "ended", "stays"):
        atoll.launch(name)
    atoll.ready("ended")
    atoll.exec("ended", "sh", "-c", "(sleep 2; poweroff) >/dev/null 2>&1 &")
    victim, own = atoll.pid_of("killed"), atoll.pid_of("ended")
    atoll.kill()
    os.kill(victim, signal.SIGKILL)
    until(lambda: not {victim, own} & atoll.qemus().keys(), "two guests end", 90)
    atoll.start()
    killed = atoll.until_state("killed", "stopped", 20)["status"]
    ended = atoll.until_state("ended", "stopped", 20)["status"]
    assert killed["exit"]["clean"] is False
    assert "killed" in killed["reason"]
    assert (ended["exit"]["clean"], ended["exit"]["reason"]) == (True, "the guest shut down")
    assert atoll.state_of("stays") == "running"
    until(lambda: len(atoll.taps()) == len(atoll.qemus()) == 1, "only one is left", 20)


def restarted(atoll: Daemon, times: int) -> bool:
    return bool(atoll.show("web")["status"]["restarts"] == times)


def test_the_restart_policy_starts_it_again_later_each_time(atoll: Daemon) -> None:
    atoll.launch("web", restart="on-failure")
    for number, least in ((1, 0.9), (2, 1.9)):
        os.kill(atoll.pid_of("web"), signal.SIGKILL)
        died = time.monotonic()
        until(partial(restarted, atoll, number), "it is started again", 30)
        assert time.monotonic() - died >= least, "the back-off"
        atoll.until_state("web", "running", 30)
    status = atoll.show("web")["status"]
    assert (status["generation"], status["restarts"]) == (3, 2)
    started = [op for op in atoll.json("history", "web") if op["verb"] == "instance.revive"]
    assert [op["actor"]["name"] for op in started] == ["restart-policy"] * 2
    atoll.act("web", "stop", {"grace": 0})
    assert atoll.state_of("web") == "stopped"
    atoll.stop()
    atoll.start()
    time.sleep(2)  # longer than its first back-off: what its user stopped stays so
    assert atoll.state_of("web") == "stopped"


def test_always_means_always_also_with_the_daemon_down(atoll: Daemon) -> None:
    atoll.launch("web", restart="always")
    atoll.ready("web")
    atoll.exec("web", "poweroff", check=False)
    until(lambda: atoll.show("web")["status"]["generation"] == 2, "it is started again", 90)
    atoll.until_state("web", "running")
    victim = atoll.pid_of("web")
    atoll.kill()
    os.kill(victim, signal.SIGKILL)
    atoll.start()
    until(lambda: atoll.show("web")["status"]["generation"] == 3, "and after the daemon's absence", 30)
    atoll.until_state("web", "running")
    os.kill(atoll.pid_of("web"), signal.SIGKILL)
    atoll.until_state("web", "stopped", 10)
    atoll.kill()  # while the restart waits for its back-off
    atoll.start()
    until(lambda: atoll.show("web")["status"]["generation"] == 4, "and that it owed", 30)
    atoll.until_state("web", "running")


def test_down_with_guests_shuts_them_down_and_a_reboot_starts_them_in_order(atoll: Daemon) -> None:
    atoll.launch("second", autostart={"order": 2})
    atoll.launch("first", autostart={"order": 1, "delay": 0.5})
    atoll.launch("never", autostart={"enabled": False})
    atoll.launch("off", start=False)
    for name in ("first", "second", "never"):
        atoll.ready(name)
    assert atoll.atoll("down", "--guests", "--grace", "90s").code == 0
    assert atoll.process is not None
    atoll.process.wait(60)
    assert atoll.qemus() == {}
    atoll.start()
    views = atoll.all()
    assert {name: view["instance"]["spec"]["power"] for name, view in views.items()} == {
        "first": "on", "second": "on", "never": "on", "off": "off",
    }  # fmt: skip
    assert views["first"]["status"]["exit"]["reason"] == "the guest shut down"
    assert {view["status"]["state"] for view in views.values()} == {"stopped"}
    atoll.stop()
    another_boot(atoll)
    atoll.start()
    atoll.until_state("second", "running", 60)
    states = {name: view["status"]["state"] for name, view in atoll.all().items()}
    assert states == {"first": "running", "second": "running", "never": "stopped", "off": "stopped"}
    since = {name: view["status"]["since"] for name, view in atoll.all().items()}
    assert since["first"] < since["second"]


def another_boot(atoll: Daemon) -> None:
    """As if the host had been restarted since the daemon ran."""
    with sqlite3.connect(atoll.state / "local.db") as db:
        changed = db.execute("UPDATE entry SET value = ? WHERE key = '/daemon/boot'", (b"another boot",))
        assert changed.rowcount == 1
    db.close()
