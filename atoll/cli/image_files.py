"""`atoll image import` and `atoll image export`: images come from files and URLs, and go to files."""

import hashlib
import os
import re
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, BinaryIO

import click

from atoll.base import clock
from atoll.base.errors import Absent, Broken, Invalid
from atoll.base.names import check_label
from atoll.base.units import MiB, show_size
from atoll.cli import output
from atoll.cli.completing import images
from atoll.cli.context import run
from atoll.cli.files import REDRAW, Target
from atoll.cli.image import image
from atoll.cli.progress import Line, Waiting
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, Operation

CHUNK = 4 * MiB
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@image.command(
    "import",
    examples=[
        "atoll image import ./debian-12-generic-amd64.qcow2 --name debian",
        "atoll image import https://example.org/disk.qcow2 --name disk --sha256 HASH",
        "atoll image import ./install.iso --name installer",
        "atoll image import ./alpine-minirootfs.tar.gz --name alpine",
        "zcat disk.raw.gz | atoll image import - --name disk --format raw",
    ],
)
@click.argument("source", metavar="FILE|URL")
@click.option("--name", required=True, help="Name of the image.")
@click.option("--sha256", default="", metavar="HASH", help="What the file must have: 64 hexadecimal digits.")
@click.option(
    "--format",
    type=click.Choice(["qcow2", "raw", "iso", "rootfs"]),
    help="What it is said to be (as it is found to be).",
)
@click.option("--arch", default="", help="Of the machine that it is for (as its programs say, or x86_64).")
@click.option("--agent", is_flag=True, help="A QEMU guest agent answers in it.")
@click.option("--replace", is_flag=True, help="Take the name over; who uses the old image keeps it.")
@click.option("--no-wait", is_flag=True, help="Return once the daemon has accepted.")
@click.pass_context
def import_(
    ctx: click.Context,
    source: str,
    name: str,
    sha256: str,
    format: str | None,
    arch: str,
    agent: bool,
    replace: bool,
    no_wait: bool,
) -> None:
    """Bring an image: a disk in qcow2 or raw, an ISO to install from, or a root file system for containers as tar
    or squashfs; maybe compressed (.gz, .xz, .zst).

    A file (`-`: standard input) is sent to the daemon; a URL is fetched by the daemon itself, which goes on where
    it was when a connection or the daemon breaks. Either is looked at before anything opens it: what names other
    files, is another format than was said, or is damaged, is refused. A root file system is unpacked in a cell: one
    with paths that lead out of it, with devices, or with no program for anybody, is refused.
    """
    settings = ctx.ensure_object(Settings)
    check_label(name, what="image's name", field="--name")
    sha256 = sha256.lower().removeprefix("sha256:")
    if sha256 and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise Invalid("this is no sha256", hint="64 hexadecimal digits", field="--sha256")
    given: dict[str, str | bool] = {
        "sha256": sha256, "format": format or "", "arch": arch, "agent": agent, "replace": replace,
    }  # fmt: skip

    async def work(client: "Client") -> "Operation":
        async with Waiting(client, settings, steps=True) as waiting:
            asked = await _ask(client, settings, source, name, given)
            return asked if no_wait else await waiting.wait(asked, f"importing {name}")

    ended = run(settings, work)
    output.emit(settings, ended, lambda: _tell(settings, ended, name, waited=not no_wait))


def _tell(settings: Settings, ended: "Operation", name: str, *, waited: bool) -> None:
    if settings.quiet:
        click.echo(name if waited else ended.id)
    else:
        click.echo(
            f"{name} imported" if waited else f"importing {name}; to wait for it: atoll operation wait {ended.id}"
        )


async def _ask(
    client: "Client", settings: Settings, source: str, name: str, given: dict[str, str | bool]
) -> "Operation":
    if _URL.match(source):
        from atoll.client import ImportBody

        return await client.images.fetch(name, ImportBody(url=source, **given))  # type: ignore[arg-type]
    file, length = _opened(source)
    with file:
        moved = _Moved(settings, "sent", length)
        return await client.images.send(name, moved.through(_read(file)), length=length, **given)  # type: ignore[arg-type]


def _opened(source: str) -> tuple[BinaryIO, int | None]:
    if source == "-":
        return sys.stdin.buffer, None
    try:
        file = open(source, "rb", buffering=0)  # noqa: SIM115  # closed by the caller
    except FileNotFoundError as error:
        raise Absent(f"there is no file {source}", hint="look at its path, or give a URL", field="FILE") from error
    except IsADirectoryError as error:
        raise Invalid(f"{source} is a directory", hint="an image is one file", field="FILE") from error
    length = os.fstat(file.fileno()).st_size if os.path.isfile(source) else None
    return file, length


async def _read(file: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


class _Moved:
    """Counts and hashes what passes, and tells it on a terminal. `all`: bytes that will pass, None: unknown."""

    def __init__(self, settings: Settings, what: str, all: int | None, *, hashing: bool = False) -> None:
        self.size = 0
        self.hash = hashlib.sha256() if hashing else None
        self._what, self._all = what, all
        self._line = Line() if sys.stderr.isatty() and not settings.quiet else None

    async def through(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        shown = clock.monotonic()
        try:
            async for chunk in chunks:
                self.size += len(chunk)
                if self.hash is not None:
                    self.hash.update(chunk)
                if self._line and clock.monotonic() - shown > REDRAW:
                    shown = clock.monotonic()
                    of = f" of {show_size(self._all)}" if self._all else ""
                    self._line.show(f"{self._what} {show_size(self.size)}{of}")
                yield chunk
        finally:
            if self._line:
                self._line.clear()


@image.command(
    "export",
    examples=["atoll image export debian ./debian.qcow2", "atoll image export disk - | zstd > disk.zst"],
)
@click.argument("name", shell_complete=images)
@click.argument("file")
@click.option(
    "--role",
    type=click.Choice(["disk", "iso", "rootfs", "kernel", "initrd"]),
    help="Which of its files (disk, iso or rootfs).",
)
@click.pass_context
def export(ctx: click.Context, name: str, file: str, role: str | None) -> None:
    """Write an image's disk to a file (`-`: standard output), in the format in which it is kept.

    The file appears whole, with the content that its digest names, or not at all.
    """
    settings = ctx.ensure_object(Settings)
    if os.path.isdir(file):
        raise Invalid(f"{file} is a directory", hint=f"write {os.path.join(file, name)}", field="FILE")

    async def work(client: "Client") -> tuple[int, str]:
        async with client.images.content(name, role=role or "") as (length, digest, chunks):
            moved = _Moved(settings, "received", length, hashing=True)

            async def checked() -> AsyncIterator[bytes]:
                async for chunk in moved.through(chunks):
                    yield chunk
                found = f"sha256:{moved.hash.hexdigest()}" if moved.hash else ""
                if found != digest:
                    raise Broken(f"what came has the digest {found}, not {digest}", hint="its content is damaged")

            await Target(file).take(checked())
        return moved.size, digest

    size, digest = run(settings, work)
    if file != "-":
        told = {"image": name, "file": file, "size": size, "digest": digest}
        output.emit(settings, told, lambda: None if settings.quiet else click.echo(f"{file}: {show_size(size)}"))
