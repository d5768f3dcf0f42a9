"""`atoll version` and `atoll completion`."""

import os

import click

import atoll
from atoll.cli import output
from atoll.cli.commands import command
from atoll.cli.settings import Settings

INSTALL = {
    "bash": 'eval "$(atoll completion bash)"    # in ~/.bashrc',
    "zsh": 'eval "$(atoll completion zsh)"    # in ~/.zshrc, after compinit',
    "fish": "atoll completion fish > ~/.config/fish/completions/atoll.fish",
}


@command("version", examples=["atoll version", "atoll version -o json"])
@click.pass_context
def version(ctx: click.Context) -> None:
    """Show Atoll's version. `atoll host show` tells the daemon's."""
    settings = ctx.ensure_object(Settings)
    output.emit(settings, {"version": atoll.__version__}, lambda: click.echo(f"atoll {atoll.__version__}"))


@command("completion", examples=[*INSTALL.values(), "atoll completion    # for the shell you use"])
@click.argument("shell", required=False, type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str | None) -> None:
    """Print the script that makes Tab complete commands, options and names of instances, images and operations.

    The script's first lines say how to install it.
    """
    from click.shell_completion import get_completion_class

    from atoll.cli.main import cli

    name = shell or os.path.basename(os.environ.get("SHELL", "bash"))
    maker = get_completion_class(name if name in INSTALL else "bash")
    assert maker is not None
    click.echo(f"# Tab completion for atoll. To have it always:\n#   {INSTALL.get(name, INSTALL['bash'])}")
    click.echo(maker(cli, {}, "atoll", "_ATOLL_COMPLETE").source())
