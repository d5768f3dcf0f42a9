"""`atoll host`."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from atoll.base.units import MiB, show_size
from atoll.cli import output
from atoll.cli.commands import group
from atoll.cli.context import run
from atoll.cli.output import Column, Section
from atoll.cli.progress import Waiting
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client

host = group("host", "What this host is and can do.")
COLUMNS = [
    Column("ID", lambda view: view.id),
    Column("NAME", lambda view: str(view.facts.get("name") or view.facts.get("hostname") or "-")),
    Column("VERSION", lambda view: view.version),
    Column("INSTANCES", lambda view: str(view.instances), right=True),
    Column("MEMORY", lambda view: show_size(view.memory.total), right=True),
    Column("PROMISED", lambda view: show_size(view.memory.promised), right=True),
    Column("PROMISABLE", lambda view: show_size(view.memory.promisable), right=True),
]
MANY, SHORT, WIDE = 8, 24, 90
_ID = click.argument("id", required=False)


async def _this(client: "Client", id: str | None) -> str:
    return id or (await client.greeting()).host


@host.command("list", examples=["atoll host list"])
@click.pass_context
def list_(ctx: click.Context) -> None:
    """List hosts with what they have promised to instances."""
    settings = ctx.ensure_object(Settings)
    found = run(settings, lambda client: client.hosts.list())
    output.emit_rows(settings, found, COLUMNS, name=lambda view: view.id, none="no hosts")


@host.command("show", examples=["atoll host show"])
@_ID
@click.pass_context
def show(ctx: click.Context, id: str | None) -> None:
    """Tell what a host has: this one where no ID is given."""
    settings = ctx.ensure_object(Settings)

    async def work(client: "Client") -> Any:
        return await client.hosts.get(await _this(client, id))

    view = run(settings, work)
    memory = view.memory
    head = [
        ("id", view.id),
        ("version", view.version),
        ("instances", str(view.instances)),
        (
            "memory",
            f"{show_size(memory.total)}; {show_size(memory.promised)} promised of {show_size(memory.promisable)}",
        ),
    ]
    output.emit(settings, view, lambda: output.write_sections([Section("", head), *facts(view.facts)]))


@host.command("probe", examples=["atoll host probe", "atoll host probe --refresh -o json"])
@_ID
@click.option("--refresh", is_flag=True, help="Try everything out again; else what was found before is told.")
@click.pass_context
def probe(ctx: click.Context, id: str | None, refresh: bool) -> None:
    """Try out what a host can do: acceleration and why (not), QEMU, CPU, memory, cgroups, and what is missing.

    The first time it boots a tiny guest, which may take a minute.
    """
    settings = ctx.ensure_object(Settings)

    async def work(client: "Client") -> dict[str, Any]:
        async with Waiting(client, settings, steps=True) as waiting:
            waiting.say("probing the host")
            return await client.hosts.probe(await _this(client, id), refresh=refresh)

    found = run(settings, work)
    parts = [facts(value, "host") if key == "facts" else facts({key: value}) for key, value in found.items()]
    output.emit(settings, found, lambda: output.write_sections([one for part in parts for one in part]))


def facts(found: Mapping[str, Any], title: str = "") -> list[Section]:
    """Whatever a host tells, as sections: plain values first (under `title`), then one block for each part."""
    plain = [(_label(key), _value(key, value)) for key, value in found.items() if not _deep(value)]
    sections = [Section(title, plain)] if plain else []
    for key, value in found.items():
        if isinstance(value, Mapping) and value:
            rows = [(_label(name), _value(name, inner)) for name, inner in value.items()]
            sections.append(Section(_label(key), rows))
        elif _deep(value):
            sections.append(Section(_label(key), [_row(number, each) for number, each in enumerate(value)]))
    return sections


def _deep(value: Any) -> bool:
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    return isinstance(value, Mapping) or (listed and any(isinstance(each, Mapping) for each in value))


def _row(number: int, each: Any) -> tuple[str, list[str]]:
    """One of several alike: its name, and the rest of it a line each."""
    if not isinstance(each, Mapping):
        return str(number + 1), [str(each)]
    named = next((key for key in ("name", "part", "id") if each.get(key)), "")
    lines = [
        f"{_label(key)}: {shown}" for key, value in each.items() if key != named and (shown := _flat(key, value))
    ]
    return str(each[named]) if named else str(number + 1), lines or ["-"]


def _value(key: str, value: Any) -> str | list[str]:
    """A few values a line each; many that have names, or short ones, as running text."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) > MANY and all(isinstance(each, Mapping) and each.get("name") for each in value):
            value = [each["name"] for each in value]
        elif any(len(str(each)) > SHORT for each in value):
            return [_flat(key, each) for each in value]
    return textwrap.wrap(_flat(key, value), WIDE, break_long_words=False, break_on_hyphens=False)


def _flat(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return ""
    if isinstance(value, int) and (value >= 16 * MiB or key == "size"):
        return show_size(value)
    if isinstance(value, Mapping):
        return ", ".join(
            f"{_label(name)} {shown}" for name, inner in value.items() if (shown := _flat(name, inner))
        )
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_flat(key, each) for each in value)
    return str(value)


def _label(key: str) -> str:
    """`huge_pages` as words; `x86_64` is a name and stays."""
    return key if any(letter.isdigit() for letter in key) else key.replace("_", " ")
