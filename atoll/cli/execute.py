"""`atoll exec`."""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

from atoll.base.errors import Absent, AtollError, Invalid
from atoll.base.units import KiB, parse_duration, show_size
from atoll.cli import errors, output, session
from atoll.cli.commands import Command
from atoll.cli.completing import instances
from atoll.cli.context import run
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, Outcome

STDIN_MAX = 700 * KiB
"""Bytes of input that a request can carry (its body is bounded, and this is base64 in it)."""
UNKNOWN_PROGRAM = 127


class ExecCommand(Command):
    """What follows NAME belongs to the program, from its first word on: `atoll exec web ls -l` needs no `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if "--" in args else self._parted(args))

    def _parted(self, args: list[str]) -> list[str]:
        valued = {
            name
            for param in self.params
            if isinstance(param, click.Option) and not param.is_flag
            for name in param.opts
        }
        words, at = 0, 0
        while at < len(args):
            if not args[at].startswith("-") or args[at] == "-":
                words += 1
                if words == 2:
                    return [*args[:at], "--", *args[at:]]
            at += 2 if args[at] in valued else 1
        return args


@click.command(
    "exec",
    cls=ExecCommand,
    examples=[
        "atoll exec web -- uname -a",
        "atoll exec web -- sh -c 'df -h | tail -1'",
        "echo hello | atoll exec web -e LANG=C -- tee /tmp/hello",
        "atoll exec cell -t -- top",
        "tar c . | atoll exec cell -i -u 1000 -w /srv -- tar x",
    ],
)
@click.argument("name", shell_complete=instances)
@click.argument("argv", nargs=-1, required=True, metavar="-- PROGRAM [ARGUMENT]...", type=click.UNPROCESSED)
@click.option("-e", "--env", multiple=True, metavar="K=V", help="Environment of the program. Repeatable.")
@click.option("--timeout", metavar="TIME", help="How long the program may take (1h).")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal: containers, the default on a terminal.")
@click.option("-i", "--interactive", is_flag=True, help="Talk to it by pipes while it runs: containers.")
@click.option("-u", "--user", metavar="USER", default="", help="Who runs it (root): containers.")
@click.option("-w", "--directory", metavar="DIR", default="", help="Where it begins: containers.")
@click.option("-n", "--no-stdin", is_flag=True, help="Do not read standard input.")
@click.pass_context
def exec_(
    ctx: click.Context,
    /,
    name: str,
    argv: Sequence[str],
    env: Sequence[str],
    timeout: str | None,
    no_stdin: bool,
    **talk: Any,
) -> int:
    """Run a program in an instance: no shell. In a VM through its guest agent, without a terminal; in a container
    at once, where it may have a terminal, a user and a directory, and gets our signals.

    Exits with the program's exit code: 127 where there is no such program, 128 and more where a signal ended it,
    125 where Atoll itself failed. Standard input is passed on unless it is a terminal.
    """
    settings = ctx.ensure_object(Settings)
    pairs = dict(pair(each) for each in env)
    if any(talk.values()) or (session.wants_terminal() and not no_stdin and _is_container(settings, name)):
        return failing(settings, lambda: talk_to(settings, name, argv, pairs, no_stdin, talk))
    seconds = parse_duration(timeout, field="--timeout") if timeout else None
    given = b"" if no_stdin else _stdin()

    def once() -> int:
        outcome = run(settings, lambda client: _execute(client, name, argv, given, pairs, seconds))
        _show(settings, outcome)
        return 128 + outcome.signal if outcome.signal else outcome.code

    return failing(settings, once)


def failing(settings: Settings, act: Callable[[], int]) -> int:
    """Its exit code, or one that says that Atoll failed."""
    try:
        return act()
    except AtollError as error:
        code = UNKNOWN_PROGRAM if isinstance(error, NoProgram) else errors.EXEC_FAILED
        if os.environ.get("ATOLL_TRACEBACK"):
            raise
        errors.write_failure(msgspec.structs.replace(errors.describe(error), exit=code), as_json=settings.as_json)
        return code


def _is_container(settings: Settings, name: str) -> bool:
    with contextlib.suppress(AtollError):
        return run(settings, lambda client: client.instances.get(name)).instance.spec.kind == "container"
    return False


def talk_to(
    settings: Settings, name: str, argv: Sequence[str], env: dict[str, str], no_stdin: bool, talk: dict[str, Any]
) -> int:
    from atoll.client import Command

    tty = talk["tty"] or (not talk["interactive"] and session.wants_terminal())
    command = Command(
        argv=tuple(argv),
        env=env,
        user=talk["user"],
        directory=talk["directory"],
        terminal=session.size() if tty else None,
        term=os.environ.get("TERM", "xterm")[:64] if tty else "",
    )
    return session.attach(settings, name, command, read=not no_stdin).code


class NoProgram(Absent):
    code = "absent"


def pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise Invalid(f"{text!r} is not of the form key=value", hint="for example LANG=C", field="--env")
    return key, value


def _stdin() -> bytes:
    """All of standard input, where it is not a terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    given = sys.stdin.buffer.read(STDIN_MAX + 1)
    if len(given) > STDIN_MAX:
        raise Invalid(
            f"standard input is more than {show_size(STDIN_MAX)}", hint="copy it first: atoll cp FILE NAME:/path"
        )
    return given


async def _execute(
    client: "Client", name: str, argv: Sequence[str], given: bytes, env: dict[str, str], timeout: float | None
) -> "Outcome":
    """Raises NoProgram where the instance is there and the program is not."""
    try:
        return await client.instances.execute(name, argv, input=given, env=env, timeout=timeout)
    except Absent as error:
        await client.instances.get(name)
        raise NoProgram(error.message, hint=error.hint) from error


def _show(settings: Settings, outcome: "Outcome") -> None:
    if settings.output != "table":
        told = {
            "code": outcome.code,
            "signal": outcome.signal,
            "truncated": outcome.truncated,
            "stdout": outcome.stdout.decode(errors="replace"),
            "stderr": outcome.stderr.decode(errors="replace"),
        }
        output.emit(settings, told, lambda: None)
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(outcome.stdout)
    sys.stdout.buffer.flush()
    sys.stderr.buffer.write(outcome.stderr)
    sys.stderr.buffer.flush()
    if outcome.truncated:
        click.echo("atoll: the output was longer; write it to a file and fetch it: atoll cp", err=True)
