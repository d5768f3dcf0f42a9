"""`atoll history` and `atoll events`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from atoll.base.errors import Invalid
from atoll.cli import output, terminal
from atoll.cli.commands import command
from atoll.cli.completing import instances
from atoll.cli.context import run
from atoll.cli.errors import plain
from atoll.cli.output import Column
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, News, Operation


def subject_of(operation: "Operation") -> str:
    subject = operation.subject
    return f"{subject.kind} {subject.name or subject.id}".strip()


def outcome_of(operation: "Operation") -> str:
    return str(operation.status)


def why(operation: "Operation") -> str:
    parts = [operation.problem.message] if operation.problem is not None else []
    return "; ".join([*parts, operation.note] if operation.note else parts)


AUDIT = [
    Column("TIME", lambda operation: output.local_time(operation.created)),
    Column("ACTOR", lambda operation: f"{operation.actor.kind} {operation.actor.name}"),
    Column("VERB", lambda operation: operation.verb),
    Column("SUBJECT", subject_of),
    Column("OUTCOME", outcome_of, coloured=True),
    Column("TOOK", lambda operation: output.between(operation.created, operation.finished), right=True),
    Column("OPERATION", lambda operation: operation.id),
    Column("WHY", why),
]


@command("history", examples=["atoll history", "atoll history web", "atoll history --kind image -n 10"])
@click.argument("name", required=False, default="", shell_complete=instances)
@click.option("--kind", default="", metavar="NOUN", help="Only of instances, images, ...: a noun in the singular.")
@click.option(
    "-n", "--limit", default=50, show_default=True, type=click.IntRange(1, 1000), help="How many at most."
)
@click.pass_context
def history(ctx: click.Context, name: str, kind: str, limit: int) -> None:
    """Audit of every move, add and change, the latest first: who did what to what, when, with which outcome.

    With NAME that of one instance, also after it is gone. `atoll operation show ID` tells more.
    """
    settings = ctx.ensure_object(Settings)
    kind = kind or ("instance" if name else "")
    found = run(settings, lambda client: client.history(kind=kind, name=name, limit=limit))
    output.emit_rows(settings, found, AUDIT, name=lambda operation: operation.id, none="nothing was done yet")


@command(
    "events",
    examples=[
        "atoll events",
        "atoll events --kind instance. -p shop",
        "atoll events --since 0 -o json | jq -r .kind",
    ],
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="KIND",
    help="Only these: instance.started, or a noun with its dot (instance.). Repeatable.",
)
@click.option("--since", metavar="ID", help="Begin after the event with this id; 0: with all that are kept.")
@click.pass_context
def events(ctx: click.Context, kinds: Sequence[str], since: str | None) -> None:
    """Show events as they happen, until ctrl-C: with -o json one object a line.

    Of all projects, or of the one that -p names.
    """
    settings = ctx.ensure_object(Settings)
    if since is not None and not since.isdecimal():
        raise Invalid(
            f"{since!r} is not an event's id", hint="ids are digits; 0 begins at the oldest", field="--since"
        )

    async def follow(client: "Client") -> None:
        project = settings.chosen_project or None
        async for news in client.events.follow(since=since, kinds=kinds, project=project):
            output.emit_stream(settings, news, lambda news=news: line(news))  # type: ignore[misc]

    run(settings, lambda client: terminal.while_read(follow(client)))


def line(news: "News") -> str:
    subject = f"{news.subject.project}/{news.subject.name}" if news.subject.project else news.subject.name
    body = bytes(news.body).decode(errors="replace")
    said = "" if body in ("null", "{}", "") else f"  {body}"
    return plain(f"{output.local_time(news.at)}  {news.id.lstrip('0') or '-':>6}  {news.kind:<20}  {subject}{said}")
