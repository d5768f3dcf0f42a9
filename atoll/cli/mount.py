"""`atoll mount`."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click
import msgspec

from atoll.cli import containers, output
from atoll.cli.commands import group
from atoll.cli.completing import instances
from atoll.cli.context import run
from atoll.cli.progress import Waiting
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, Operation


mount = group("mount", "Directories of the host in containers: add, remove, while they run.")


@mount.command(
    "add", examples=["atoll mount add cell /srv/data:/data", "atoll mount add cell /srv/www:/var/www:ro"]
)
@click.argument("instance", shell_complete=instances)
@click.argument("what", metavar="DIR:/PATH[:ro]")
@click.pass_context
def add(ctx: click.Context, instance: str, what: str) -> None:
    """Bring a directory of the host into a container, at once where it runs.

    What belongs to the host's root there belongs to the container's root, and so on for every id below 65536.
    """
    from atoll.client import MountSpec

    wanted = msgspec.convert(containers.mount(what), MountSpec)
    text = f"{wanted.source} is on {wanted.path} of {instance}"
    _do(ctx, lambda client: client.instances.add_mount(instance, wanted), f"mounting in {instance}", text)


@mount.command("remove", examples=["atoll mount remove cell /data"])
@click.argument("instance", shell_complete=instances)
@click.argument("path", metavar="PATH")
@click.pass_context
def remove(ctx: click.Context, instance: str, path: str) -> None:
    """Take a directory of the host out of a container again. Refused while a program uses it."""
    text = f"{path} of {instance} is its own again"
    _do(ctx, lambda client: client.instances.remove_mount(instance, path), f"unmounting in {instance}", text)


def _do(ctx: click.Context, act: "Callable[[Client], Awaitable[Operation]]", doing: str, text: str) -> None:
    settings = ctx.ensure_object(Settings)

    async def work(client: "Client") -> "Operation":
        async with Waiting(client, settings) as waiting:
            return await waiting.wait(await act(client), doing)

    ended = run(settings, work)
    output.emit(settings, ended, lambda: None if settings.quiet else click.echo(text))
