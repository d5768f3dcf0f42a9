"""kill -9 of the daemon at every step and moment of an eject, or amid an insert, beside a real guest that goes on:
by the record and by the image's users the CD is out, or still in."""

import contextlib
import http.client
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.instance.verbs.media import Eject, Insert
from tests.kit.boots import add_iso, make_iso
from tests.kit.daemon import INSTANCES, MIB, SMALL, Daemon, daemon
from tests.live.test_daemon_crashes import moments, recovered


@pytest.fixture(scope="module")
def world(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with the image `hello` of a CD."""
    with daemon(base) as made:
        add_iso(made.state, make_iso(tmp_path_factory.mktemp("iso")), "hello")
        yield made.start()


def test_what_is_put_in_and_taken_out_while_it_runs(world: Daemon) -> None:
    """By the files that QEMU has open: Debian's cloud kernel knows no such drive."""
    if world.process is None or world.process.poll() is not None:
        world.start()
    world.launch("cd", cdrom="hello")
    [pid, iso] = [world.pid_of("cd"), world.json("image", "show", "hello")["manifest"]["files"]["iso"]["digest"]]

    def held() -> bool:
        names = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
        return any(iso.removeprefix("sha256:") in name for name in names)

    assert held()
    world.atoll("eject", "cd")
    assert not held()
    for _ in range(2):  # the second time in place of what is there
        world.atoll("insert", "cd", "hello")
        assert held()
    refused = world.atoll("image", "delete", "hello", check=False)
    assert refused.code
    assert "cd" in refused.err
    refused = world.atoll("insert", "cd", "tiny", check=False)
    assert "holds no ISO" in refused.err
    assert held()
    world.delete("cd")


@pytest.mark.parametrize(("step", "moment"), moments(Eject))
def test_killed_there_the_cd_is_out_or_still_in(world: Daemon, step: str, moment: str) -> None:
    if world.process is None or world.process.poll() is not None:
        world.start()
    spec = {"image": "", "cdrom": "hello", "root": {"size": MIB}, "memory": SMALL}
    world.do("POST", INSTANCES, {"name": "cd", "spec": spec})
    pid = world.pid_of("cd")
    world.crash_at(f"{Eject.name}/{step}/{moment}")
    with contextlib.suppress(OSError, http.client.HTTPException):  # it may die before it has answered
        assert world.http("POST", f"{INSTANCES}/cd/eject").status == 202
    world.wait_dead()
    world.start()
    recovered(world)
    out = (step, moment) != ("eject", "enter")
    assert world.show("cd")["instance"]["spec"]["cdrom"] == ("" if out else "hello")
    assert world.pid_of("cd") == pid, "its guest went on"
    assert len([key for key in world.records() if "/image-refs/" in key]) == (0 if out else 1)
    world.delete("cd")


@pytest.mark.parametrize("moment", ["journalled", "enter"])
def test_killed_amid_an_insert_the_next_daemon_puts_it_in(world: Daemon, moment: str) -> None:
    if world.process is None or world.process.poll() is not None:
        world.start()
    spec = {"image": "", "cdrom": "hello", "root": {"size": MIB}, "memory": SMALL}
    world.do("POST", INSTANCES, {"name": "cd", "spec": spec})
    pid = world.pid_of("cd")
    world.act("cd", "eject")
    world.crash_at(f"{Insert.name}/insert/{moment}")
    with contextlib.suppress(OSError, http.client.HTTPException):
        assert world.http("POST", f"{INSTANCES}/cd/insert", {"image": "hello"}).status == 202
    world.wait_dead()
    world.start()
    recovered(world)
    inside = moment == "journalled"
    assert world.show("cd")["instance"]["spec"]["cdrom"] == ("hello" if inside else "")
    assert world.pid_of("cd") == pid
    assert len([key for key in world.records() if "/image-refs/" in key]) == (1 if inside else 0)
    world.act("cd", "insert", {"image": "hello"})
    world.delete("cd")
