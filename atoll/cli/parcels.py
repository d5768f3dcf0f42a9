"""`atoll export` and `atoll import`: whole instances leave for a file, and come from one."""

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import click
import msgspec

from atoll.base.errors import AtollError, Invalid
from atoll.base.names import check_label
from atoll.base.units import show_size
from atoll.cli import output
from atoll.cli.commands import command
from atoll.cli.completing import instances
from atoll.cli.context import run
from atoll.cli.files import Target
from atoll.cli.moved import Moved, opened, read
from atoll.cli.progress import Waiting
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, Operation


@command(
    "export",
    examples=[
        "atoll export web ./web.atoll",
        "atoll export web - | ssh other atoll import -",
        "atoll export web ./web.atoll --compress --without-volumes",
    ],
)
@click.argument("name", shell_complete=instances)
@click.argument("file")
@click.option("--compress", is_flag=True, help="Compress its disks (zstd): smaller, and slower to make.")
@click.option("--without-volumes", is_flag=True, help="Leave out volumes that have a name of their own.")
@click.pass_context
def export(ctx: click.Context, name: str, file: str, compress: bool, without_volumes: bool) -> None:
    """Write a whole instance to one file (`-`: standard output): settings, disks, attached volumes, checksums.

    It must be stopped while its disks are copied, and may run again while the file is sent. The file stands alone:
    no image is needed where it is imported. It holds everything, also passwords given to cloud-init. What is in its
    CD-ROM drive stays behind.
    """
    settings = ctx.ensure_object(Settings)
    if os.path.isdir(file):
        raise Invalid(f"{file} is a directory", hint=f"write {os.path.join(file, name)}.atoll", field="FILE")
    if file == "-" and sys.stdout.isatty():
        raise Invalid("this would fill the terminal with bytes", hint="| ssh OTHER atoll import -", field="FILE")

    async def work(client: "Client") -> "tuple[Operation, int]":
        target = Target(file, mode=0o600)
        async with Waiting(client, settings, steps=True) as waiting:
            asked = await client.parcels.export(name, compress=compress, volumes=not without_volumes)
            fetching = asyncio.ensure_future(_fetch(client, asked, target))
            try:
                ended = await waiting.wait(asked, f"exporting {name}")
                return ended, await fetching
            except AtollError as error:
                await asyncio.wait({fetching}, timeout=5)
                if fetching.done() and isinstance(own := fetching.exception(), OSError):
                    raise own from error  # a full disk here is why the daemon says that we hung up
                raise
            finally:
                fetching.cancel()
                await asyncio.gather(fetching, return_exceptions=True)

    ended, size = run(settings, work)
    if file != "-":
        told = {"instance": name, "file": file, "size": size, "operation": ended.id}
        output.emit(settings, told, lambda: None if settings.quiet else click.echo(f"{file}: {show_size(size)}"))


async def _fetch(client: "Client", asked: "Operation", target: Target) -> int:
    """Bytes of the file. How much has come, the operation tells."""
    try:
        async with client.parcels.fetch(asked) as (length, chunks):
            await target.take(chunks)
            return length
    finally:
        target.drop()


@command(
    "import",
    examples=[
        "atoll import ./web.atoll",
        "atoll import ./web.atoll --name web2 --pool fast --network lan",
        "atoll export web - | ssh other atoll import - --network lan=default",
    ],
)
@click.argument("file")
@click.option("--name", default="", help="Name of the instance (as in the file).")
@click.option("--pool", default="", help="Pool of all its disks (pools of the names they had).")
@click.option(
    "--network", multiple=True, metavar="[OLD=]NEW", help="Network of its NICs, or of those that were on OLD."
)
@click.option("--new-identity", is_flag=True, help="Another id, other MACs and addresses: a copy, a new machine.")
@click.option("--without-groups", is_flag=True, help="In no security group.")
@click.option("--start", is_flag=True, help="Start it at once.")
@click.option("--no-wait", is_flag=True, help="Return once the daemon has all of it.")
@click.pass_context
def import_(
    ctx: click.Context,
    file: str,
    name: str,
    pool: str,
    network: tuple[str, ...],
    new_identity: bool,
    without_groups: bool,
    start: bool,
    no_wait: bool,
) -> None:
    """Make an instance of a file that `atoll export` wrote (`-`: standard input). It is stopped afterwards.

    Its id, MACs, addresses, forwards and the names of its volumes are kept where they are free here; what is not as
    it was is told. Every checksum holds and every disk is inspected before anything of it is there.
    """
    settings = ctx.ensure_object(Settings)
    if start and no_wait:
        raise Invalid("it can be started only once it is there", hint="leave one of them out", field="--no-wait")
    if name:
        check_label(name, field="--name")

    async def work(client: "Client") -> "Operation":
        from atoll.client import Fitting

        how = Fitting(name=name, pool=pool, network=network, new_identity=new_identity, groups=not without_groups)
        async with Waiting(client, settings, steps=True) as waiting:
            source, length = opened(file, "an exported instance", "atoll export NAME FILE makes one")
            with source:
                moved = Moved(settings, "sent", length)
                asked = await client.parcels.send(moved.through(read(source)), how, length=length)
            called = asked.subject.name
            ended = asked if no_wait else await waiting.wait(asked, f"importing {called}")
            if start:
                await waiting.wait(await client.instances.start(called), f"starting {called}")
            return ended

    ended = run(settings, work)
    output.emit(settings, ended, lambda: _tell(settings, ended, start, waited=not no_wait))


def _tell(settings: Settings, ended: "Operation", start: bool, *, waited: bool) -> None:
    name = ended.subject.name
    if settings.quiet:
        click.echo(name if waited else ended.id)
        return
    if not waited:
        click.echo(f"importing {name}; to wait for it: atoll operation wait {ended.id}")
        return
    for note in (msgspec.json.decode(ended.result) or {}).get("notes", ()):
        click.echo(f"note: {note}", err=True)
    click.echo(f"{name} imported" + (" and started" if start else f"; to start it: atoll start {name}"))
