"""Unix sockets at paths of any length.

A unix address holds 107 bytes. A longer path is reached through its directory's descriptor in /proc, which also
keeps the address true while the directory is renamed.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from atoll.base.errors import Absent, Broken, Exhausted, Lacking, Unreachable

_LONGEST = 107  # bytes of sun_path, less its NUL (unix(7))


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """An address for `path` that is short enough. It is valid inside the block only."""
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{parent}/{path.name}"
    finally:
        os.close(parent)


def listen(path: Path, *, backlog: int = 8) -> socket.socket:
    """Listen at `path`, in the place of whatever was there. Raises Exhausted, Lacking, Broken."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with address(path) as short:
            sock.bind(short)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        kind = {28: Exhausted, 13: Lacking, 30: Lacking}.get(error.errno or 0, Broken)
        raise kind(f"cannot listen on {path}: {error.strerror}") from error
    return sock


async def connect(path: Path, *, timeout: float = 5.0) -> socket.socket:
    """A non-blocking connection. A full backlog is waited for until the deadline.

    Raises Absent (nobody listens there), Unreachable (deadline), Broken.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    with address(path) as short:
                        sock.connect(short)
                    return sock
                except BlockingIOError:  # unix sockets give EAGAIN, and no event tells when there is room
                    await asyncio.sleep(0.02)
    except TimeoutError as error:
        sock.close()
        raise Unreachable(f"{path.name} took no connection within {timeout:g} s") from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        sock.close()
        raise Absent(f"nobody listens on {path}") from error
    except OSError as error:
        sock.close()
        raise Broken(f"cannot connect to {path}: {error.strerror}") from error
    except BaseException:
        sock.close()
        raise
