"""`atoll start`, `stop`, `restart`, `pause`, `resume`, `delete`."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from atoll.base.errors import Invalid
from atoll.base.units import parse_duration
from atoll.cli import several
from atoll.cli.commands import Command, command
from atoll.cli.completing import instances
from atoll.cli.context import run
from atoll.cli.settings import Settings

Names = Sequence[str]
_names = click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=instances)
_no_wait = click.option("--no-wait", is_flag=True, help="Return once the daemon has accepted.")
_grace = click.option(
    "--grace", default="30s", show_default=True, metavar="TIME", help="How long a clean shutdown may take."
)
_force = click.option("--force", is_flag=True, help="End it at once, as if its power were cut.")


def _seconds(grace: str, force: bool) -> float:
    return 0.0 if force else parse_duration(grace, field="--grace")


def _plain(verb: str, doing: str, done: str, help: str) -> Command:
    """A verb without options of its own."""

    def act(ctx: click.Context, names: Names, no_wait: bool) -> None:
        settings = ctx.ensure_object(Settings)
        run(
            settings,
            lambda client: several.each(
                client, settings, names, getattr(client.instances, verb), doing=doing, done=done, wait=not no_wait
            ),
        )

    act.__doc__ = help
    shaped: Callable[..., Any] = _names(_no_wait(click.pass_context(act)))
    return command(verb, examples=[f"atoll {verb} web", f"atoll {verb} web db"])(shaped)


start = _plain("start", "starting", "started", "Start instances. Returns when they run, not when they have booted.")
pause = _plain("pause", "pausing", "paused", "Freeze instances: they keep their memory and use no CPU.")
resume = _plain("resume", "resuming", "resumed", "Let paused instances go on.")


@command("stop", examples=["atoll stop web", "atoll stop web db --grace 2m", "atoll stop web --force"])
@_names
@_grace
@_force
@_no_wait
@click.pass_context
def stop(ctx: click.Context, names: Names, grace: str, force: bool, no_wait: bool) -> None:
    """Shut instances down by their (virtual) power button; one that takes longer than --grace is ended."""
    settings, seconds = ctx.ensure_object(Settings), _seconds(grace, force)
    run(
        settings,
        lambda client: several.each(
            client,
            settings,
            names,
            lambda name: client.instances.stop(name, grace=seconds),
            doing="stopping",
            done="stopped",
            wait=not no_wait,
        ),
    )


@command("restart", examples=["atoll restart web", "atoll restart web --force"])
@_names
@_grace
@_force
@_no_wait
@click.pass_context
def restart(ctx: click.Context, names: Names, grace: str, force: bool, no_wait: bool) -> None:
    """Shut instances down and start them again: settings that waited for it apply."""
    settings, seconds = ctx.ensure_object(Settings), _seconds(grace, force)
    run(
        settings,
        lambda client: several.each(
            client,
            settings,
            names,
            lambda name: client.instances.restart(name, grace=seconds),
            doing="restarting",
            done="restarted",
            wait=not no_wait,
        ),
    )


@command("delete", examples=["atoll delete web", "atoll delete web db --force", "atoll delete --all --force -y"])
@click.argument("names", nargs=-1, metavar="NAME...", shell_complete=instances)
@click.option("--all", "everything", is_flag=True, help="Every instance of the project.")
@click.option("--force", is_flag=True, help="Also those that run.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before --all.")
@_no_wait
@click.pass_context
def delete(ctx: click.Context, names: Names, everything: bool, force: bool, yes: bool, no_wait: bool) -> None:
    """Remove instances and their disks, for good. Asks only before --all, and only on a terminal."""
    settings = ctx.ensure_object(Settings)
    if bool(names) == everything:
        raise Invalid(
            "say which instances to delete" if not names else "give names or --all, not both",
            hint="atoll delete NAME..., or atoll delete --all",
        )
    if everything:
        names = [view.name for view in run(settings, lambda client: client.instances.list())]
        if not names or not _sure(settings, names, yes):
            click.echo("nothing was deleted", err=True)
            return
    run(
        settings,
        lambda client: several.each(
            client,
            settings,
            names,
            lambda name: client.instances.delete(name, force=force),
            doing="deleting",
            done="deleted",
            wait=not no_wait,
        ),
    )


def _sure(settings: Settings, names: Names, yes: bool) -> bool:
    if yes or not sys.stdin.isatty():
        return True
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    number = f"{len(names)} instance{'s' if len(names) > 1 else ''}"
    return click.confirm(f"Delete {number} of project {settings.project} ({some})?", err=True)
