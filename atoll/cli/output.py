"""Results on stdout: a table for people, JSON and YAML for programs."""

import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import click
import msgspec

from atoll.base.clock import parse
from atoll.base.units import show_duration
from atoll.cli.errors import plain
from atoll.cli.settings import Settings

T = TypeVar("T")
MEASURED = 500
"""Rows that set a table's column widths; later rows are written as they come."""
CHUNK = 500
COLOURS = {
    "running": "green",
    "done": "green",
    "ready": "green",
    "broken": "red",
    "failed": "red",
    "paused": "yellow",
    "cancelled": "yellow",
    "starting": "cyan",
    "stopping": "cyan",
    "creating": "cyan",
}


class Column(NamedTuple):
    """`text` makes a cell of a row. `right`: numbers. `coloured`: a state word, coloured on a terminal."""

    title: str
    text: Callable[[Any], str]
    right: bool = False
    coloured: bool = False


def emit(settings: Settings, value: Any, table: Callable[[], None]) -> None:
    """Print `value` as asked for; `table` prints it for people."""
    if settings.output == "table":
        table()
    elif settings.output == "json":
        write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    else:
        import yaml

        plain_value = msgspec.json.decode(msgspec.json.encode(value))
        write(yaml.safe_dump(plain_value, sort_keys=False, allow_unicode=True))


def emit_rows(
    settings: Settings, rows: Iterable[T], columns: Sequence[Column], *, name: Callable[[T], str], none: str
) -> None:
    """Print a list: a table (`-q`: the names alone), or an array. `none`: said where there is nothing to show."""
    if settings.output != "table":
        emit(settings, list(rows), lambda: None)
    elif settings.quiet:
        write_lines(plain(name(row)) for row in rows)
    elif write_table(columns, rows) == 0:
        click.echo(none, err=True)


def emit_stream(settings: Settings, value: Any, line: Callable[[], str]) -> None:
    """Print one thing of a stream at once: a line for people, one JSON value a line, one YAML document."""
    if settings.output == "json":
        write(msgspec.json.encode(value).decode() + "\n")
    elif settings.output == "yaml":
        write("---\n")
        emit(settings, value, lambda: None)
    else:
        write(line() + "\n")
    sys.stdout.flush()


def write_table(columns: Sequence[Column], rows: Iterable[Any]) -> int:
    """Returns the number of rows; writes nothing where there is none."""
    cells = (tuple(plain(column.text(row)).replace("\n", " ") for column in columns) for row in rows)
    measured = list(islice(cells, MEASURED))
    if not measured:
        return 0
    titles = tuple(column.title for column in columns)
    widths = [max(map(width, column)) for column in zip(titles, *measured, strict=True)]
    coloured = colours_wanted()
    write(_line(columns, titles, widths) + "\n")
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for row in _chain(measured, cells):
            count += 1
            yield _line(columns, row, widths, coloured=coloured)

    write_lines(lines())
    return count


def _chain(first: list[tuple[str, ...]], rest: Iterator[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    yield from first
    yield from rest


def _line(columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int], *, coloured: bool = False) -> str:
    parts = []
    for column, cell, wide in zip(columns, cells, widths, strict=True):
        space = " " * (wide - width(cell))
        text = click.style(cell, fg=COLOURS.get(cell.partition(" ")[0])) if coloured and column.coloured else cell
        parts.append(space + text if column.right else text + space)
    return "  ".join(parts).rstrip()


def width(text: str) -> int:
    """Terminal columns that `text` takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def colours_wanted() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def write(text: str) -> None:
    sys.stdout.write(text)


def write_lines(lines: Iterable[str]) -> None:
    """Many lines in few writes, each part as soon as it is there."""
    rest = iter(lines)
    while chunk := list(islice(rest, CHUNK)):
        write("\n".join(chunk) + "\n")


class Section(NamedTuple):
    """A titled block of `show`: labelled values. Empty values are left out; a tuple is a line each."""

    title: str
    rows: Sequence[tuple[str, str | Sequence[str]]]


def write_sections(sections: Iterable[Section]) -> None:
    """Blocks of aligned `label: value` lines; blocks without a value are left out."""
    lines: list[str] = []
    for title, rows in sections:
        rows = [(label, [value] if isinstance(value, str) else list(value)) for label, value in rows]
        rows = [(label, values) for label, values in rows if any(values)]
        if not rows:
            continue
        lines += ["", title] if title and lines else [title] if title else []
        indent = "  " if title else ""
        wide = max(width(label) for label, _ in rows) + 2
        for label, values in rows:
            for number, value in enumerate(values):
                head = f"{label}:" if number == 0 else ""
                lines.append(f"{indent}{head:<{wide}}{plain(value)}".rstrip())
    write_lines(lines)


def age(stamp: str | None) -> str:
    """How long ago: `3h 5m`."""
    if not stamp:
        return "-"
    return show_duration(max(0.0, (datetime.now(UTC) - parse(stamp)).total_seconds()))


def between(start: str, end: str | None) -> str:
    """How long it took: `120ms`, `4.2s`, `3m 5s`."""
    if not end:
        return "-"
    seconds = max(0.0, (parse(end) - parse(start)).total_seconds())
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    return f"{seconds:.1f}s" if seconds < 60 else show_duration(seconds)


def local_time(stamp: str | None) -> str:
    """In this terminal's zone: `2026-01-31 09:30:00`."""
    return parse(stamp).astimezone().strftime("%Y-%m-%d %H:%M:%S") if stamp else "-"
