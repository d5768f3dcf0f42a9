"""Programs in a container that somebody talks to while they run: on a terminal, or by pipes."""

import asyncio
import contextlib
import os
from collections.abc import Sequence

from atoll.base.errors import Unreachable
from atoll.host.pty import Pty
from atoll.instance.engine import Command, Ended
from atoll.instance.engines.container import inside, tools
from atoll.instance.engines.container.guest import Guest

_CHUNK = 64 << 10
_AHEAD = 16
"""Chunks read before somebody takes them: a program that says more waits."""
_DRAIN = 0.5  # seconds of silence once the program has ended: what it left behind may hold its output open
_SHELL = (
    'for shell in "$1" /bin/bash /bin/sh; do [ -x "$shell" ] && exec "$shell" -l; done; echo "no shell"; exit 127'
)


class Terminal:
    """`read` gives everything as its standard output."""

    def __init__(self, pty: Pty) -> None:
        self._pty = pty

    async def read(self) -> tuple[int, bytes]:
        return 1, await self._pty.read()

    async def write(self, data: bytes) -> None:
        await self._pty.write(data)

    async def eof(self) -> None:
        await self._pty.write(b"\x04")

    def resize(self, columns: int, rows: int) -> None:
        self._pty.resize(columns, rows)

    def signal(self, number: int) -> None:
        inside.kill_inner(self._pty.pid, number)

    async def ended(self) -> Ended:
        while not await self._pty.ended(60):
            pass
        return outcome(self._pty.code or 0)

    async def close(self) -> None:
        if self._pty.code is None:
            inside.kill_inner(self._pty.pid, 1)
        await self._pty.close()


class Pipes:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._said: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue(_AHEAD)
        streams = ((1, process.stdout), (2, process.stderr))
        self._readers = [asyncio.create_task(self._follow(fd, stream)) for fd, stream in streams if stream]
        self._open = len(self._readers)
        self._heard = 0
        self._ending = asyncio.create_task(self._end())

    async def _follow(self, fd: int, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(_CHUNK):
            self._heard += len(data)
            await self._said.put((fd, data))
        self._open -= 1
        if not self._open:
            await self._said.put((1, b""))

    async def _end(self) -> None:
        """Its output ends with the program, once all that it said is told."""
        await self._process.wait()
        while self._open:
            heard = self._heard
            await asyncio.sleep(_DRAIN)
            if heard == self._heard and self._said.empty():
                for reader in self._readers:
                    reader.cancel()
                await self._said.put((1, b""))
                return

    async def read(self) -> tuple[int, bytes]:
        return await self._said.get()

    async def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Unreachable("the program reads no more") from error

    async def eof(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def resize(self, columns: int, rows: int) -> None:
        """It has no terminal."""

    def signal(self, number: int) -> None:
        inside.kill_inner(self._process.pid, number)

    async def ended(self) -> Ended:
        return outcome(await self._process.wait())

    async def close(self) -> None:
        for reader in (*self._readers, self._ending):
            reader.cancel()
        if self._process.returncode is None:
            await inside.end(self._process)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


def outcome(code: int) -> Ended:
    """liblxc's attach ends as the program did; 128 and more where a signal ended it."""
    if code < 0:
        return Ended(128 - code, -code)
    return Ended(code, code - 128 if 128 < code < 128 + 65 else 0)


async def line_of(guest: Guest, command: Command) -> list[str]:
    """Raises Absent (no such user)."""
    uid, gid, home = await inside.user_of(guest, command.user) if command.user else (0, 0, "/root")
    own = {"HOME": home, "TERM": command.term} if command.term else {"HOME": home}
    if command.user:
        own["USER"] = command.user
    env = {**own, **command.env}
    return tools.attach(guest.run, command.argv, env, uid=uid, gid=gid, directory=command.directory)


async def open_session(guest: Guest, command: Command) -> Terminal | Pipes:
    guest.running()
    line = await line_of(guest, command)
    if command.terminal is not None:
        columns, rows = command.terminal
        return Terminal(await Pty.open(line, columns=columns, rows=rows))
    return Pipes(
        await asyncio.create_subprocess_exec(
            *line,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=tools.ENV,
            start_new_session=True,
        )
    )


def login(shell: str = "") -> Sequence[str]:
    """A login shell: the first that is there."""
    return ("/bin/sh", "-c", _SHELL, "login", shell or os.devnull)
