"""Which process listens on a unix socket, and a hold on it that cannot come to mean another process."""

import contextlib
import os
import select
import signal
import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Process:
    """`fd` is a pidfd: readable once the process has ended."""

    pid: int
    fd: int

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        os.close(self.fd)

    def signal(self, number: signal.Signals) -> None:
        """Raises PermissionError. A process that has ended is success."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.fd, number)

    @property
    def ended(self) -> bool:
        return bool(select.select([self.fd], [], [], 0)[0])


def owner_of(path: str) -> Process | None:
    """The process that listens on the unix socket `path`, or None where nobody does.

    The kernel itself tells who (SO_PEERCRED), so a stale file or a reused pid cannot mislead. Asked twice, with
    the pidfd opened in between: the same answer means that the pidfd is that process.
    """
    pid = _listener(path)
    if pid is None:
        return None
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if _listener(path) != pid:
        os.close(fd)
        return None
    return Process(pid, fd)


def _listener(path: str) -> int | None:
    """Paths longer than a socket address may be are reached through their directory."""
    try:
        folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(5)
            asking.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
            pid: int = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            return pid or None
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    finally:
        os.close(folder)
