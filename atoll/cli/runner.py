"""`atoll run`: one program in a container of its own, which lives as long as the program."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from msgspec import structs

from atoll.base.clock import monotonic
from atoll.base.errors import Absent, AtollError, Invalid
from atoll.base.names import check_label, image_name
from atoll.cli import execute
from atoll.cli.completing import launchable, networks
from atoll.cli.context import run as work
from atoll.cli.launch import ensure_image, spec_of
from atoll.cli.progress import Waiting
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, InstanceSpec

_GOES_IN = 20.0
"""Seconds for the daemon to remove what it ran."""
UNASKED: Mapping[str, Any] = {"pairs": (), "nets": (), "nics": (), "ports": (), "uses": (), "container": True}


@click.command(
    "run",
    cls=execute.ExecCommand,
    examples=[
        "atoll run tiny -- uname -a",
        "atoll run debian/12 -- bash",
        "tar c . | atoll run alpine -i -- tar t",
        "atoll run alpine-arm --arch aarch64 -- /bin/busybox uname -m",
    ],
)
@click.argument("image", shell_complete=launchable)
@click.argument("argv", nargs=-1, required=True, metavar="-- PROGRAM [ARGUMENT]...", type=click.UNPROCESSED)
@click.option("--name", default="", help="Of the container (run- and some letters).")
@click.option(
    "--arch", default="", help="Machine that the image must be for: another one's is emulated by qemu-user."
)
@click.option("-c", "--cpus", metavar="N", help="CPUs that it may use at once.")
@click.option("-m", "--memory", metavar="SIZE", help="Memory that it may use (512MiB).")
@click.option("-n", "--net", "nets", multiple=True, shell_complete=networks, help="Network it is on. Repeatable.")
@click.option("--mount", "mounts", multiple=True, metavar="DIR:/PATH[:ro]", help="A directory of the host in it.")
@click.option("-e", "--env", multiple=True, metavar="K=V", help="Environment of the program. Repeatable.")
@click.option("-u", "--user", default="", metavar="USER", help="Who runs it (root).")
@click.option("-w", "--directory", default="", metavar="DIR", help="Where it begins.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal (the default on a terminal).")
@click.option("-i", "--interactive", is_flag=True, help="Talk to it by pipes (the default otherwise).")
@click.pass_context
def run_(ctx: click.Context, /, image: str, argv: Sequence[str], name: str, arch: str, **options: Any) -> int:
    """Run a program in a new container of IMAGE, and remove the container when it ends.

    Its input and output are ours, on a terminal with its size and keys; our signals are passed on. Exits with its
    exit code: 127 where there is no such program, 128 and more where a signal ended it, 125 where Atoll failed.
    """
    settings = ctx.ensure_object(Settings)
    name = check_label(name, what="name of an instance") if name else f"run-{secrets.token_hex(4)}"
    wanted = spec_of(image, {**UNASKED, **{key: options[key] for key in ("cpus", "memory", "nets", "mounts")}})
    spec = structs.replace(wanted, container=structs.replace(wanted.container, hold=True))
    return execute.failing(settings, lambda: _run(settings, spec, name, arch, argv, options))


def _run(
    settings: Settings, spec: "InstanceSpec", name: str, arch: str, argv: Sequence[str], options: dict[str, Any]
) -> int:
    env = dict(execute.pair(each) for each in options["env"])
    ran = False
    try:
        work(settings, lambda client: _launch(client, settings, spec, name, arch))
        ran = True
        return execute.talk_to(settings, name, argv, env, False, options)
    finally:
        _remove(settings, name, ran=ran)


async def _launch(client: "Client", settings: Settings, spec: "InstanceSpec", name: str, arch: str) -> None:
    async with Waiting(client, settings, steps=True) as waiting:
        await ensure_image(client, waiting, spec.image)
        found = (await client.images.get(image_name(spec.image))).manifest.arch
        if arch and found != arch:
            raise Invalid(
                f"image {spec.image} is for {found}, not {arch}",
                hint=f"import one for {arch}: atoll image import FILE --name NAME",
                field="--arch",
            )
        await waiting.wait(await client.instances.launch(spec, name=name), f"launching {name}")


def _remove(settings: Settings, name: str, *, ran: bool) -> None:
    """Whatever became of it: the daemon removes it after its program, but where none was run. That it cannot be
    removed is said, and changes no exit code."""

    async def gone(client: "Client") -> None:
        until = monotonic() + _GOES_IN
        while await _there(client, name):
            if not ran or monotonic() > until:
                await client.operations.wait(await client.instances.delete(name, force=True))
                return
            await asyncio.sleep(0.02)

    try:
        work(settings, gone)
    except AtollError as error:
        click.echo(f"container {name} is still there: {error.message}; atoll delete {name} --force", err=True)


async def _there(client: "Client", name: str) -> bool:
    try:
        await client.instances.get(name)
    except Absent:
        return False
    return True
