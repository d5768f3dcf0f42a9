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

from atoll.base.errors import Broken, Denied


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
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(5)
            asking.connect(path)
            pid: int = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            return pid or None
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return None
    except PermissionError as error:
        raise Denied(f"no right to use the socket {path}", hint="be the daemon's user or root") from error
    except OSError as error:  # a path longer than a socket's address may be; a queue that stays full
        raise Broken(f"{path}: {error}", hint="is the state directory right? --state DIR") from error
