"""The command line end to end: a process of its own, over a real unix socket, against the API on fakes."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from atoll.instance.model import State
from tests.kit.cli import ATOLL, Shore, clean_env, shore


@pytest.fixture
async def reef(tmp_path: Path) -> AsyncIterator[Shore]:
    async with shore(tmp_path) as made:
        yield made


async def test_launch_builds_waits_and_says_where(reef: Shore) -> None:
    ran = await reef.atoll("launch", "tiny", "web", "-c", "2", "-m", "1GiB", "--set", "labels.role=web")
    assert (ran.code, ran.out) == (0, "web is running at 10.9.8.7\n")
    assert ran.err.startswith("image tiny is not there yet: building it\n")
    assert "waiting for its agent" in ran.err
    spec = (await reef.atoll("show", "web", "-o", "json")).json["instance"]["spec"]
    assert (spec["cpus"], spec["memory"], spec["labels"]) == (2, 1 << 30, {"role": "web"})
    history = (await reef.atoll("history", "-o", "json")).json
    assert [operation["verb"] for operation in history] == ["instance.launch", "image.build"]


async def test_launch_makes_up_a_name_and_need_not_wait(reef: Shore) -> None:
    quiet = await reef.atoll("launch", "tiny", "-q")
    assert quiet.code == 0
    assert quiet.err == ""
    name = quiet.out.strip()
    assert (await reef.atoll("list", "-q")).out == f"{name}\n"
    accepted = await reef.atoll("launch", "tiny", "db", "--no-wait", "-o", "json")
    assert accepted.json["verb"] == "instance.launch"
    waited = await reef.atoll("operation", "wait", accepted.json["id"])
    assert waited.out == "instance.launch db: done\n"


@pytest.mark.parametrize(
    ("line", "code", "said", "hint"),
    [
        ("launch tyny web", 4, "there is no image tyny", "did you mean tiny?"),
        ("launch tiny web", 5, "instance web already exists", "choose another name"),
        ("show wbe", 4, "there is no instance wbe", "did you mean web?"),
        ("delete web", 6, "web runs", "--force"),
        ("operation show 00000000000000000000", 4, "", ""),
        ("image show nope", 4, "there is no image nope", ""),
        ("network show nope", 4, "there is no network nope", ""),
        ("exec nope true", 125, "there is no instance nope", ""),
        ("exec web missing", 127, "there is no program missing", ""),
        ("cp web:/nope /tmp/never", 4, "there is no file /nope", ""),
        ("host show 00000000", 4, "", ""),
    ],
)
async def test_refusals(reef: Shore, line: str, code: int, said: str, hint: str) -> None:
    await reef.atoll("launch", "tiny", "web")
    ran = await reef.atoll(*line.split())
    assert ran.code == code, ran
    assert said in ran.err
    assert hint in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


async def test_power_on_several_goes_on_past_a_failure(reef: Shore) -> None:
    await asyncio.gather(reef.atoll("launch", "tiny", "a"), reef.atoll("launch", "tiny", "b"))
    ran = await reef.atoll("stop", "a", "nope", "b")
    assert ran.code == 4
    assert sorted(ran.out.splitlines()) == ["a stopped", "b stopped"]
    assert ran.err.startswith("error: nope: there is no instance nope")
    assert (await reef.atoll("list", "--state", "running", "-o", "json")).json == []
    assert (await reef.atoll("start", "a", "b")).code == 0
    both = await reef.atoll("-o", "json", "stop", "a", "gone")
    assert [operation["subject"]["name"] for operation in both.json] == ["a"]
    assert msgspec.json.decode(both.err)["error"]["about"] == "gone"


async def test_delete_all(reef: Shore) -> None:
    await reef.atoll("launch", "tiny", "a")
    await reef.atoll("launch", "tiny", "b", "--no-start")
    assert (await reef.atoll("delete", "--all")).code == 6
    assert (await reef.atoll("delete", "--all", "--force")).out == "a deleted\n"
    nothing = await reef.atoll("delete", "--all")
    assert (nothing.code, nothing.err) == (0, "nothing was deleted\n")


async def test_set_keeps_what_is_not_given(reef: Shore) -> None:
    await reef.atoll("launch", "tiny", "web")
    await reef.atoll("set", "web", "limits.cpu=1.5", "autostart.order=5")
    assert (await reef.atoll("set", "web", "limits.cpu_weight=200", "description=büro")).out == "web changed\n"
    spec = (await reef.atoll("show", "web", "-o", "json")).json["instance"]["spec"]
    assert {name: value for name, value in spec["limits"].items() if value} == {"cpu": 1.5, "cpu_weight": 200}
    assert spec["autostart"] == {"enabled": True, "order": 5, "delay": 0.0}
    assert "description: büro" in (await reef.atoll("show", "web")).out


async def test_exec_passes_everything_through(reef: Shore) -> None:
    await reef.atoll("launch", "tiny", "web")
    process = await asyncio.create_subprocess_exec(
        *ATOLL, "exec", "web", "echo", "-n", "ha", env=clean_env(reef.state), stdin=-1, stdout=-1, stderr=-1
    )
    out, err = await process.communicate(b" llo")
    assert (process.returncode, out, err) == (0, b"-n ha llo", b"\xff")
    told = (await reef.atoll("exec", "-o", "json", "web", "--", "echo", "x")).json
    assert told == {"code": 0, "signal": 0, "truncated": False, "stdout": "x", "stderr": "\ufffd"}


async def test_files(reef: Shore, tmp_path: Path) -> None:
    await reef.atoll("launch", "tiny", "web")
    source, goal = tmp_path / "source", tmp_path / "goal"
    source.write_bytes(bytes(range(256)) * 8192)
    goal.mkdir()
    assert (await reef.atoll("cp", str(source), "web:/tmp/there")).code == 0
    assert (await reef.atoll("cp", "web:/tmp/there", str(goal))).code == 0
    assert (goal / "there").read_bytes() == source.read_bytes()
    assert (await reef.atoll("cp", "-", "web:/tmp/piped", input=b"hello")).code == 0
    assert (await reef.atoll("cp", "web:/tmp/piped", "-")).out == "hello"
    assert (await reef.atoll("cp", "web:/nope", str(goal / "nope"))).code == 4
    assert [path.name for path in goal.iterdir()] == ["there"], "a failed copy leaves nothing"


async def test_console_for_scripts(reef: Shore) -> None:
    await reef.atoll("launch", "tiny", "web")
    ran = await reef.atoll("console", "web", "--linger", "300ms", input=b"hello\n")
    assert (ran.code, ran.out) == (0, "login: hello\n")


async def test_console_in_a_terminal(reef: Shore) -> None:
    await reef.atoll("launch", "tiny", "web")
    async with reef.terminal("console", "web") as terminal:
        before = terminal.settings()
        await terminal.until("leave with ctrl-]")
        await terminal.until("login: ")
        assert terminal.settings() != before
        terminal.type("ls\x03")
        await terminal.until("ls\x03")
        terminal.type("\x1d")
        assert await terminal.ended() == 0
        assert "left the console of web" in terminal.text
        assert terminal.settings() == before
    async with reef.terminal("shell", "web") as terminal:
        await terminal.until("log in; leave with ctrl-]")
        await terminal.until("login: ")
        terminal.kill(signal.SIGTERM)
        assert await terminal.ended() == 128 + signal.SIGTERM
        assert terminal.settings() == before, "the terminal is put back on a signal, too"


async def test_progress_moves_in_a_terminal(reef: Shore) -> None:
    await reef.atoll("image", "build", "tiny")
    reef.kit.pace.hold()
    async with reef.terminal("launch", "tiny", "web") as terminal:
        await terminal.until("launching web: claim 10%")
        reef.kit.pace.go()
        assert await terminal.ended() == 0
        assert terminal.text.endswith("\r\x1b[Kweb is running at 10.9.8.7\n")


async def test_ctrl_c_takes_the_launch_back(reef: Shore) -> None:
    await reef.atoll("image", "build", "tiny")
    reef.kit.pace.hold()
    async with reef.terminal("launch", "tiny", "web") as terminal:
        await terminal.until("launching web: claim")
        terminal.interrupt()
        assert await terminal.ended() == 130
        assert "launching web: cancelled; what it had begun was taken back" in terminal.text
    latest = (await reef.atoll("operation", "list", "-n", "1", "-o", "json")).json[0]
    assert (latest["verb"], latest["status"]) == ("instance.launch", "cancelled")
    assert (await reef.atoll("list", "-o", "json")).json == []


async def test_ctrl_c_ends_the_waiting_only(reef: Shore) -> None:
    await reef.atoll("image", "build", "tiny")
    reef.kit.pace.hold()
    id = (await reef.atoll("launch", "tiny", "web", "--no-wait", "-o", "json")).json["id"]
    async with reef.terminal("operation", "wait", id) as terminal:
        await asyncio.sleep(1)
        terminal.interrupt()
        assert await terminal.ended() == 130
    assert (await reef.atoll("operation", "show", id, "-o", "json")).json["status"] == "running"
    assert (await reef.atoll("operation", "cancel", id)).out == "instance.launch web: cancelled\n"


async def test_events_resume_and_end_with_their_reader(reef: Shore) -> None:
    await reef.atoll("launch", "tiny", "web")
    process = await asyncio.create_subprocess_exec(
        *ATOLL, "events", "--since", "0", "-o", "json", env=clean_env(reef.state), stdout=-1, stderr=-1
    )
    assert process.stdout is not None
    first = msgspec.json.decode(await process.stdout.readline())
    assert (first["kind"], first["subject"]["name"]) == ("operation.started", "tiny")
    process.stdout._transport.close()  # type: ignore[attr-defined]
    assert await asyncio.wait_for(process.wait(), 10) == 141, "it notices that nobody reads, without an event"
    assert process.stderr is not None
    assert await process.stderr.read() == b""


async def test_completion_of_names(reef: Shore) -> None:
    await reef.atoll("launch", "tiny", "web")
    await reef.atoll("launch", "tiny", "db")

    async def complete(words: str) -> list[str]:
        number = str(len(words.split(" ")) - 1)
        ran = await reef.atoll(
            _ATOLL_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=number, ATOLL_COMPLETE_TIME="20"
        )
        return [line.partition(",")[2] for line in ran.out.split()]

    assert await complete("atoll stop ") == ["db", "web"]
    assert await complete("atoll stop web ") == ["db"]
    assert await complete("atoll launch t") == ["tiny"]
    assert await complete("atoll launch tiny x --network ") == ["default"]
    assert len(await complete("atoll operation show ")) == 3


async def test_every_list_prints(reef: Shore) -> None:
    await reef.atoll("launch", "tiny", "web")
    for line in (
        "image list",
        "image recipes",
        "network list",
        "pool list",
        "volume list",
        "host list",
        "stats --all",
    ):
        table = await reef.atoll(*line.split())
        assert table.code == 0
        assert len(table.out.splitlines()) == 2, line
        assert (await reef.atoll(*line.split(), "-o", "yaml")).code == 0
    for line in (
        "image show tiny",
        "network show default",
        "pool show default",
        "volume show root",
        "host show",
        "host probe",
        "log web",
    ):
        assert (await reef.atoll(*line.split())).code == 0, line
        assert (await reef.atoll(*line.split(), "-o", "json")).json, line


async def test_tokens(reef: Shore) -> None:
    made = await reef.atoll("token", "create", "ci", "--days", "3")
    assert made.out.startswith("atoll_")
    assert "not shown again" in made.err
    assert made.out.strip() not in (await reef.atoll("token", "list", "-o", "json")).out
    assert (await reef.atoll("token", "revoke", "ci")).out == "token ci revoked\n"


async def test_show_tells_how_it_ended(reef: Shore) -> None:
    await reef.atoll("launch", "tiny", "web")
    view = await reef.kit.book.get("default", "web")
    shown = (await reef.atoll("show", "web")).out
    assert f"tiny ({view.instance.image[:19]})" in shown
    assert "10.9.8.7 planned, in use" in shown
    assert "fe80::1 told by the guest" in shown
    broken = msgspec.structs.replace(view.status, state=State.BROKEN, reason="no space left on the host")
    await reef.kit.book.write_status(view, broken)
    assert "state:      broken (no space left on the host)" in (await reef.atoll("show", "web")).out
