"""This side of a console: a terminal in raw mode that is always put back, or plain pipes for scripts."""

import asyncio
import os
import sys
import termios
import tty
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

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
    try:
        loop.add_reader(fd, arrived.set)
    except PermissionError:  # a plain file: it is always ready, and epoll does not take it
        while data := os.read(fd, CHUNK):
            yield data
        return
    try:
        while True:
            await arrived.wait()
            arrived.clear()
            try:
                data = os.read(fd, CHUNK)
            except OSError:
                return
            if not data:
                return
            yield data
    finally:
        loop.remove_reader(fd)


def show(data: bytes) -> None:
    """What the guest wrote, as it is."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
