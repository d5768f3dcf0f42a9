"""A helper daemon that outlives us: found again, and ended without ever hitting another process."""

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

from atoll.base.errors import Unreachable
from atoll.host.process import Process, command_line, pids

_TERM, _KILL = 5.0, 5.0  # seconds
Wanted = Callable[[tuple[str, ...]], bool]


def find_daemon(pid_file: Path, wanted: Wanted) -> Process | None:
    """The process that the file names, if its command line is a wanted one; where the file is gone or stale,
    any process whose command line is."""
    with contextlib.suppress(OSError, ValueError):
        if found := _open(int(pid_file.read_text()), wanted):
            return found
    return next((found for pid in pids() if (found := _open(pid, wanted))), None)


async def end(process: Process) -> None:
    """Ask it to end, then make it end. Raises Unreachable where it still has not."""
    for number, patience in ((signal.SIGTERM, _TERM), (signal.SIGKILL, _KILL)):
        process.signal(number)
        if await process.wait(patience):
            return
    raise Unreachable(f"process {process.pid} does not end", hint=f"ps -fp {process.pid}")


def same_namespace(pid: int) -> bool:
    """Whether it is in our network namespace."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/thread-self/ns/net")
    except OSError:
        return False


def _open(pid: int, wanted: Wanted) -> Process | None:
    if not wanted(command_line(pid)):
        return None
    process = Process.open(pid)
    # Read again now that the pidfd is open: before, the pid may have come to mean another process.
    if process is None or wanted(command_line(pid)):
        return process
    process.close()
    return None
