"""A full host: guests wait and go on, launches are refused, and what was recorded stays."""

import contextlib
import gzip
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.daemon import INSTANCES, MIB, SMALL, Daemon, until
from tests.kit.netns import namespace

ROOM = 192 * MIB
"""Bytes beside what the prepared state directory takes."""


@pytest.fixture
def atoll(base: Path) -> Iterator[Daemon]:
    """Its state directory is a small file system of its own."""
    used = sum(path.stat().st_blocks * 512 for path in base.rglob("*"))
    state = Path(tempfile.mkdtemp(prefix="atoll-test-"))
    with contextlib.ExitStack() as held:
        held.callback(shutil.rmtree, state, ignore_errors=True)
        options = f"size={(used + ROOM) // MIB}m,mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "atoll-test", str(state)], check=True)
        held.callback(subprocess.run, ["umount", "-l", str(state)], check=True)
        subprocess.run(["cp", "-a", "--sparse=always", f"{base}/.", str(state)], check=True)
        made = Daemon(state, held.enter_context(namespace("atoll")))
        held.callback(made.end)
        yield made.start()


def room(atoll: Daemon) -> int:
    stat = os.statvfs(atoll.state)
    return stat.f_bavail * stat.f_frsize


def fill(atoll: Daemon, left: int) -> Path:
    """Take all room but `left` bytes; removing the returned file gives it back."""
    ballast = atoll.state / "ballast"
    if (more := room(atoll) - left) > 0:
        with ballast.open("ab") as file:
            os.posix_fallocate(file.fileno(), file.tell(), more)
    return ballast


def test_a_full_disk_pauses_a_guest_which_goes_on_when_there_is_room(atoll: Daemon) -> None:
    atoll.launch("web")
    atoll.ready("web")
    ballast = fill(atoll, 24 * MIB)
    write = (
        "(dd if=/dev/urandom of=/root/big bs=1M count=64 conv=fsync && echo whole > /root/done) >/dev/null 2>&1 &"
    )
    atoll.exec("web", "sh", "-c", write)
    view = atoll.until_state("web", "paused", 120)
    assert "no space" in view["status"]["reason"]
    assert "no space" in atoll.atoll("show", "web").out
    assert "no space" in atoll.atoll("list").out
    pid = atoll.pid_of("web")
    atoll.kill()  # a new daemon finds it waiting, on the full disk
    full = fill(atoll, 0)
    atoll.start()
    view = atoll.until_state("web", "paused", 20)
    assert "no space" in view["status"]["reason"]
    assert full == ballast
    ballast.unlink()
    view = atoll.until_state("web", "running", 30)
    assert view["status"]["reason"] == ""
    until(lambda: atoll.exec("web", "cat", "/root/done", check=False).out == "whole\n", "it has written all", 120)
    assert atoll.pid_of("web") == pid
    listed = atoll.exec("web", "wc", "-c", "/root/big").out.split()[0]
    assert int(listed) == 64 * MIB
    atoll.delete("web")


def test_launches_without_room_are_refused_and_nothing_is_lost(atoll: Daemon) -> None:
    atoll.launch("kept")
    atoll.act("kept", "stop", {"grace": 0})
    before = atoll.account()
    ballast = fill(atoll, 0)
    for attempt in range(3):
        refused = atoll.atoll("launch", "tiny", f"web{attempt}", "-m", "128MiB", "--no-wait", check=False)
        wait = refused.out.split()[-1] if refused.code == 0 else ""
        if wait:
            refused = atoll.atoll("operation", "wait", wait, check=False)
        assert refused.code == 9, (refused, "exhausted")
        assert "space" in refused.err or "full" in refused.err
    assert atoll.http("GET", INSTANCES).status == 200
    atoll.kill()
    atoll.start()
    assert sorted(atoll.all()) == ["kept"], "what was acknowledged is there"
    ballast.unlink()
    atoll.settled_at(before, 60)
    atoll.act("kept", "start")
    atoll.launch("web", memory=SMALL)
    atoll.ready("web")
    atoll.delete("web", "kept")


def test_an_import_without_room_is_refused_and_leaves_nothing(atoll: Daemon, tmp_path: Path) -> None:
    before = content(atoll)
    large = tmp_path / "large"
    large.write_bytes(bytes(510) + b"\x55\xaa" + b"x" * (ROOM + 16 * MIB))
    packed = tmp_path / "packed.gz"
    packed.write_bytes(gzip.compress(large.read_bytes(), 1))
    announced = atoll.atoll("image", "import", str(large), "--name", "big", check=False)
    unannounced = atoll.atoll("image", "import", "-", "--name", "big", input=large.read_bytes(), check=False)
    unpacked = atoll.atoll("image", "import", str(packed), "--name", "big", check=False)
    for ran in (announced, unannounced, unpacked):
        assert ran.code == 9, ran
        assert "room" in ran.err
    assert content(atoll) == before
    assert [image["name"] for image in atoll.http("GET", "/v1/projects/default/images").json] == ["tiny"]


def content(atoll: Daemon) -> list[str]:
    return sorted(str(path) for path in (atoll.state / "images").rglob("*") if path.is_file())
