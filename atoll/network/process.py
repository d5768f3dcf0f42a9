"""A helper daemon that outlives us: found again, and ended without ever hitting another process.

A pidfd names one process for good: once it is open and the command line read through it is the expected one,
the number cannot come to mean another.
"""

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

from atoll.base.errors import Unreachable

_PROC = Path("/proc")
_TERM, _KILL = 5.0, 5.0  # seconds


class Process:
    """A running process, held by a pidfd until `close`."""

    def __init__(self, pid: int, pidfd: int, command: list[str]) -> None:
        self.pid = pid
        self.command = command
        self._pidfd = pidfd

    def send(self, sig: signal.Signals) -> None:
        """Nothing happens where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, sig)

    async def end(self) -> None:
        """Ask it to end, make it end. Raises Unreachable where it still has not."""
        for sig, patience in ((signal.SIGTERM, _TERM), (signal.SIGKILL, _KILL)):
            self.send(sig)
            if await self._ended(patience):
                return
        raise Unreachable(f"process {self.pid} does not end", hint=f"ps -fp {self.pid}")

    def close(self) -> None:
        os.close(self._pidfd)

    async def _ended(self, timeout: float) -> bool:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._pidfd, ended.set)
        try:
            async with asyncio.timeout(timeout):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._pidfd)
        return True


def open_process(pid: int) -> Process | None:
    """None where there is none, or only a zombie."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        command = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    except OSError:
        command = []
    # Readable: it has ended, so that the command line may have been another's.
    if command and not select.select([pidfd], [], [], 0)[0]:
        return Process(pid, pidfd, command)
    os.close(pidfd)
    return None


def find_process(pid_file: Path, wanted: Callable[[list[str]], bool]) -> Process | None:
    """The process that the file names, if its command line is a wanted one; where the file is gone or stale,
    any process whose command line is."""
    with contextlib.suppress(OSError, ValueError):
        if found := _check(int(pid_file.read_text()), wanted):
            return found
    numbers = (int(entry) for entry in os.listdir(_PROC) if entry.isdecimal())
    return next((found for pid in numbers if (found := _check(pid, wanted))), None)


def same_namespace(pid: int) -> bool:
    """Whether it is in our network namespace."""
    try:
        return os.readlink(_PROC / str(pid) / "ns/net") == os.readlink(_PROC / "thread-self/ns/net")
    except OSError:
        return False


def _check(pid: int, wanted: Callable[[list[str]], bool]) -> Process | None:
    process = open_process(pid)
    if process is None or wanted(process.command):
        return process
    process.close()
    return None
