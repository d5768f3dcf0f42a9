"""Short-lived tools on files that strangers made: as `run`, in a cell.

Each run has a user id of its own that owns nothing, no capability, no network, no System V IPC, and bounds of
memory, processor time, open files and written bytes. The file comes as an open descriptor: the tool opens it as
/proc/self/fd/N and can reach nothing else of the state directory. An ordinary user's daemon cannot change its user
id: there the cell is a user namespace where the kernel allows one, and the bounds.
"""

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import AsyncGenerator, Iterator, Sequence
from functools import cache
from pathlib import Path

import msgspec

from atoll.base.errors import AtollError, Broken
from atoll.base.units import GiB, MiB, TiB
from atoll.host import files
from atoll.host.run import Ran, clean_env, find, run

UIDS = range(1_890_000_000, 1_899_999_999)
"""Beside those of instances (instance/uids.py): above login tools', containers' and DynamicUser's."""
_CHUNK = MiB


class Bounds(msgspec.Struct, frozen=True):
    """`memory`, `written`: bytes of address space and of any one file; `cpu`: seconds of processor time."""

    memory: int = GiB
    cpu: int = 60
    written: int = 0


LOOK = Bounds()
CHANGE = Bounds(written=64 * TiB)


async def confined(
    argv: Sequence[str], *, fds: Sequence[int] = (), uid: int = 0, timeout: float = 60.0, bounds: Bounds = LOOK
) -> Ran:
    """Run a program to its end in a cell; its exit code is the caller's to judge. `fds`: descriptors that it gets,
    under their numbers. Raises Lacking, Broken (too much output) and Unreachable, as `run` does.
    """
    cell = await _cell(uid or new_uid(), bounds)
    return await run(argv, within=cell, fds=fds, timeout=timeout, check=False)


def new_uid() -> int:
    return secrets.choice(UIDS)


def name_of(fd: int) -> str:
    """How the tool names the file that it was given."""
    return f"/proc/self/fd/{fd}"


@contextlib.contextmanager
def lent(path: Path, uid: int, *, write: bool = False) -> Iterator[int]:
    """A descriptor of a file that `uid` may open anew while this lasts. Never through a symlink."""
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW
    with files.translated(f"open {path}"):
        fd = os.open(path, flags)
    try:
        was = os.fstat(fd)
        readable = bool(was.st_mode & 0o004) and not write
        if os.geteuid() != 0 or readable:
            yield fd
            return
        os.fchown(fd, uid, -1)
        try:
            yield fd
        finally:
            os.fchown(fd, was.st_uid, -1)
    finally:
        os.close(fd)


async def command(argv: Sequence[str], *, uid: int = 0, bounds: Bounds = LOOK) -> tuple[str, ...]:
    """The whole command line that runs a program in a cell, for who starts it otherwise. Raises Lacking."""
    return (*await _cell(uid or new_uid(), bounds), str(find(argv[0])), *argv[1:])


async def piped(argv: Sequence[str], source: int, *, bounds: Bounds, timeout: float) -> AsyncGenerator[bytes, None]:
    """What a program in a cell prints that reads the open file `source`, chunk by chunk.

    Raises Broken where it fails, TimeoutError at the deadline. Leaving the iteration early ends the program.
    """
    process = await asyncio.create_subprocess_exec(
        *await command(argv, bounds=bounds),
        stdin=source,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_env(),
        start_new_session=True,
        limit=4 * MiB,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(timeout):
            while chunk := await process.stdout.read(_CHUNK):
                yield chunk
            said = (await process.stderr.read(4096)).decode(errors="replace").strip()
            if await process.wait():
                raise Broken(f"{argv[0]}: {said[-300:] or f'exit code {process.returncode}'}")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _cell(uid: int, bounds: Bounds) -> tuple[str, ...]:
    limits = (
        f"--as={bounds.memory}", f"--cpu={bounds.cpu}", f"--fsize={bounds.written}",
        "--nofile=64", "--core=0", "--memlock=0",
    )  # fmt: skip
    drop = ("--no-new-privs", "--pdeathsig", "KILL")
    own: tuple[str, ...] = ()
    if os.geteuid() == 0:
        own = (f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
        walls: tuple[str, ...] = ("unshare", "--net", "--ipc", "--uts", "--")
    else:
        walls = ("unshare", "--user", "--net", "--ipc", "--uts", "--") if await _user_namespaces() else ()
    return (_tool("prlimit"), *limits, "--", *_found(walls), _tool("setpriv"), *own, *drop, "--")


@cache
def _tool(name: str) -> str:
    return str(find(name))


def _found(walls: tuple[str, ...]) -> tuple[str, ...]:
    return (_tool(walls[0]), *walls[1:]) if walls else ()


_namespaces: list[bool] = []


async def _user_namespaces() -> bool:
    """Whether an ordinary user may have them here: some kernels and distributions say no."""
    if not _namespaces:
        try:
            ran = await run(("unshare", "--user", "--net", "--ipc", "--uts", "--", "true"), check=False)
            _namespaces.append(ran.code == 0)
        except AtollError:
            _namespaces.append(False)
    return _namespaces[0]
