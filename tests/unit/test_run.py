"""The door to tools: deadlines, cancellation, bounds and what a failure says, with real programs."""

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from atoll.base.errors import Broken, Lacking, Unreachable
from atoll.host.run import PACKAGES, find, run, search_path


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def number_in(path: Path) -> int:
    """The number in a file, 0 while it is not written."""
    return int(path.read_text() or 0) if path.exists() else 0


async def pid_in(path: Path) -> int:
    for _ in range(200):
        if pid := number_in(path):
            return pid
        await asyncio.sleep(0.02)
    raise AssertionError(f"{path} was not written")


def known(pid: int) -> bool:
    """Whether the pid is taken, also by a zombie."""
    return Path(f"/proc/{pid}").exists()


async def gone(pid: int) -> bool:
    for _ in range(100):
        if not alive(pid):
            return True
        await asyncio.sleep(0.02)
    return False


async def test_output_input_and_code() -> None:
    ran = await run(["sh", "-c", "cat; echo warning >&2; exit 3"], input=b"hello", check=False)
    assert (ran.code, ran.stdout, ran.stderr) == (3, b"hello", b"warning\n")
    assert ran.text == "hello"


async def test_large_input_and_output_do_not_deadlock() -> None:
    data = os.urandom(4 << 20)
    assert (await run(["cat"], input=data)).stdout == data


async def test_input_that_is_not_read() -> None:
    assert (await run(["true"], input=b"x" * (4 << 20))).code == 0


async def test_accepted_codes() -> None:
    assert (await run(["sh", "-c", "exit 3"], ok=frozenset({0, 3}))).code == 3


async def test_failure_quotes_the_tool_and_a_command_to_paste() -> None:
    with pytest.raises(Broken) as caught:
        await run(["sh", "-c", "echo 'no space left' >&2; exit 7"])
    assert caught.value.message == "sh failed with exit code 7: no space left"
    assert caught.value.hint == "sh -c 'echo '\"'\"'no space left'\"'\"' >&2; exit 7'"


async def test_a_signal_is_named() -> None:
    with pytest.raises(Broken, match="sh was ended by SIGTERM"):
        await run(["sh", "-c", "kill $$"])


async def test_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Lacking) as caught:
        await run(["qemu-img", "info"])
    assert (caught.value.message, caught.value.hint) == ("qemu-img is missing", "apt-get install qemu-utils")


def test_an_ordinary_path_gains_sbin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert search_path() == "/usr/bin:/usr/sbin:/bin:/sbin"
    assert find("nft").name == "nft"
    assert PACKAGES["nft"] == "nftables"


async def test_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    printed = (await run(["env"], env={"EXTRA": "1"})).text.splitlines()
    assert "LANG=C.UTF-8" in printed
    assert "EXTRA=1" in printed
    assert not [line for line in printed if line.startswith(("LC_ALL", "LD_LIBRARY_PATH"))]


async def test_working_directory(tmp_path: Path) -> None:
    assert (await run(["pwd"], cwd=tmp_path)).text.strip() == str(tmp_path)
    with pytest.raises(Broken, match="could not be started"):
        await run(["pwd"], cwd=tmp_path / "absent")


async def test_deadline_kills_the_whole_group(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(Unreachable, match="did not end within 1s"):
        await run(["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait"], timeout=1.0)
    assert time.monotonic() - began < 5
    assert await gone(await pid_in(tmp_path / "pid"))


async def test_cancellation_kills_and_is_awaited(tmp_path: Path) -> None:
    task = asyncio.create_task(
        run(["sh", "-c", f"echo $$ > {tmp_path}/sh; sleep 60 & echo $! > {tmp_path}/pid; wait"])
    )
    child = await pid_in(tmp_path / "pid")
    shell = int((tmp_path / "sh").read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not known(shell)  # reaped, not a zombie
    assert await gone(child)


async def test_the_program_ends_with_a_killed_caller(tmp_path: Path) -> None:
    script = "import asyncio, sys; from atoll.host.run import run; asyncio.run(run(sys.argv[1:]))"
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, "sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60"
    )
    child = await pid_in(tmp_path / "pid")
    victim.kill()
    await victim.wait()
    assert await gone(child)


async def test_deadline_tells_the_last_words() -> None:
    with pytest.raises(Unreachable, match="and was killed: waiting for the lock"):
        await run(["sh", "-c", "echo waiting for the lock >&2; exec sleep 60"], timeout=1.0)


async def test_output_to_a_file(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+b") as log:
        assert await run(["sh", "-c", "echo out; echo err >&2"], output=log) == (
            ("sh", "-c", "echo out; echo err >&2"),
            0,
            b"",
            b"",
        )
        log.seek(0)
        assert log.read() == b"out\nerr\n"


async def test_endless_output_is_bounded() -> None:
    with pytest.raises(Broken, match="printed more than 1MiB"):
        await run(["yes"], limit=1 << 20)


async def test_a_daemon_that_holds_the_output_does_not_hang_the_call(tmp_path: Path) -> None:
    began = time.monotonic()
    ran = await run(["sh", "-c", f"sleep 30 & echo $! > {tmp_path}/pid; echo up"])
    assert ran.stdout == b"up\n"
    assert time.monotonic() - began < 5
    os.kill(await pid_in(tmp_path / "pid"), 9)


async def test_many_at_once() -> None:
    ran = await asyncio.gather(*(run(["echo", str(n)]) for n in range(50)))
    assert [one.text for one in ran] == [f"{n}\n" for n in range(50)]
