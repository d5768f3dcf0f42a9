"""`atoll screenshot`, `atoll insert` and `atoll eject`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from atoll.base.errors import Invalid
from atoll.cli import output
from atoll.cli.commands import command
from atoll.cli.completing import images, instances
from atoll.cli.context import run
from atoll.cli.progress import Waiting
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, Operation


@command("screenshot", examples=["atoll screenshot web screen.png", "atoll screenshot web - | display"])
@click.argument("name", shell_complete=instances)
@click.argument("file", type=click.Path(dir_okay=False))
@click.pass_context
def screenshot(ctx: click.Context, name: str, file: str) -> None:
    """Save what is on an instance's screen as a PNG FILE; `-` is standard output.

    `atoll show` tells the socket of its VNC server, for watching and typing.
    """
    settings = ctx.ensure_object(Settings)
    picture = run(settings, lambda client: client.instances.screenshot(name))
    if file == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(picture)
        return
    try:
        fresh = Path(f"{file}.new")
        fresh.write_bytes(picture)
        os.replace(fresh, file)
    except OSError as error:
        raise Invalid(f"cannot write {file}: {error.strerror}", field="FILE") from error
    output.emit(settings, {"file": file, "size": len(picture)}, lambda: click.echo(f"{file}: {len(picture)} bytes"))


@command("insert", examples=["atoll insert web debian-netinst"])
@click.argument("name", shell_complete=instances)
@click.argument("image", shell_complete=images)
@click.pass_context
def insert(ctx: click.Context, name: str, image: str) -> None:
    """Put the disc of an ISO image into an instance's CD-ROM drive, at once where it runs.

    What is in the drive until then is taken out. An instance has a drive when it was launched with --cdrom.
    """
    settings = ctx.ensure_object(Settings)

    async def act(client: "Client") -> "Operation":
        async with Waiting(client, settings) as waiting:
            return await waiting.wait(await client.instances.insert(name, image), f"inserting {image} into {name}")

    done = run(settings, act)
    output.emit(settings, done, lambda: click.echo(name if settings.quiet else f"{name}: {image} is in its drive"))


@command("eject", examples=["atoll eject web"])
@click.argument("name", shell_complete=instances)
@click.pass_context
def eject(ctx: click.Context, name: str) -> None:
    """Take the CD out of an instance's drive, at once where it runs. Its image is free again then."""
    settings = ctx.ensure_object(Settings)

    async def act(client: "Client") -> "Operation":
        async with Waiting(client, settings) as waiting:
            return await waiting.wait(await client.instances.eject(name), f"ejecting the CD of {name}")

    done = run(settings, act)
    output.emit(settings, done, lambda: click.echo(name if settings.quiet else f"{name}: its drive is empty"))
