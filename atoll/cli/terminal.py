"""This side of a console: a terminal in raw mode that is always put back, or plain pipes for scripts."""

import asyncio
import os
import stat
import sys
import termios
import tty
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
CHUNK = 65536


@contextmanager
def raw(fd: int) -> Iterator[bool]:
    """Keys as they are pressed, ctrl-C included; whether `fd` is a terminal at all. The modes come back whatever
    happens."""
    if not os.isatty(fd):
        yield False
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield True
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


async def keys(fd: int) -> AsyncGenerator[bytes]:
    """What arrives on `fd`, until its end."""
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()

    def ready() -> None:
        loop.remove_reader(fd)  # asked for again once this is read: a second call would make us read, and block
        arrived.set()

    try:
        while True:
            try:
                loop.add_reader(fd, ready)
                await arrived.wait()
                arrived.clear()
            except PermissionError:  # a plain file: it is always ready, and epoll does not take it
                await asyncio.sleep(0)
            try:
                data = os.read(fd, CHUNK)
            except OSError:
                return
            if not data:
                return
            yield data
    finally:
        loop.remove_reader(fd)


async def while_read(work: Awaitable[T]) -> T:
    """`work`, ended by BrokenPipeError once nobody reads our output any more (`atoll events | head -1`), also
    while there is nothing to write."""
    if not stat.S_ISFIFO(os.fstat(1).st_mode):
        return await work
    loop = asyncio.get_running_loop()
    left = asyncio.Event()
    loop.add_reader(1, left.set)  # a pipe's writing end is never readable: only its error wakes us
    task, gone = asyncio.ensure_future(work), asyncio.create_task(left.wait())
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise BrokenPipeError
        return task.result()
    finally:
        loop.remove_reader(1)
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def show(data: bytes) -> None:
    """What the guest wrote, as it is."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
