"""`atoll up`, `atoll down`, `atoll daemon`."""

import asyncio
import contextlib
import dataclasses
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from atoll.base.errors import BY_CODE, EXIT, AtollError, Broken, Denied, Invalid, Unreachable
from atoll.base.units import MiB, parse_duration, show_duration
from atoll.cli import output, process, several
from atoll.cli.commands import command
from atoll.cli.context import run
from atoll.cli.errors import plain
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, Operation

START_DEADLINE = 60.0
END_DEADLINE = 120.0
LOG_KEPT = 8 * MiB

_REST = {"ignore_unknown_options": True}


@command(
    "daemon",
    context_settings=_REST,
    examples=[
        "atoll daemon",
        "atoll daemon --state /srv/atoll",
        "atoll daemon --help    # the daemon's own options",
    ],
    add_help_option=False,
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def daemon(ctx: click.Context, options: Sequence[str]) -> None:
    """Run the daemon in the foreground, for an init system or to watch it. OPTIONS are its own."""
    settings = ctx.ensure_object(Settings)
    sys.stdout.flush()
    argv = daemon_command(settings, options)
    os.execv(argv[0], argv)  # noqa: S606  # this process becomes the daemon


def daemon_command(settings: Settings, options: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "atoll.daemon", "--state", os.path.abspath(settings.state), *options]


@command("up", context_settings=_REST, examples=["atoll up", "atoll --state ~/lab up"])
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def up(ctx: click.Context, options: Sequence[str]) -> None:
    """Start the daemon in the background and wait until it answers. Does nothing where it runs already.

    OPTIONS are the daemon's own (`atoll daemon --help`). What it prints goes to the file `log` in its state
    directory.
    """
    settings = _local(ctx.ensure_object(Settings), "up")
    if answers(settings):
        _say(settings, f"the daemon runs already (state in {settings.state})")
        return
    begun = time.monotonic()
    child, earlier = spawn(settings, options)
    while not answers(settings):
        if child.poll() is not None and not _another_starts(settings):
            raise _died(settings, child.returncode, earlier)
        if time.monotonic() - begun > START_DEADLINE:
            raise Unreachable(
                f"the daemon (process {child.pid}) has not answered within {START_DEADLINE:.0f} s",
                hint=f"it may still come: see {_own(settings)}, then atoll host show",
            )
        time.sleep(0.02)
    child.returncode = 0  # it goes on without us: no complaint about a child that was not waited for
    took = time.monotonic() - begun
    _say(settings, f"the daemon answers after {took:.1f} s (state in {settings.state})")


def _local(settings: Settings, verb: str) -> Settings:
    if settings.server:
        raise Invalid(f"atoll {verb} works on this machine only", hint="leave --server and ATOLL_SERVER out")
    return settings


def _say(settings: Settings, text: str) -> None:
    if settings.output == "table" and not settings.quiet:
        click.echo(text)
    elif settings.output != "table":
        output.emit(settings, {"state": settings.state, "socket": settings.socket, "message": text}, lambda: None)


def _log(settings: Settings) -> str:
    return os.path.join(os.path.abspath(settings.state), "log")


def answers(settings: Settings) -> bool:
    """Whether the daemon of this state directory accepts a connection and answers a request."""
    if not os.path.exists(settings.socket):
        return False

    async def ask(client: "Client") -> None:
        await client.health()

    try:
        run(settings, ask)
    except Unreachable:
        return False
    return True


def spawn(settings: Settings, options: Sequence[str]) -> tuple["subprocess.Popen[bytes]", int]:
    """The daemon in a session of its own, its output appended to STATE/log (kept below some MiB, one older); and
    how many bytes of that file are from earlier starts."""
    try:
        os.makedirs(settings.state, mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if os.path.getsize(_log(settings)) > LOG_KEPT:
                os.replace(_log(settings), _log(settings) + ".1")
        log = os.open(_log(settings), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        earlier = os.fstat(log).st_size
    except PermissionError as error:
        raise Denied(
            f"{error.filename} may not be written by you", hint="be root, or give another directory: --state DIR"
        ) from error
    except OSError as error:
        raise Broken(f"{error.filename}: {error.strerror}", hint="give another directory: --state DIR") from error
    try:
        child = subprocess.Popen(
            daemon_command(settings, options),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(log)
    return child, earlier


def _another_starts(settings: Settings) -> bool:
    """Ours ended, perhaps because another `atoll up` was first: then that one answers within moments."""
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        if answers(settings):
            return True
        time.sleep(0.05)
    return False


def _died(settings: Settings, code: int, earlier: int) -> AtollError:
    """What it said itself, where it did; else its last words and how it ended."""
    with open(_log(settings), "rb") as file:
        file.seek(max(earlier, os.path.getsize(_log(settings)) - 4096))
        lines = file.read().decode(errors="replace").splitlines()[-10:]
    said = {name: text for name, _, text in (line.partition(": ") for line in lines)}
    kind = next((BY_CODE[name] for name, number in EXIT.items() if number == code and name in BY_CODE), None)
    if kind is not None and "error" in said:
        return kind(said["error"], hint=said.get("hint", ""))
    for line in lines:
        click.echo(f"  {plain(line)}", err=True)
    how = f"with exit code {code}" if code >= 0 else f"by signal {-code}"
    hint = f"its last words are above; more may be in {_own(settings)}"
    return Broken(f"the daemon ended at its start {how}", hint=hint)


def _own(settings: Settings) -> str:
    """The log that the daemon itself keeps, once it is that far."""
    return os.path.join(os.path.abspath(settings.state), "daemon.log")


@command("down", examples=["atoll down", "atoll down --guests --grace 1m"])
@click.option("--guests", is_flag=True, help="First shut down every running instance cleanly.")
@click.option("--grace", default="30s", show_default=True, help="How long a guest may take before it is ended.")
@click.pass_context
def down(ctx: click.Context, guests: bool, grace: str) -> None:
    """End the daemon. Instances run on, and the next `atoll up` finds them again.

    With --guests those of every project are shut down first; those wanted on start again at the host's next boot.
    """
    settings = _local(ctx.ensure_object(Settings), "down")
    seconds = parse_duration(grace, field="--grace")
    found = process.owner_of(settings.socket)
    if found is None:
        _say(settings, f"no daemon runs (state in {settings.state})")
        return
    with found:
        if guests:
            run(settings, lambda client: _stop_guests(settings, client, seconds))
        try:
            found.signal(signal.SIGTERM)
        except PermissionError as error:
            raise Denied(
                f"the daemon (process {found.pid}) belongs to another user", hint="be that user"
            ) from error
        _await_end(settings, found)
    _say(settings, "the daemon has ended" + ("" if guests else "; instances run on"))


def _await_end(settings: Settings, found: process.Process) -> None:
    ready, _, _ = select.select([found.fd], [], [], END_DEADLINE)
    if not ready:
        raise Unreachable(
            f"the daemon (process {found.pid}) has not ended within {show_duration(END_DEADLINE)}",
            hint=f"see {_own(settings)}",
        )


async def _stop_guests(settings: Settings, client: "Client", grace: float) -> None:
    from atoll.client import State

    if settings.output != "table":  # one result is printed, and it is not these operations
        settings = dataclasses.replace(settings, output="table", quiet=True)
    projects: dict[str, tuple[str, str]] = {}
    end = time.monotonic() + grace

    async def stop(where: str) -> "Operation":
        project, name = projects[where]
        return await client.within(project).instances.stop(name, grace=grace, keep_wanted=True)

    coming = [State.CREATING, State.STARTING, State.STOPPING]
    while True:  # who is just being started is stopped as soon as it runs
        views = await client.instances.list(states=[State.RUNNING, State.PAUSED], everywhere=True)
        projects = {f"{view.project}/{view.name}": (view.project, view.name) for view in views}
        if projects:
            await several.each(client, settings, list(projects), stop, doing="stopping", done="stopped")
        elif not await client.instances.list(states=coming, everywhere=True) or time.monotonic() > end:
            return
        await asyncio.sleep(0.1)
