"""`atoll console` and `atoll shell`."""

import asyncio
import contextlib
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import click

from atoll.base import clock
from atoll.base.errors import Lacking, Refused, Unreachable
from atoll.base.units import parse_duration
from atoll.cli import terminal
from atoll.cli.commands import command
from atoll.cli.completing import instances
from atoll.cli.context import connect
from atoll.cli.errors import plain
from atoll.cli.settings import Settings
from atoll.client.problems import NotRunning

if TYPE_CHECKING:
    from atoll.client import Client, Console

ESCAPE = b"\x1d"
LOGIN = 30.0
"""Seconds of silence after the end of piped input until a login is given up: a slow guest needs some to begin."""
LEAVE = "leave with ctrl-]"


@command("console", examples=["atoll console web", "printf 'root\\nuptime\\n' | atoll console web --linger 3s"])
@click.argument("name", shell_complete=instances)
@click.option(
    "--linger",
    default="2s",
    show_default=True,
    metavar="TIME",
    help="After the end of piped input: leave when the console is silent for so long.",
)
@click.pass_context
def console(ctx: click.Context, name: str, linger: str) -> int:
    """Attach to an instance's serial console. Leave with ctrl-]; the instance does not notice.

    Every other key goes to the instance, ctrl-C too. Input that is not a terminal is typed in, for scripts.
    """
    settings = ctx.ensure_object(Settings)
    return attach(
        settings, name, linger=parse_duration(linger, field="--linger"), greeting=f"console of {name}: {LEAVE}"
    )


@command("shell", examples=["atoll shell web", "atoll shell web --user debian", "atoll shell web --serial"])
@click.argument("name", shell_complete=instances)
@click.option("-u", "--user", default="root", show_default=True, help="Who logs in over the network.")
@click.option("--serial", is_flag=True, help="On the serial console, without trying the network.")
@click.pass_context
def shell(ctx: click.Context, name: str, user: str, serial: bool) -> int:
    """Log in to an instance: by ssh from its host, with the project's own key, where its image has cloud-init and
    sshd; else on its serial console.

    For a single command without logging in, use `atoll exec`.
    """
    settings = ctx.ensure_object(Settings)
    if not serial:
        try:
            return attach(settings, name, linger=LOGIN, greeting=f"{user}@{name}", user=user)
        except (Refused, Unreachable, Lacking) as error:
            if isinstance(error, NotRunning):
                raise
            _say(settings, f"not over the network: {plain(error.message)}")
    greeting = f"shell on the console of {name}: log in; {LEAVE}; single commands: atoll exec {name} -- CMD"
    return attach(settings, name, linger=2.0, greeting=greeting, first=b"\r")


def attach(
    settings: Settings, name: str, *, linger: float, greeting: str, first: bytes = b"", user: str = ""
) -> int:
    """Returns the exit code. `first`: typed for the user, on a terminal only, to make a prompt appear. `user`: who
    logs in over the network; "": the serial console."""
    stdin = sys.stdin.fileno()
    sys.stdout.flush()

    async def session(is_terminal: bool) -> int:
        with _ended_by_signals() as ended:
            async with (
                connect(settings) as client,
                _channel(client, name, user) as channel,
                _followed(channel, user),
            ):
                if is_terminal:
                    _say(settings, greeting)
                    if first:
                        await channel.write(first)
                link = _Link(channel, stdin, is_terminal, linger)
                reason = await link.run(ended)
        if is_terminal:
            _say(settings, f"\nleft the console of {name}" + (f": {reason}" if reason else ""))
        return 128 + ended.result() if ended.done() else 0

    with terminal.raw(stdin) as is_terminal:
        return asyncio.run(session(is_terminal))


def _channel(client: "Client", name: str, user: str) -> "AbstractAsyncContextManager[Console]":
    if not user:
        return client.instances.console(name)
    columns, rows = shutil.get_terminal_size()
    return client.instances.shell(name, user=user, columns=columns, rows=rows)


@contextlib.asynccontextmanager
async def _followed(channel: "Console", user: str) -> AsyncIterator[None]:
    """The size of our terminal, told to the other end as it changes."""
    loop, tasks = asyncio.get_running_loop(), set()

    def changed() -> None:
        columns, rows = shutil.get_terminal_size()
        tasks.add(task := asyncio.create_task(channel.resize(columns, rows)))
        task.add_done_callback(tasks.discard)

    if user:
        loop.add_signal_handler(signal.SIGWINCH, changed)
    try:
        yield
    finally:
        if user:
            loop.remove_signal_handler(signal.SIGWINCH)


def _say(settings: Settings, text: str) -> None:
    if not settings.quiet:
        sys.stderr.write(text.replace("\n", "\r\n") + "\r\n")
        sys.stderr.flush()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator["asyncio.Future[int]"]:
    """A future of the signal that wants us gone: the terminal is put back first."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(number: int) -> Callable[[], None]:
        return lambda: None if ended.done() else ended.set_result(number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, end(number))
    try:
        yield ended
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


class _Link:
    """Two directions until one ends."""

    def __init__(self, channel: "Console", stdin: int, is_terminal: bool, linger: float) -> None:
        self._channel, self._stdin, self._is_terminal, self._linger = channel, stdin, is_terminal, linger
        self._last = clock.monotonic()

    async def run(self, ended: "asyncio.Future[int]") -> str:
        """Why it ended, "" where its user left."""
        down, up = asyncio.create_task(self._down()), asyncio.create_task(self._up())
        try:
            waits: list[asyncio.Future[Any]] = [down, up, ended]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in (down, up):
                if task.done() and (error := task.exception()) is not None:
                    raise error
            return down.result() if down.done() else ""
        finally:
            for task in (down, up):
                task.cancel()
            await asyncio.gather(down, up, return_exceptions=True)

    async def _down(self) -> str:
        while data := await self._channel.read():
            self._last = clock.monotonic()
            terminal.show(data)
        return self._channel.reason or "it ended"

    async def _up(self) -> None:
        async with contextlib.aclosing(terminal.keys(self._stdin)) as pressed:
            async for data in pressed:
                typed, escape, _ = data.partition(ESCAPE) if self._is_terminal else (data, b"", b"")
                if typed:
                    await self._channel.write(typed)
                if escape:
                    return
        self._last = clock.monotonic()
        while (left := self._last + self._linger - clock.monotonic()) > 0:
            await asyncio.sleep(left)
