"""The command tree's bones: leaves that take the global options, groups that import a command when it is called."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import click
from click.shell_completion import CompletionItem

from atoll.cli.errors import ReaderLeft
from atoll.cli.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


def _keep(field: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None and value is not False:
            setattr(ctx.ensure_object(Settings), field, value)

    return callback


def _global(field: str, *names: str, hidden: bool = False, **rest: Any) -> click.Option:
    return click.Option(names, expose_value=False, callback=_keep(field), hidden=hidden, **rest)


def global_options(*, leaf: bool) -> list[click.Parameter]:
    """Taken by `atoll` and by every command, so that `atoll -o json list` and `atoll list -o json` both work.

    A command's own help shows only those that people look for there.
    """
    return [
        _global(
            "chosen_project", "-p", "--project", metavar="NAME", help="Project to work in (ATOLL_PROJECT; default)."
        ),
        _global(
            "output",
            "-o",
            "--output",
            type=click.Choice(["table", "json", "yaml"]),
            help="How to print the result (ATOLL_OUTPUT; table).",
        ),
        _global("quiet", "-q", "--quiet", is_flag=True, help="Print no more than needed: names, no progress."),
        _global("state", "--state", metavar="DIR", hidden=leaf, help="The daemon's state directory (ATOLL_STATE)."),
        _global(
            "server",
            "--server",
            metavar="URL",
            hidden=leaf,
            help="Talk to https://HOST:PORT instead of the local socket (ATOLL_SERVER).",
        ),
        _global(
            "fingerprint",
            "--fingerprint",
            metavar="SHA256",
            hidden=leaf,
            help="The server's certificate must have this one (ATOLL_FINGERPRINT).",
        ),
        _global("ca", "--ca", metavar="FILE", hidden=leaf, help="Certificates to believe for --server (ATOLL_CA)."),
        _global("token", "--token", metavar="TOKEN", hidden=leaf, help="For --server; better in ATOLL_TOKEN."),
    ]


class Command(click.Command):
    """A leaf. `examples` are command lines, shown at the end of its help and in docs/cli.md."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        taken = {name for param in self.params for name in param.opts}
        self.params += [option for option in global_options(leaf=True) if not taken & set(option.opts)]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")
        super().format_epilog(ctx, formatter)


class Group(click.Group):
    """A noun's commands."""

    command_class = Command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does, with aliases that help does not show."""
        name = {"ls": "list", "rm": "delete", "info": "show"}.get(args[0], args[0])
        return super().resolve_command(ctx, [name if name in self.list_commands(ctx) else args[0], *args[1:]])


class Entry(NamedTuple):
    """Where a command lives ("atoll.cli.launch:launch") and its line in `atoll --help`."""

    where: str
    help: str


class LazyGroup(Group):
    """Imports a command's module when it is called: starting up stays cheap however many commands there are."""

    def __init__(self, *args: Any, sections: Mapping[str, Mapping[str, Entry]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections
        self._entries = {name: entry for section in sections.values() for name, entry in section.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._entries:
            if ctx.resilient_parsing:
                return None
            raise click.exceptions.NoSuchCommand(cmd_name, possibilities=self._entries, ctx=ctx)
        module, _, attribute = self._entries[cmd_name].where.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderLeft from error

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        found = [
            CompletionItem(name, help=entry.help)
            for name, entry in self._entries.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for title, entries in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.help) for name, entry in entries.items()])


def command(name: str, *, examples: Sequence[str] = (), **kwargs: Any) -> Callable[[F], Command]:
    """`@command("launch", examples=[...])`: a leaf made of a function, whose docstring is its help."""

    def decorate(function: F) -> Command:
        return click.command(name, cls=Command, examples=examples, **kwargs)(function)

    return decorate


def group(name: str, help: str) -> Group:
    return Group(name, help=help, no_args_is_help=True)
