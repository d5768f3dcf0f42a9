"""Files that survive a power cut, and the operating system's refusals in Atoll's words."""

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

from atoll.base.errors import Absent, AtollError, Broken, Exhausted, Lacking

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_RIGHT = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


Args = ParamSpec("Args")
Result = TypeVar("Result")


async def in_thread(function: Callable[Args, Result], *args: Args.args, **named: Args.kwargs) -> Result:
    """As asyncio.to_thread, but a cancelled call ends only when the thread is done: it acts behind no back."""
    working = asyncio.ensure_future(asyncio.to_thread(function, *args, **named))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        if not working.cancelled():
            working.exception()  # seen, so that nobody warns of it
        raise


def sync(path: Path) -> None:
    """Returns when a file's content, or a directory's names, are on the disk. Blocks."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Make or replace a small file: after a crash it holds the old or the new content, never a part. Blocks."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with open(fresh, "wb", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC, mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextlib.contextmanager
def gone_if_failed(path: Path) -> Iterator[None]:
    """A file that is being made inside: a failure leaves none."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise an OSError inside as one of ours; `what` was being done ("make the volume ...")."""
    try:
        yield
    except OSError as error:
        raise translate(error, what) from error


def translate(error: OSError, what: str) -> AtollError:
    said = f"cannot {what}: {error.strerror or error}"
    path = f" of {error.filename}" if error.filename else ""
    if error.errno in _NO_ROOM:
        return Exhausted(said, hint=f"make room on the disk{path}")
    if error.errno in _NO_RIGHT:
        return Lacking(said, hint=f"check the owner and mode{path}")
    if error.errno == errno.ENOENT:
        return Absent(said)
    return Broken(said)


def copy_plain(source: Path, target: Path) -> None:
    """A new file with the content of a plain one, readable by its owner alone. Never through a symlink. Blocks."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file, open(target, "xb", opener=_private) as out:
        shutil.copyfileobj(file, out, 1 << 20)


def _private(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_CLOEXEC, 0o600)
