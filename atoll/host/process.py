"""Processes that outlive us: who one is, when it ends, how it ended.

A pid may be reused; a pid with its start time may not. A pidfd, once checked against both, stays true.
"""

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from atoll.base.errors import Broken, Exhausted, Lacking

_PROC = Path("/proc")
_STATE, _START = 0, 19
"""Places of the fields after the command's name in /proc/pid/stat (proc(5): fields 3 and 22)."""


def age(started: int) -> float:
    """Seconds since a `start_time`."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def start_time(pid: int) -> int | None:
    """When it started, in clock ticks after boot; None where it is absent or a zombie."""
    try:
        fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] in (b"Z", b"X") else int(fields[_START])


def command_line(pid: int) -> tuple[str, ...]:
    """Its arguments; () where it is absent, a zombie or a kernel thread."""
    try:
        text = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(part.decode(errors="replace") for part in text.removesuffix(b"\0").split(b"\0") if text)


def parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int((_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[1])
    return 0


def pids() -> Iterator[int]:
    """Every process of the host, as it is now."""
    return (int(name) for name in os.listdir(_PROC) if name.isdigit())


def boot_id() -> str:
    """A uuid that the kernel draws at each boot of the host."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def cpu_seconds(pid: int) -> float:
    """User and system time of all its threads; 0 where it is absent."""
    try:
        fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes of memory it holds now; 0 where it is absent."""
    try:
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


class Process:
    """A process by its pidfd: signals reach it or nobody, and its end is an event. Works for any process."""

    def __init__(self, pid: int, started: int, fd: int) -> None:
        self.pid, self.started = pid, started
        self._fd = fd
        self._status: int | None = None
        self._gone: asyncio.Future[None] | None = None

    @classmethod
    def open(cls, pid: int, *, started: int | None = None) -> "Process | None":
        """None where there is no such process now, or the pid is another's by now."""
        try:
            fd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno in (errno.ESRCH, errno.EINVAL):
                return None
            raise Broken(f"process {pid} cannot be opened: {error.strerror}") from error
        now = start_time(pid)  # after the open: from here on the pid cannot be reused unseen
        if now is None or (started is not None and now != started):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
            os.close(fd)
            return None
        return cls(pid, now, fd)

    @property
    def status(self) -> int | None:
        """Its exit status, or minus the signal that ended it. None: it runs, or was not our child."""
        return self._status

    def signal(self, number: signal.Signals) -> None:
        """An ended process is none to signal: that is success."""
        if self._fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    def watch(self) -> asyncio.Future[None]:
        """Done when the process has ended, and is reaped where it is our child."""
        if self._gone is None:
            loop = asyncio.get_running_loop()
            self._gone = loop.create_future()
            loop.add_reader(self._fd, self._ended)
        return self._gone

    async def wait(self, timeout: float) -> bool:
        """Whether it ended within `timeout` seconds."""
        done, _ = await asyncio.wait({self.watch()}, timeout=timeout)
        return bool(done)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        with contextlib.suppress(ChildProcessError):
            if result := os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG):
                exited = result.si_code == os.CLD_EXITED
                self._status = result.si_status if exited else -result.si_status
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def close(self) -> None:
        """Let go of it; it goes on."""
        if self._fd >= 0:
            if self._gone is not None:
                with contextlib.suppress(RuntimeError):  # no loop is left where a test tears down late
                    asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def spawn(argv: Sequence[str], *, cwd: Path, fds: Sequence[int], log: IO[bytes], env: dict[str, str]) -> Process:
    """Start a program that outlives us: a session of its own, no input, all output into `log`.

    It gets exactly `fds` beside. Raises Lacking (no such program), Exhausted, Broken.
    """
    try:
        child = subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=tuple(fds),
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise Lacking(f"{error.filename} is missing") from error
    except OSError as error:
        kind = Exhausted if error.errno in (errno.EAGAIN, errno.ENOMEM) else Broken
        raise kind(f"{argv[0]} could not be started: {error.strerror}") from error
    child.returncode = 0  # the pidfd tells its end and reaps it: without this, Popen would do so behind our back
    process = Process.open(child.pid)
    if process is None:
        raise Broken(f"{argv[0]} ended at once")
    return process
