"""`atoll cp`."""

import contextlib
import os
import re
import stat
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import click

from atoll.base import clock
from atoll.base.errors import Absent, Invalid
from atoll.base.units import MiB, show_size
from atoll.cli import output
from atoll.cli.commands import command
from atoll.cli.completing import guest_files
from atoll.cli.context import run
from atoll.cli.progress import Line
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client

_IN_GUEST = re.compile(r"([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?):(.*)", re.DOTALL)
CHUNK = MiB
REDRAW = 0.2


class Place(NamedTuple):
    """One side of a copy. `instance` "": this machine; its `path` "-": standard input or output."""

    instance: str
    path: str

    def joined(self, name: str) -> "Place":
        return Place(self.instance, os.path.join(self.path, name))


def place(text: str) -> Place:
    """`web:/etc/motd`, `./motd`, `-`. A local name with a colon is written ./a:b."""
    match = _IN_GUEST.fullmatch(text)
    if match is None:
        return Place("", text)
    instance, path = match.groups()
    if not path.startswith("/"):
        raise Invalid(
            f"{path!r} is not a whole path in {instance}", hint=f"write {instance}:/tmp/{path}", field="path"
        )
    return Place(instance, path)


@command(
    "cp",
    examples=[
        "atoll cp ./site.conf web:/etc/site.conf",
        "atoll cp web:/var/log/messages .",
        "atoll cp web:/etc/hosts db:/etc/hosts",
        "tar c site | atoll cp - web:/tmp/site.tar",
    ],
)
@click.argument("source", shell_complete=guest_files)
@click.argument("target", shell_complete=guest_files)
@click.option("--mode", metavar="OCTAL", help="Permissions of the file in the instance (as the source's, or 644).")
@click.pass_context
def cp(ctx: click.Context, source: str, target: str, mode: str | None) -> None:
    """Copy a file to, from or between instances, written NAME:/path. `-` is standard input or output.

    A TARGET that is a directory here, or ends in `/`, takes the file's own name.
    """
    settings = ctx.ensure_object(Settings)
    origin, goal = place(source), place(target)
    if not origin.instance and not goal.instance:
        raise Invalid("neither side is in an instance", hint="write it as NAME:/path")
    if origin.path.endswith("/") or (not origin.instance and os.path.isdir(origin.path)):
        raise Invalid(
            f"{source} is a directory", hint="pack it into one file first: tar c DIR | atoll cp - NAME:/tmp/d.tar"
        )
    name = os.path.basename(origin.path)
    if goal.path.endswith("/") or (not goal.instance and goal.path != "-" and os.path.isdir(goal.path)):
        if origin.path == "-":
            raise Invalid("standard input has no name of its own", hint=f"write {target.rstrip('/')}/NAME")
        goal = goal.joined(name)
    size = run(settings, lambda client: _copy(client, settings, origin, goal, _octal(mode)))
    told = {"source": source, "target": target, "size": size}
    if goal.path != "-" or goal.instance:
        output.emit(settings, told, lambda: _tell(settings, source, goal, size))


def _tell(settings: Settings, source: str, goal: Place, size: int) -> None:
    if not settings.quiet and sys.stderr.isatty():
        where = f"{goal.instance}:{goal.path}" if goal.instance else goal.path
        click.echo(f"{source} -> {where} ({show_size(size)})", err=True)


def _octal(mode: str | None) -> int | None:
    if mode is None:
        return None
    if not re.fullmatch(r"0?[0-7]{3,4}", mode):
        raise Invalid(f"{mode!r} is not a file mode", hint="for example 644", field="--mode")
    return int(mode, 8)


async def _copy(client: "Client", settings: Settings, origin: Place, goal: Place, mode: int | None) -> int:
    """Returns the bytes copied."""
    counted = _Counted(settings)
    if origin.instance:
        chunks = client.instances.pull(origin.instance, origin.path)
    else:
        file = _opened(origin.path)
        mode = mode if mode is not None else _mode(file)
        chunks = _read(file)
    async with contextlib.aclosing(counted.through(chunks)) as counting:
        if goal.instance:
            permissions = 0o644 if mode is None else mode
            await client.instances.push(goal.instance, goal.path, counting, mode=permissions)
        else:
            await Target(goal.path).take(counting)
    return counted.size


class _Counted:
    """Counts what passes, and tells it on a terminal."""

    def __init__(self, settings: Settings) -> None:
        self.size = 0
        self._line = Line() if sys.stderr.isatty() and not settings.quiet else None

    async def through(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        shown = clock.monotonic()
        try:
            async for chunk in chunks:
                self.size += len(chunk)
                if self._line and clock.monotonic() - shown > REDRAW:
                    shown = clock.monotonic()
                    self._line.show(f"copied {show_size(self.size)}")
                yield chunk
        finally:
            if self._line:
                self._line.clear()


def _opened(path: str) -> BinaryIO:
    if path == "-":
        return sys.stdin.buffer
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise Absent(f"there is no file {path}", field="source") from error


def _mode(file: BinaryIO) -> int | None:
    found = os.fstat(file.fileno())
    return stat.S_IMODE(found.st_mode) & 0o777 if stat.S_ISREG(found.st_mode) else None


async def _read(file: BinaryIO) -> AsyncIterator[bytes]:
    with contextlib.closing(file):
        while chunk := file.read(CHUNK):
            yield chunk


class Target:
    """A local file that appears whole or not at all; devices, pipes and `-` are written as they are."""

    def __init__(self, path: str, mode: int = 0o666) -> None:
        """`mode`: of a new file, as far as the umask leaves it."""
        self._goal, self._part, self._mode = os.path.realpath(path), "", mode
        if path == "-":
            self._file: BinaryIO = sys.stdout.buffer
        elif os.path.exists(path) and not os.path.isfile(path):
            self._file = open(path, "wb")  # noqa: SIM115  # closed by `take`
        else:
            folder = os.path.dirname(self._goal)
            if not os.path.isdir(folder):
                raise Absent(f"there is no directory {folder}", field="target")
            fd, self._part = tempfile.mkstemp(dir=folder, prefix=".atoll-")
            self._file = os.fdopen(fd, "wb")

    async def take(self, chunks: AsyncIterator[bytes]) -> None:
        try:
            async for chunk in chunks:
                self._file.write(chunk)
            self._file.flush()
            if self._part:
                mask = os.umask(0)
                os.umask(mask)
                os.fchmod(self._file.fileno(), self._mode & ~mask)
                os.replace(self._part, self._goal)
                self._part = ""
        finally:
            self.drop()

    def drop(self) -> None:
        """What is not whole by now is gone. May be called again."""
        if self._file is not sys.stdout.buffer:
            self._file.close()
        if self._part:
            os.unlink(self._part)
            self._part = ""
