"""What is done inside a container: programs by liblxc's attach, files by its root as the kernel has it."""

import asyncio
import contextlib
import os
import re
import secrets
import signal
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from atoll.base.errors import Absent, AtollError, Exhausted, Invalid, Refused, Unreachable
from atoll.base.units import MiB
from atoll.host import beneath
from atoll.host.run import run
from atoll.instance.engine import Outcome
from atoll.instance.engines.container import tools
from atoll.instance.engines.container.guest import Guest

CHUNK = 256 << 10
MAX_OUTPUT, MAX_INPUT = 16 * MiB, 8 * MiB
"""Bytes of a program's output that are kept, of each stream, and of its input."""
_DRAIN = 0.5  # seconds to the end of output once the program itself has ended
_FAILED = re.compile(rb"lxc-attach: [^\n]*lxc_attach_run_command: \d+ ([^\n]*?) - Failed to exec[^\n]*\n?")
_NOISE = re.compile(rb"^lxc-attach: [0-9a-f-]{36}\.\d+: [^\n]*\n?", re.MULTILINE)
T = TypeVar("T")


async def execute(guest: Guest, argv: Sequence[str], *, input: bytes, env: Mapping[str, str]) -> Outcome:
    """Run a program to its end. Raises Absent (no such program), Refused (not executable, not running), Invalid."""
    if len(input) > MAX_INPUT:
        raise Invalid("the input is more than 8 MiB", hint="copy it into the guest as a file")
    guest.running()
    process = await asyncio.create_subprocess_exec(
        *tools.attach(guest.run, argv, env),
        stdin=asyncio.subprocess.PIPE if input else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=tools.ENV,
        start_new_session=True,
    )
    readers: list[asyncio.Task[tuple[bytes, bool]]] = []
    try:
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            readers.append(asyncio.create_task(_bounded(stream)))
        if process.stdin is not None:
            await _feed(process.stdin, input)
        code = await process.wait()
        await asyncio.wait(readers, timeout=_DRAIN)  # a child that it left behind may hold them open
        (out, more_out), (err, more_err) = ((r.result() if r.done() else (b"", True)) for r in readers)
    finally:
        for reader in readers:
            reader.cancel()
        if process.returncode is None:
            await end(process)
    return judged(argv[0], code, out, err, truncated=more_out or more_err)


async def _bounded(stream: asyncio.StreamReader) -> tuple[bytes, bool]:
    """All of it, or its beginning: the rest is read and thrown away, so that nobody waits for it."""
    kept, more = bytearray(), False
    while data := await stream.read(65536):
        room = MAX_OUTPUT - len(kept)
        kept += data[:room]
        more = more or len(data) > room
    return bytes(kept), more


async def _feed(stdin: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stdin.write(data)
        await stdin.drain()
    stdin.close()


def judged(program: str, code: int, out: bytes, err: bytes, *, truncated: bool = False) -> Outcome:
    """What liblxc's attach made of it. Raises Absent, Refused, Broken (it could not enter)."""
    if code in (126, 127) and (failed := _FAILED.search(err)):
        if code == 127:
            raise Absent(f"the guest has no program {program}")
        raise Refused(f"the guest may not execute {program}: {failed[1].decode(errors='replace')}")
    if code in (1, 255) and b"Failed to get attach context" in err:
        raise Refused("it is not running")
    ended = code - 128 if code > 128 and code - 128 in signal.valid_signals() else 0
    if code < 0:
        ended = -code
    return Outcome(code if code >= 0 else 128 - code, out, _NOISE.sub(b"", err), ended, truncated)


async def end(process: asyncio.subprocess.Process) -> None:
    """End a program and what attached it."""
    kill_inner(process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), 5)


def kill_inner(attacher: int, number: int) -> None:
    """A signal to the program that lxc-attach runs: its child."""
    with contextlib.suppress(OSError):
        for pid in Path(f"/proc/{attacher}/task/{attacher}/children").read_text().split():
            with contextlib.suppress(OSError):
                os.kill(int(pid), number)


# files


@contextlib.contextmanager
def root_of(guest: Guest) -> Iterator[int]:
    fd = os.open(f"/proc/{guest.running()}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


async def pull(guest: Guest, path: str) -> AsyncIterator[bytes]:
    """A file's content. Raises Absent, Refused (no plain file)."""

    def opened() -> int:
        with root_of(guest) as root:
            fd = beneath.opened(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Refused(f"{path} is no file")
        return fd

    fd = await _files(opened, path)
    try:
        while data := await _files(lambda: os.read(fd, CHUNK), path):
            yield data
    finally:
        os.close(fd)


async def push(guest: Guest, path: str, chunks: AsyncIterator[bytes], *, mode: int) -> int:
    """Write a file, which is the container's root's and whole or as it was. The bytes written."""
    assert guest.plan.container is not None
    owner, fresh, written = guest.plan.container.ids, f".atoll-{secrets.token_hex(8)}", 0

    def opened() -> tuple[int, int, str]:
        folder, name = beneath.split(path)
        with root_of(guest) as root:
            where = beneath.directory(root, folder)
            try:
                with contextlib.suppress(FileNotFoundError):
                    if stat.S_ISDIR(os.stat(name, dir_fd=where, follow_symlinks=False).st_mode):
                        raise IsADirectoryError(21, "Is a directory", path)
                fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=where)
            except BaseException:
                os.close(where)
                raise
        os.fchown(fd, owner, owner)
        os.fchmod(fd, mode)
        return where, fd, name

    where, fd, name = await _files(opened, path)
    try:
        async for chunk in chunks:
            written += await _files(lambda data=chunk: _write(fd, data), path)  # type: ignore[misc]
        os.rename(fresh, name, src_dir_fd=where, dst_dir_fd=where)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh, dir_fd=where)
        raise
    finally:
        os.close(fd)
        os.close(where)
    return written


def _write(fd: int, data: bytes) -> int:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
    return len(data)


async def _files(act: Callable[[], T], path: str) -> T:
    try:
        return await asyncio.to_thread(act)
    except FileNotFoundError as error:
        raise Absent(f"the guest has no {path}") from error
    except OSError as error:
        if error.errno in (28, 122):
            raise Exhausted(f"{path}: {error.strerror}") from error
        raise Refused(f"{path}: {error.strerror}") from error


# who and where


class _Address(msgspec.Struct, frozen=True):
    local: str = ""


class _Link(msgspec.Struct, frozen=True):
    address: str = ""
    addr_info: tuple[_Address, ...] = ()


async def addresses(guest: Guest) -> Mapping[str, tuple[str, ...]]:
    """By MAC, as its network namespace has them."""
    ran = await run(["nsenter", f"--net=/proc/{guest.running()}/ns/net", "ip", "-json", "address"], timeout=10)
    links = msgspec.json.decode(ran.stdout, type=tuple[_Link, ...])
    return {
        link.address.lower(): tuple(each.local for each in link.addr_info if each.local)
        for link in links
        if link.address and link.address != "00:00:00:00:00:00"
    }


async def user_of(guest: Guest, name: str) -> tuple[int, int, str]:
    """(uid, gid, home) of a user by its name or number, as the container's /etc/passwd has it. Raises Absent."""
    found = b""
    with contextlib.suppress(AtollError):
        async for chunk in pull(guest, "/etc/passwd"):
            found += chunk
            if len(found) > MiB:
                break
    for line in found.decode(errors="replace").splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and fields[2].isdigit() and fields[3].isdigit() and name in (fields[0], fields[2]):
            return int(fields[2]), int(fields[3]), fields[5]
    if name.isdigit() and int(name) < 65536:
        return int(name), int(name), "/"
    raise Absent(f"the guest has no user {name[:40]}", hint="cat /etc/passwd in it lists them", field="user")


async def within(timeout: float | None, work: Awaitable[T], what: str) -> T:
    try:
        async with asyncio.timeout(timeout):
            return await work
    except TimeoutError as error:
        raise Unreachable(f"{what} did not end within {timeout:g} s", hint="it was ended") from error
