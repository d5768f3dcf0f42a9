"""What a failure looks like on the command line: a message, a hint, an exit code. Never a traceback."""

import os
import sys
import traceback

import click
import msgspec

from atoll.base.errors import EXIT, AtollError, Bug, Cancelled, Unreachable

USAGE = 2
CTRL_C = 130
PIPE_CLOSED = 141
EXEC_FAILED = 125
"""`atoll exec` itself failed: every other code is the program's (127: there is no such program)."""


class Failure(msgspec.Struct, frozen=True):
    """An error as the command line shows it. `exit` is the process's exit code."""

    code: str
    message: str
    exit: int
    hint: str = ""
    field: str = ""


class SomeFailed(Exception):
    """Several things were asked for and some failed, each shown already: nothing more to say, exit with this."""

    def __init__(self, exit: int) -> None:
        super().__init__(f"exit {exit}")
        self.exit = exit


class ReaderLeft(Exception):
    """Nobody reads our output any more. (As a BrokenPipeError click would answer it, with exit code 1.)"""


def describe(error: BaseException) -> Failure:
    """What to show for any error at all."""
    if isinstance(error, click.UsageError):
        return _usage(error)
    if isinstance(error, click.ClickException):
        return Failure("invalid", error.format_message(), USAGE)
    if isinstance(error, click.Abort):
        return Failure("cancelled", "interrupted", CTRL_C)
    if isinstance(error, AtollError):
        return Failure(error.code, error.message, EXIT.get(error.code, 1), error.hint, error.field)
    if isinstance(error, TimeoutError):
        return describe(Unreachable("no answer in time", hint="look before trying again: the outcome is unknown"))
    if isinstance(error, OSError) and error.filename:
        return Failure("broken", f"{error.filename}: {error.strerror}", EXIT["broken"])
    name = type(error).__name__
    return describe(Bug(f"atoll itself failed: {name}: {error}", hint="ATOLL_TRACEBACK=1 shows where"))


def _usage(error: click.UsageError) -> Failure:
    """Click's own complaint, its "did you mean" turned into the hint."""
    path = error.ctx.command_path if error.ctx is not None else "atoll"
    near = getattr(error, "possibilities", None)
    message = error.message if near is not None else error.format_message()
    hint = f"did you mean {' or '.join(near)}?" if near else f"{path} --help"
    if getattr(error, "hint", ""):
        hint = str(vars(error)["hint"])
    return Failure("invalid", _sentence(message), USAGE, hint)


def _sentence(text: str) -> str:
    """Click's sentences in our form: no capital, no full stop."""
    text = text.removesuffix(".")
    return text[:1].lower() + text[1:] if text[:2] != text[:2].upper() else text


def report(error: BaseException, *, as_json: bool = False) -> int:
    """Say on stderr what went wrong; returns the exit code."""
    failure = describe(error)
    wants_traceback = bool(os.environ.get("ATOLL_TRACEBACK"))
    if wants_traceback:
        sys.stderr.write("".join(traceback.format_exception(error)))
    write_failure(failure, as_json=as_json)
    return failure.exit


def write_failure(failure: Failure, *, as_json: bool = False, about: str = "") -> None:
    """`about`: what it was about, where several things were asked for."""
    if as_json:
        body = {"error": {"about": about} | msgspec.to_builtins(failure)} if about else {"error": failure}
        sys.stderr.write(msgspec.json.encode(body).decode() + "\n")
        return
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(plain(f"{about}: {failure.message}" if about else failure.message), err=True)
    if failure.hint:
        click.secho("hint: ", fg="cyan", nl=False, err=True)
        click.echo(plain(failure.hint), err=True)


def plain(text: str) -> str:
    """Without control characters: what a guest or another user wrote must not drive this terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


__all__ = ["EXIT", "Cancelled", "Failure", "SomeFailed", "describe", "plain", "report", "write_failure"]
