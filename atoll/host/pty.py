"""A program on a terminal of its own, for as long as somebody looks."""

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Sequence

from atoll.base.errors import Broken, Unreachable
from atoll.host.run import clean_env, find

_READ = 64 << 10
_END_IN = 3.0


class Pty:
    """`read` returns b"" once the program has ended and all it said was read."""

    def __init__(self, process: asyncio.subprocess.Process, fd: int) -> None:
        self._process, self._fd = process, fd
        self._readable = asyncio.Event()
        asyncio.get_running_loop().add_reader(fd, self._readable.set)

    @classmethod
    async def open(cls, argv: Sequence[str], *, columns: int, rows: int) -> "Pty":
        """Raises Lacking (no such program), Broken."""
        command = [str(find(argv[0])), *argv[1:]]
        own, other = os.openpty()
        try:
            _size(own, columns, rows)
            os.set_blocking(own, False)
            # The terminal becomes the session's own. Of a session that begins here setsid would fork.
            setsid = str(find("setsid"))
            process = await asyncio.create_subprocess_exec(
                setsid,
                "--ctty",
                *command,
                stdin=other,
                stdout=other,
                stderr=other,
                env=clean_env({"TERM": "xterm-256color"}),
            )
        except OSError as error:
            os.close(own)
            raise Broken(f"{argv[0]} could not be started: {error}") from error
        except BaseException:
            os.close(own)
            raise
        finally:
            os.close(other)
        return cls(process, own)

    async def read(self) -> bytes:
        while True:
            self._readable.clear()
            try:
                return os.read(self._fd, _READ)
            except BlockingIOError:
                await self._readable.wait()
            except OSError:  # EIO: nobody has the other end open any more
                return b""

    async def write(self, data: bytes) -> None:
        """Raises Unreachable once it has ended."""
        left = memoryview(data)
        try:
            while left:
                with contextlib.suppress(BlockingIOError):
                    left = left[os.write(self._fd, left) :]
                    continue
                await asyncio.sleep(0.02)
        except OSError as error:
            raise Unreachable("the session has ended") from error

    def resize(self, columns: int, rows: int) -> None:
        with contextlib.suppress(OSError):
            _size(self._fd, columns, rows)

    async def ended(self, timeout: float) -> bool:
        """Whether the program ended within `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), timeout)
        return self._process.returncode is not None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit status, or minus the signal that ended it. None: it runs."""
        return self._process.returncode

    async def close(self) -> None:
        """End it, and whatever runs on its terminal. Once is enough; twice does no harm."""
        if self._fd < 0:
            return
        asyncio.get_running_loop().remove_reader(self._fd)
        fd, self._fd = self._fd, -1
        os.close(fd)  # hangs up
        for number in (signal.SIGHUP, signal.SIGKILL):
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), _END_IN)


def _size(fd: int, columns: int, rows: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
