"""The command tree: cheap to start, complete, documented."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest

from atoll.cli.commands import Command
from atoll.cli.docs import page
from atoll.cli.main import SECTIONS, cli, main
from atoll.cli.process import owner_of

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
WANTED = (
    "up down launch list show set rename start stop restart pause resume delete exec shell console cp log stats "
    "screenshot eject history events operation image host token version network nic mount pool volume completion "
    "daemon"
).split()


def leaves(command: click.Command, ctx: click.Context) -> list[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        return [(ctx.command_path, command)]
    found = []
    for name in command.list_commands(ctx):
        inner = command.get_command(ctx, name)
        assert inner is not None
        found += leaves(inner, click.Context(inner, info_name=name, parent=ctx))
    return found


LEAVES = leaves(cli, click.Context(cli, info_name="atoll"))


def test_every_command_is_there() -> None:
    entries = {name for section in SECTIONS.values() for name in section}
    assert set(WANTED) == entries


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[path for path, _ in LEAVES])
def test_every_command_has_help_with_examples(path: str, command: click.Command) -> None:
    assert isinstance(command, Command)
    assert command.help
    assert command.examples
    assert all(path in line or "atoll" in line for line in command.examples)
    assert {"--output", "--project", "--state"} <= {name for param in command.params for name in param.opts}


def test_the_page_is_what_the_commands_say() -> None:
    assert DOCS.read_text() == page(), "run: python -m atoll.cli.docs > docs/cli.md"


@pytest.mark.parametrize("line", [["version"], ["--help"], ["launch", "--help"], ["operation"]])
def test_help_and_version_load_no_client(line: list[str]) -> None:
    code = (
        "import sys\nfrom atoll.cli.main import main\nmain(sys.argv[1:])\n"
        "assert not {'aiohttp', 'asyncio', 'rich', 'yaml', 'atoll.instance.model'} & set(sys.modules), 'too much'"
    )
    if line[0] in ("operation", "launch"):
        code = code.replace("'asyncio', ", "").replace(", 'atoll.instance.model'", "")
    ran = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "-o", "json"]) == 0
    assert capsys.readouterr().out == '{\n  "version": "0.1.0"\n}\n'


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    shown = capsys.readouterr().out
    assert "To have it always" in shown.splitlines()[0]
    assert f"_ATOLL_COMPLETE={shell}_complete" in shown


def complete(words: str, **env: str) -> list[str]:
    number = len(words.split(" ")) - 1
    told = {**os.environ, "_ATOLL_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(number), **env}
    ran = subprocess.run(
        [sys.executable, "-m", "atoll.cli.main"], env=told, capture_output=True, text=True, timeout=60
    )
    assert ran.stderr == ""
    return [line.partition(",")[2] for line in ran.stdout.split()]


def test_completion_of_commands_and_options() -> None:
    assert complete("atoll la") == ["launch"]
    assert complete("atoll image re") == ["recipes", "rename"]
    assert complete("atoll launch --for") == ["--forkable"]
    assert complete("atoll list -o ") == ["table", "json", "yaml"]


def test_completion_is_silent_without_a_daemon(tmp_path: Path) -> None:
    assert complete("atoll stop ", ATOLL_STATE=str(tmp_path)) == []


def test_the_owner_of_a_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    assert owner_of(path) is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert owner_of(path) is None
        listener.listen()
        found = owner_of(path)
        assert found is not None
        with found:
            assert found.pid == os.getpid()
            assert not found.ended
    assert owner_of(path) is None, "a stale socket has no owner"
