"""`atoll run`: a container that lives as long as its program; and programs of another machine."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import foreign
from tests.kit.daemon import INSTANCES, TOP, Daemon, until
from tests.kit.tty import Terminal

BINFMT = Path("/proc/sys/fs/binfmt_misc")


@pytest.fixture
def clean(atoll: Daemon) -> Iterator[Daemon]:
    """Whatever is run, nothing of it is there afterwards."""
    before = atoll.account()
    yield atoll
    until(lambda: not [name for name in atoll.all() if name.startswith("run-")], "none is left", 30)
    atoll.settled_at(before)


def test_its_exit_code_and_output_are_the_programs(clean: Daemon) -> None:
    ran = clean.atoll("run", "tiny", "--", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (ran.code, ran.out) == (7, "out\n"), ran
    assert "err\n" in ran.err
    assert clean.atoll("run", "tiny", "--", "sh", "-c", "kill -9 $$", check=False).code == 137
    assert clean.atoll(
        "run", "tiny", "-u", "1000", "-w", "/tmp", "-e", "A=b", "--", "sh", "-c", "id -u; pwd; echo $A"
    ).out == ("1000\n/tmp\nb\n")
    missing = clean.atoll("run", "tiny", "--", "no-such-program", check=False)
    assert missing.code == 127, missing


def test_what_goes_in_comes_out(clean: Daemon) -> None:
    content = os.urandom(1 << 20)
    done = subprocess.run(
        clean.cli("run", "tiny", "-i", "--", "cat"),
        cwd=TOP,
        env=clean.env,
        input=content,
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout == content) == (0, True), done.stderr


def test_signals_are_passed_on(clean: Daemon) -> None:
    script = "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    process = subprocess.Popen(
        clean.cli("run", "tiny", "--", "sh", "-c", script),
        cwd=TOP,
        env=clean.env,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert said.read() == b"got it\n"
    assert process.wait(60) == 9


def test_what_is_left_behind_goes_with_it(clean: Daemon) -> None:
    """Its children, and what it wrote: the image is as it was."""
    clean.atoll("run", "tiny", "--", "sh", "-c", "sleep 1000 & echo x > /etc/mine")
    assert clean.atoll("run", "tiny", "--", "cat", "/etc/mine", check=False).code == 1


def test_a_client_that_is_killed_leaves_nothing(clean: Daemon) -> None:
    process = subprocess.Popen(
        clean.cli("run", "tiny", "--name", "run-lost", "--", "sh", "-c", "echo ready; sleep 1000"),
        cwd=TOP,
        env=clean.env,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == b"ready\n"
        process.kill()
    process.wait(10)
    until(lambda: clean.show("run-lost") is None, "it is gone", 30)


async def test_a_terminal_is_the_programs(clean: Daemon) -> None:
    async with Terminal(clean.cli("run", "tiny", "--", "sh"), env=clean.env) as terminal:
        await terminal.until("#")
        terminal.type("tty; stty size; exit 3\r")
        await terminal.until("24 80")
        assert "/dev/pts/" in terminal.text
        assert await terminal.ended() == 3


def test_an_image_without_anything_but_a_program(clean: Daemon, tmp_path: Path) -> None:
    """No init, no shell: what holds the container comes from the host."""
    at = tmp_path / "in"
    (at / "bin").mkdir(parents=True)
    shutil.copy("/usr/bin/busybox", at / "bin/busybox")
    subprocess.run(["tar", "-C", str(at), "-czf", str(tmp_path / "one.tar.gz"), "."], check=True)
    clean.atoll("image", "import", str(tmp_path / "one.tar.gz"), "--name", "one")
    try:
        listed = clean.atoll("run", "one", "--", "/bin/busybox", "ps", "-o", "pid,args").out
        assert listed.splitlines()[1].split() == ["1", "/.atoll/hold"]
        refused = clean.atoll("run", "one", "--arch", "riscv64", "--", "/bin/busybox", check=False)
        assert refused.code == 125
        assert "is for x86_64" in refused.err
    finally:
        clean.atoll("image", "delete", "one")


def test_a_program_of_another_machine(clean: Daemon, tmp_path: Path) -> None:
    """An aarch64 root file system on this machine: its programs and those that they start. The host's own
    binfmt_misc stays as it was."""
    if not shutil.which("qemu-aarch64-static"):
        pytest.fail("apt-get install qemu-user-static (make setup)")
    before = sorted(path.name for path in BINFMT.iterdir())
    clean.atoll("image", "import", str(foreign.rootfs(tmp_path / "arm.tar")), "--name", "arm")
    try:
        assert clean.json("image", "show", "arm")["manifest"]["arch"] == "aarch64"
        for program in ("/bin/hello", "/bin/parent"):
            ran = clean.atoll("run", "arm", "--arch", "aarch64", "--", program, check=False)
            assert (ran.code, ran.out) == (foreign.CODE, foreign.SAYS), ran
        spec = {"image": "arm", "kind": "container", "container": {"command": ["/bin/parent"]}}
        clean.do("POST", INSTANCES, {"name": "whole", "spec": spec})
        until(lambda: clean.state_of("whole") == "stopped", "its first program is translated too", 30)
        assert clean.show("whole")["status"]["exit"]["code"] == foreign.CODE
        assert foreign.SAYS.strip() in clean.atoll("log", "whole").out
        clean.delete("whole")
    finally:
        clean.atoll("image", "delete", "arm")
    assert sorted(path.name for path in BINFMT.iterdir()) == before
