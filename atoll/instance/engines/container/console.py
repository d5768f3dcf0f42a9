"""A container's console for any number of people, over the one connection that liblxc gives out.

It is connected (by lxc-console) while somebody looks. What was said before comes from the console's log.
"""

import asyncio
from typing import cast

from atoll.base.errors import Refused
from atoll.host.pty import Pty
from atoll.instance.engines.console import RECENT, Console
from atoll.instance.engines.container import tools
from atoll.instance.engines.container.rundir import RunDir
from atoll.instance.engines.kept import tail

COLUMNS, ROWS = 80, 24
_TRIES, _SETTLES_IN = 40, 0.05


class _Ends:
    """A terminal in the words of asyncio's streams."""

    def __init__(self, pty: Pty) -> None:
        self._pty = pty
        self._waiting = b""
        self._closing: asyncio.Task[None] | None = None

    async def read(self, _: int) -> bytes:
        return await self._pty.read()

    def write(self, data: bytes) -> None:
        self._waiting += data

    async def drain(self) -> None:
        data, self._waiting = self._waiting, b""
        await self._pty.write(data)

    def close(self) -> None:
        self._closing = asyncio.ensure_future(self._pty.close())


class ContainerConsole(Console):
    def __init__(self, run: RunDir, name: str) -> None:
        super().__init__(run.path, run.console, name)
        self._run = run

    async def _connect(self) -> None:
        for _ in range(_TRIES):
            pty = await Pty.open(tools.console(self._run), columns=COLUMNS, rows=ROWS)
            if not await pty.ended(_SETTLES_IN):
                break
            await pty.close()  # liblxc calls it running a moment after its first program runs
        else:
            raise Refused(f"the console of {self._name} is not to be had", hint="somebody has it by lxc-console?")
        ends = _Ends(pty)
        self._writer = cast(asyncio.StreamWriter, ends)
        self._recent = bytearray(tail(self._log, RECENT))
        self._pump = asyncio.create_task(
            self._follow(cast(asyncio.StreamReader, ends)), name=f"console of {self._name}"
        )
