"""`atoll log` and `atoll stats`."""

import asyncio
import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from atoll.base import clock
from atoll.base.errors import AtollError, Invalid
from atoll.base.units import KiB, MiB, parse_duration, show_size
from atoll.cli import output, terminal
from atoll.cli.commands import command
from atoll.cli.completing import instances
from atoll.cli.context import run
from atoll.cli.output import Column
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, Stats

LINE = 512
"""Bytes that a line of a log may be expected to have at most."""
Samples = Mapping[str, "Stats"]


@command("log", examples=["atoll log web", "atoll log web -n 20", "atoll log web -f"])
@click.argument("name", shell_complete=instances)
@click.option("-n", "--lines", type=click.IntRange(0, 100_000), help="Only the last N lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what it writes from now on, until ctrl-C.")
@click.pass_context
def log(ctx: click.Context, name: str, lines: int | None, follow: bool) -> None:
    """Show the end of what an instance wrote to its serial console, and its engine to its log."""
    settings = ctx.ensure_object(Settings)
    limit = 64 * KiB if lines is None else min(MiB, max(4 * KiB, lines * LINE))

    async def work(client: "Client") -> bytes:
        if follow:
            await terminal.while_read(_follow(client, name, lines))
            return b""
        return await client.instances.log(name, limit=limit)

    text = run(settings, work)
    if settings.output != "table":
        told = {"name": name, "log": _tail(text, lines).decode(errors="replace")}
        output.emit(settings, told, lambda: None)
    elif not follow:
        terminal.show(_tail(text, lines))


def _tail(text: bytes, lines: int | None) -> bytes:
    if lines is None:
        return text
    return b"".join(text.splitlines(keepends=True)[-lines:]) if lines else b""


async def _follow(client: "Client", name: str, lines: int | None) -> None:
    """The console is opened for reading only; it begins with its own last lines."""
    async with client.instances.console(name) as channel:
        first = True
        while data := await channel.read():
            terminal.show(_tail(data, lines) if first else data)
            first = False


STATS = [
    Column("NAME", lambda row: row[0]),
    Column("CPU", lambda row: row[1], right=True),
    Column("MEMORY", lambda row: row[2], right=True),
    Column("DISK READ", lambda row: row[3], right=True),
    Column("DISK WRITTEN", lambda row: row[4], right=True),
    Column("RECEIVED", lambda row: row[5], right=True),
    Column("SENT", lambda row: row[6], right=True),
]


@command("stats", examples=["atoll stats web", "atoll stats --all", "atoll stats --all -w --interval 5s"])
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=instances)
@click.option("--all", "everything", is_flag=True, help="Every running instance of the project.")
@click.option("-w", "--watch", is_flag=True, help="Show it again and again, as rates, until ctrl-C.")
@click.option("--interval", default="2s", show_default=True, metavar="TIME", help="How often, with -w.")
@click.pass_context
def stats(ctx: click.Context, names: Sequence[str], everything: bool, watch: bool, interval: str) -> None:
    """Show what instances use: totals since their start, or with -w what they use now.

    CPU is time, with -w the share of one host CPU. MEMORY is what an instance holds of the host's memory.
    """
    settings = ctx.ensure_object(Settings)
    if bool(names) == everything:
        raise Invalid("say which instances", hint="atoll stats NAME..., or atoll stats --all")
    pause = max(0.1, parse_duration(interval, field="--interval"))
    if watch:
        run(settings, lambda client: terminal.while_read(_watch(client, settings, names, pause)))
        return
    samples = run(settings, lambda client: _sample(client, names))
    output.emit(settings, samples, lambda: _totals(samples))


async def _sample(client: "Client", names: Sequence[str]) -> Samples:
    """Of those named; of all that run, those that still run when they are asked."""
    if names:
        return dict(zip(names, await asyncio.gather(*map(client.instances.stats, names)), strict=True))
    from atoll.client import State

    found: dict[str, Stats] = {}

    async def one(name: str) -> None:
        with contextlib.suppress(AtollError):
            found[name] = await client.instances.stats(name)

    views = await client.instances.list(states=[State.RUNNING, State.PAUSED])
    await asyncio.gather(*(one(view.name) for view in views))
    return dict(sorted(found.items()))


def _totals(samples: Samples) -> None:
    rows = [
        (name, f"{now.cpu_seconds:.1f}s", show_size(now.memory), *map(show_size, _counters(now)))
        for name, now in samples.items()
    ]
    if not output.write_table(STATS, rows):
        click.echo("no instance runs", err=True)


def _counters(now: "Stats") -> tuple[int, int, int, int]:
    return now.disk_read, now.disk_written, now.net_received, now.net_sent


async def _watch(client: "Client", settings: Settings, names: Sequence[str], pause: float) -> None:
    before, then = await _sample(client, names), clock.monotonic()
    while True:
        await asyncio.sleep(pause)
        samples, now = await _sample(client, names), clock.monotonic()
        if settings.output == "table":
            if sys.stdout.isatty():
                output.write("\x1b[H\x1b[J")
            output.write_table(STATS, rates(before, samples, now - then))
        else:
            output.emit_stream(settings, samples, str)
        sys.stdout.flush()
        before, then = samples, now


def rates(before: Samples, samples: Samples, seconds: float) -> list[tuple[str, ...]]:
    """Rows of what each used a second. A counter that fell began anew: its instance was restarted."""
    rows = []
    for name, now in samples.items():
        was = before.get(name, now)
        cpu = max(0.0, now.cpu_seconds - was.cpu_seconds) / seconds * 100
        moved = [max(0, a - b) / seconds for a, b in zip(_counters(now), _counters(was), strict=True)]
        rows.append((name, f"{cpu:.0f}%", show_size(now.memory), *(f"{show_size(int(rate))}/s" for rate in moved)))
    return rows
