"""Run a command line in a pseudo terminal, as a person would sit before it."""

import asyncio
import os
import pty
import signal
import termios
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self


class Terminal:
    """A program on a pseudo terminal of 80 columns. `seen`: all it has written so far.

    `settings()` are the terminal's modes, to see that they are as they were before.
    """

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
        self._argv, self._env = list(argv), dict(os.environ if env is None else env)
        self.seen = b""
        self._main = self._side = -1
        self._process: asyncio.subprocess.Process | None = None
        self._arrived = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._main, self._side = pty.openpty()
        termios.tcsetwinsize(self._side, (24, 80))
        self._process = await asyncio.create_subprocess_exec(
            *self._argv,
            stdin=self._side,
            stdout=self._side,
            stderr=self._side,
            env={"TERM": "xterm", **self._env},
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.set_blocking(self._main, False)
        asyncio.get_running_loop().add_reader(self._main, self._read)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._main)
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        os.close(self._main)
        os.close(self._side)

    def _read(self) -> None:
        try:
            self.seen += os.read(self._main, 65536)
        except OSError:
            asyncio.get_running_loop().remove_reader(self._main)
        self._arrived.set()

    @property
    def text(self) -> str:
        return self.seen.decode(errors="replace").replace("\r\n", "\n")

    def settings(self) -> list[object]:
        return list(termios.tcgetattr(self._side))

    def type(self, text: str | bytes) -> None:
        os.write(self._main, text.encode() if isinstance(text, str) else text)

    def interrupt(self) -> None:
        self.type(b"\x03")

    def kill(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def until(self, text: str, timeout: float = 30.0) -> None:
        """Wait until the program has written `text`."""
        async with asyncio.timeout(timeout):
            while text not in self.text:
                self._arrived.clear()
                await self._arrived.wait()

    async def ended(self, timeout: float = 30.0) -> int:
        """The exit code, once it has ended."""
        assert self._process is not None
        async with asyncio.timeout(timeout):
            return await self._process.wait()


def _take_terminal() -> None:
    """In the child, before exec: its session's controlling terminal is the pseudo terminal on stdin."""
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
