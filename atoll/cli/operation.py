"""`atoll operation`."""

from typing import TYPE_CHECKING

import click

from atoll.base.errors import Invalid
from atoll.base.units import parse_duration
from atoll.cli import output
from atoll.cli.audit import AUDIT, outcome_of, subject_of
from atoll.cli.commands import group
from atoll.cli.completing import operations
from atoll.cli.context import run
from atoll.cli.output import Section
from atoll.cli.progress import Waiting
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, Operation

operation = group("operation", "List, wait for and cancel operations: every change is one.")
_id = click.argument("id", shell_complete=operations)


@operation.command("list", examples=["atoll operation list", "atoll operation list --status running"])
@click.option("--status", metavar="STATUS", help="running, done, failed or cancelled.")
@click.option(
    "-n", "--limit", default=30, show_default=True, type=click.IntRange(1, 1000), help="How many at most."
)
@click.pass_context
def list_(ctx: click.Context, status: str | None, limit: int) -> None:
    """List operations of all projects, or of the one that -p names: the latest first."""
    from atoll.client import OperationStatus

    settings = ctx.ensure_object(Settings)
    if status is not None and status not in OperationStatus.__members__.values():
        raise Invalid(f"{status!r} is no status", hint=f"one of {', '.join(OperationStatus)}", field="--status")
    wanted = OperationStatus(status) if status else None
    project = settings.chosen_project or None
    found = run(settings, lambda client: client.operations.list(status=wanted, project=project, limit=limit))
    output.emit_rows(settings, found, AUDIT, name=lambda operation: operation.id, none="no operations")


@operation.command("show", examples=["atoll operation show 0199f3a2b1c04d5e6f70"])
@_id
@click.pass_context
def show(ctx: click.Context, id: str) -> None:
    """Tell everything about an operation: who asked for what, its steps, its outcome."""
    settings = ctx.ensure_object(Settings)
    found = run(settings, lambda client: client.operations.get(id))
    output.emit(settings, found, lambda: output.write_sections(sections(found)))


def sections(found: "Operation") -> list[Section]:
    request = bytes(found.request).decode(errors="replace")
    problem = found.problem
    head = [
        ("operation", found.id),
        ("verb", found.verb),
        (
            "subject",
            f"{subject_of(found)}" + (f" in project {found.subject.project}" if found.subject.project else ""),
        ),
        ("status", outcome_of(found)),
        ("problem", f"{problem.message} ({problem.code})" if problem else ""),
        ("hint", problem.hint if problem else ""),
        ("note", found.note),
        ("actor", f"{found.actor.kind} {found.actor.name}"),
        ("request id", found.request_id),
        ("host", f"{found.host}, daemon start {found.epoch}"),
        ("begun", output.local_time(found.created)),
        ("took", output.between(found.created, found.finished)),
        ("asked", "" if request == "null" else request),
    ]
    steps = [
        (str(n + 1), f"{step.name} after {output.between(found.created, step.at)}")
        for n, step in enumerate(found.steps)
    ]
    changed = [(key, f"{found.before.get(key, 0)} -> {after}") for key, after in sorted(found.after.items())]
    return [Section("", head), Section("steps", steps), Section("records, revision before and after", changed)]


@operation.command("wait", examples=["atoll operation wait 0199f3a2b1c04d5e6f70 --timeout 5m"])
@_id
@click.option("--timeout", metavar="TIME", help="How long to wait (for ever).")
@click.pass_context
def wait(ctx: click.Context, id: str, timeout: str | None) -> None:
    """Wait until an operation has ended; fails as it failed. Ctrl-C ends the waiting, not the operation."""
    settings = ctx.ensure_object(Settings)
    seconds = parse_duration(timeout, field="--timeout") if timeout else None

    async def work(client: "Client") -> "Operation":
        found = await client.operations.get(id)
        async with Waiting(client, settings, cancels=False, steps=True) as waiting:
            return await waiting.wait(found, f"{found.verb} {found.subject.name}", timeout=seconds)

    ended = run(settings, work)
    output.emit(settings, ended, lambda: _say(settings, f"{ended.verb} {ended.subject.name}: {ended.status}"))


@operation.command("cancel", examples=["atoll operation cancel 0199f3a2b1c04d5e6f70"])
@_id
@click.pass_context
def cancel(ctx: click.Context, id: str) -> None:
    """Stop an operation and take back what it began. One past the point of return goes on."""
    settings = ctx.ensure_object(Settings)

    async def work(client: "Client") -> "Operation":
        found = await client.operations.cancel(id)
        while found.status == "running":
            found = await client.operations.get(id, wait=10)
        return found

    ended = run(settings, work)
    output.emit(settings, ended, lambda: _say(settings, f"{ended.verb} {ended.subject.name}: {ended.status}"))


def _say(settings: Settings, text: str) -> None:
    if not settings.quiet:
        click.echo(text)
