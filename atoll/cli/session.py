"""This side of a program in a container: our terminal or our pipes, and our signals."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

from atoll.cli import terminal
from atoll.cli.context import connect
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Command, Ended, ExecSession

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def wants_terminal() -> bool:
    return bool(sys.stdin and sys.stdin.isatty() and sys.stdout.isatty())


def size() -> tuple[int, int]:
    columns, rows = shutil.get_terminal_size()
    return min(max(columns, 1), 1000), min(max(rows, 1), 1000)


def attach(settings: Settings, name: str, command: "Command", *, read: bool) -> "Ended":
    """Run it to its end. `read`: whether our standard input is its."""
    stdin = sys.stdin.fileno() if read and sys.stdin is not None else -1
    sys.stdout.flush()

    async def run() -> "Ended":
        async with connect(settings) as client, client.instances.session(name, command) as session:
            with _signals(session, as_terminal=command.terminal is not None):
                return await _link(session, stdin)

    with terminal.raw(stdin) if command.terminal and stdin >= 0 else contextlib.nullcontext():
        return asyncio.run(run())


async def _link(session: "ExecSession", stdin: int) -> "Ended":
    up = asyncio.create_task(_typed(session, stdin))
    try:
        while True:
            fd, data = await session.read()
            if not data and session.ended is not None:
                return session.ended
            _write(fd, data)
    finally:
        up.cancel()
        await asyncio.gather(up, return_exceptions=True)


async def _typed(session: "ExecSession", stdin: int) -> None:
    if stdin >= 0:
        async with contextlib.aclosing(terminal.keys(stdin)) as pressed:
            async for data in pressed:
                await session.write(data)
    await session.eof()


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:  # our terminal shares its modes with standard input
            continue


@contextlib.contextmanager
def _signals(session: "ExecSession", *, as_terminal: bool) -> Iterator[None]:
    """Ours are passed on; with a terminal also its new sizes. (Its ctrl-C is a key.)"""
    loop, tasks = asyncio.get_running_loop(), set()

    def tell(what: Callable[[], Awaitable[None]]) -> None:
        tasks.add(task := asyncio.ensure_future(what()))
        task.add_done_callback(tasks.discard)

    def passing(number: int) -> Callable[[], None]:
        return lambda: tell(lambda: session.signal(number))

    for number in PASSED_ON:
        loop.add_signal_handler(number, passing(number))
    if as_terminal:
        loop.add_signal_handler(signal.SIGWINCH, lambda: tell(lambda: session.resize(*size())))
    try:
        yield
    finally:
        for number in (*PASSED_ON, signal.SIGWINCH):
            loop.remove_signal_handler(number)
