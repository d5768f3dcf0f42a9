"""The documentation is true where a machine can tell: links, commands, settings, tables made from the code."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import click
import msgspec
import pytest

from atoll.cli.main import cli
from atoll.daemon.config import Config
from atoll.daemon.paths import Paths
from tests.kit.tables import TABLES, filled

TOP = Path(__file__).parents[2]
PAGES = sorted([TOP / "README.md", *(TOP / "docs").glob("*.md")])
COMMAND = re.compile(r"(?:(?<=^)|(?<=`)|(?<=\$ )|(?<=    ))atoll [a-z][^`\n]*", re.MULTILINE)
PLACEHOLDERS = re.compile(r"\.\.\.|--help|\[|\b(COMMAND|OPTIONS)\b|\|")


def name_of(path: Path) -> str:
    return str(path.relative_to(TOP))


def anchors(path: Path) -> set[str]:
    """Of its headings, as forges make them."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def parse(line: str) -> None:
    """Parse a command line as `atoll` would, without carrying it out. Raises click.UsageError.

    A bare name, as `atoll launch` in a sentence, needs none of its arguments.
    """
    context, command = click.Context(cli, info_name="atoll"), cast(click.Command, cli)
    rest = shlex.split(line, comments=True)[1:]
    while isinstance(command, click.Group):
        rest = click.Command.parse_args(command, context, rest)
        if not rest:
            return
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None, f"there is no {name}"
        command, context = found, click.Context(found, info_name=name, parent=context)
    if rest:
        command.parse_args(context, rest)


def commands(text: str) -> Iterator[str]:
    for found in COMMAND.findall(text):
        line = found.split(" > ")[0].strip()
        if not PLACEHOLDERS.search(line):
            yield line


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.exists(), f"{name_of(path)}: {target}"
            assert not anchor or anchor in anchors(there), f"{name_of(path)}: {target} has no such heading"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_command_that_is_shown_parses(path: Path) -> None:
    for line in commands(path.read_text()):
        try:
            parse(line)
        except click.ClickException as error:
            raise AssertionError(f"{name_of(path)}: {line!r}: {error.format_message()}") from error


def test_commands_are_found() -> None:
    found = [line for path in PAGES for line in commands(path.read_text())]
    assert len(found) > 60
    assert "atoll launch tiny web -m 192MiB" in found


@pytest.mark.parametrize(
    "line", ["atoll lanch tiny", "atoll up --no", "atoll image bild tiny", "atoll launch tiny -c"]
)
def test_a_wrong_command_does_not_parse(line: str) -> None:
    with pytest.raises(click.ClickException):
        parse(line)


def test_every_setting_is_documented_with_its_default() -> None:
    text = (TOP / "docs" / "daemon.md").read_text()
    shown = dict(re.findall(r"^\| `(\w+\.\w+)` \| `(.+?)` \|", text, re.MULTILINE))
    defaults = {
        f"{section}.{field.name}": msgspec.json.encode(getattr(getattr(Config(), section), field.name)).decode()
        for section in Config.__struct_fields__
        for field in msgspec.structs.fields(getattr(Config(), section))
    }
    assert shown == defaults


def test_every_part_of_the_state_directory_is_documented() -> None:
    text = (TOP / "docs" / "daemon.md").read_text()
    paths = Paths.of("/state", "/cache")
    parts = [getattr(paths, name) for name, kind in vars(Paths).items() if isinstance(kind, property)]
    for part in parts:
        assert f"`{part.name}" in text, f"docs/daemon.md says nothing of {part.name}"


@pytest.mark.parametrize("page", TABLES)
def test_tables_are_as_the_code_has_them(page: str) -> None:
    text = (TOP / "docs" / page).read_text()
    assert filled(page, text) == text, "python -m tests.kit.tables"


def test_every_page_is_in_the_index() -> None:
    index = (TOP / "docs" / "README.md").read_text()
    for path in (TOP / "docs").glob("*.md"):
        assert path.name == "README.md" or f"({path.name}" in index, path.name
