"""docs/cli.md from the command tree: `python -m atoll.cli.docs > docs/cli.md`."""

import sys
from collections.abc import Iterator

import click

from atoll.cli import errors
from atoll.cli.commands import Command, global_options
from atoll.cli.main import SECTIONS, cli

INTRO = """\
# The command line

<!-- made by `python -m atoll.cli.docs`: change the commands, not this page -->

`atoll COMMAND --help` tells the same on the terminal. Global options may stand before or after the command.
"""
CODES = {
    "error": "",
    "broken": "a tool, device or guest failed",
    "invalid": "the command line or the request cannot work as written",
    "unreachable": "no answer in time: the outcome is unknown; or the daemon does not run",
    "absent": "there is no such thing",
    "exists": "the name, address or key is taken",
    "refused": "its present state, or what depends on it, forbids this",
    "conflict": "somebody else changed it first: try again",
    "compacted": "the history asked for is no longer kept",
    "exhausted": "no space, memory or address is left",
    "lacking": "this host lacks a program, kernel part or right",
    "denied": "you may not do this",
    "unauthenticated": "no token, or one that is not valid",
    "cancelled": "the operation was cancelled; what it had begun was taken back",
    "interrupted": "the daemon ended in the middle; what was begun was taken back",
    "bug": "Atoll itself failed (`ATOLL_TRACEBACK=1` shows where)",
}
ENVIRONMENT = {
    "ATOLL_STATE": "state directory; its socket is `atoll.sock`",
    "ATOLL_SERVER": "`https://HOST:PORT` instead of the socket",
    "ATOLL_TOKEN": "token for it",
    "ATOLL_FINGERPRINT": "sha256 of its certificate",
    "ATOLL_CA": "file of certificates to believe",
    "ATOLL_PROJECT": "project to work in",
    "ATOLL_OUTPUT": "`table`, `json` or `yaml`",
    "ATOLL_TRACEBACK": "show where in Atoll an error came from",
    "NO_COLOR": "no colours",
}


def page() -> str:
    return (
        "\n".join([INTRO, *_options(global_options(leaf=False)), *_commands(), *_environment(), *_exits()]) + "\n"
    )


def _commands() -> Iterator[str]:
    root = click.Context(cli, info_name="atoll")
    for title, entries in SECTIONS.items():
        yield f"\n## {title}"
        for name in entries:
            command = cli.get_command(root, name)
            assert command is not None
            yield from _command(command, click.Context(command, info_name=name, parent=root))


def _command(command: click.Command, ctx: click.Context) -> Iterator[str]:
    if isinstance(command, click.Group):
        yield f"\n### {ctx.command_path}\n\n{command.help}"
        for name in command.list_commands(ctx):
            inner = command.get_command(ctx, name)
            assert inner is not None
            yield from _command(inner, click.Context(inner, info_name=name, parent=ctx))
        return
    level = "###" if ctx.parent is not None and ctx.parent.parent is None else "####"
    pieces = " ".join(command.collect_usage_pieces(ctx))
    yield f"\n{level} {ctx.command_path}\n\n    {ctx.command_path} {pieces}\n\n{_text(command.help or '')}"
    shared = {name for option in global_options(leaf=True) for name in option.opts}
    own = [each for each in command.params if isinstance(each, click.Option) and not set(each.opts) & shared]
    if own:
        yield ""
        yield from _options(own)
    if isinstance(command, Command) and command.examples:
        yield "\n" + "\n".join(f"    {line}" for line in command.examples)


def _text(help: str) -> str:
    return "\n".join(line.strip() for line in help.strip().splitlines())


def _options(options: "list[click.Parameter] | list[click.Option]") -> Iterator[str]:
    yield "| option | |\n| --- | --- |"
    for option in options:
        assert isinstance(option, click.Option)
        names = ", ".join([*option.opts, *option.secondary_opts])
        value = "" if option.is_flag else f" {option.metavar or _choices(option)}"
        default = f" [{option.default}]" if option.show_default else ""
        yield f"| `{names}{value}` | {(option.help or '').replace('|', chr(92) + '|')}{default} |"


def _choices(option: click.Option) -> str:
    if isinstance(option.type, click.Choice):
        return "/".join(map(str, option.type.choices))
    return "N" if isinstance(option.type, click.IntRange) else "TEXT"


def _environment() -> Iterator[str]:
    yield "\n## Environment\n\n| variable | |\n| --- | --- |"
    for name, meaning in ENVIRONMENT.items():
        yield f"| `{name}` | {meaning} |"


def _exits() -> Iterator[str]:
    yield "\n## Exit codes\n"
    yield 'With `-o json` an error is `{"error": {"code", "message", "exit", "hint", "field"}}` on stderr.\n'
    yield "| exit | error code | meaning |\n| --- | --- | --- |\n| 0 | | done |"
    for code, number in sorted(errors.EXIT.items(), key=lambda each: each[1]):
        if CODES[code]:
            yield f"| {number} | `{code}` | {CODES[code]} |"
    yield f"| {errors.EXEC_FAILED} | | `atoll exec`: Atoll failed; other codes are the program's |"
    yield f"| {errors.CTRL_C} | | ctrl-C |"
    yield f"| {errors.PIPE_CLOSED} | | whoever read the output has gone |"


if __name__ == "__main__":
    sys.stdout.write(page())
