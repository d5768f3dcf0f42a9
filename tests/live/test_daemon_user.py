"""An ordinary user's Atoll: nothing of root's is needed, and what is not to be had is said."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.daemon import Daemon, daemon
from tests.kit.images import cache

NOBODY = 61_234
"""An unprivileged uid that nobody has."""


@pytest.fixture(scope="module")
def atoll(base: Path) -> Iterator[Daemon]:
    """It builds its image itself, from downloads that are there already."""
    with daemon(user=NOBODY) as made:
        own = made.state / "cache"
        made.env["ATOLL_CACHE"] = str(own)
        shutil.copytree(cache() / "debs", own)
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(made.state)], check=True)
        check_reachable(made)
        made.start()
        made.atoll("image", "build", "tiny", timeout=600)
        yield made


def check_reachable(atoll: Daemon) -> None:
    argv = atoll.command([sys.executable, "-c", "import atoll.daemon.compose, tests.kit.crashing"])
    done = subprocess.run(argv, env=atoll.env, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, f"an ordinary user must be able to read {sys.executable} and Atoll:\n{done.stderr}"


def test_an_ordinary_user_launches_uses_and_deletes(atoll: Daemon) -> None:
    before = atoll.account()
    atoll.launch("web")
    atoll.ready("web")
    assert atoll.exec("web", "echo", "hello").out == "hello\n"
    assert atoll.exec("web", "id", "-u").out == "0\n"
    for pid in (atoll.pid, atoll.pid_of("web")):
        assert Path(f"/proc/{pid}").stat().st_uid == NOBODY
        status = Path(f"/proc/{pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
    address = atoll.exec("web", "ip", "-4", "addr", "show", "eth0").out
    [nic] = atoll.show("web")["instance"]["hardware"]["nics"]
    assert "10.0.2.15" in address
    assert nic["mac"] in atoll.exec("web", "cat", "/sys/class/net/eth0/address").out
    assert atoll.http("GET", "/v1/projects/default/instances/web/stats").json["cpu_seconds"] > 0
    refused = atoll.atoll("set", "web", "limits.cpu=0.5", check=False)
    assert refused.code == 10
    assert "control group" in refused.err
    pid = atoll.pid_of("web")
    atoll.kill()
    atoll.start()
    assert atoll.pid_of("web") == pid
    assert atoll.exec("web", "echo", "again").out == "again\n"
    atoll.delete("web")
    atoll.settled_at(before)


def test_it_is_told_what_is_not_limited(atoll: Daemon) -> None:
    said = atoll.atoll("host", "probe").out
    assert "control groups" in said.lower() or "cgroup" in said.lower()
    assert os.geteuid() == 0
    parts = {part["name"]: part for part in atoll.json("host", "probe")["parts"]}
    lacking = {name: part for name, part in parts.items() if part["state"] != "present"}
    assert any("limit" in part["costs"] for part in lacking.values()), lacking
