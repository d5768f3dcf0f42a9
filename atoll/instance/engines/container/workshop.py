"""The daemon's end of the helper process: started at first need, started again where it was killed."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from typing import Any

import msgspec

from atoll.base.errors import BY_CODE, Absent, AtollError, Broken, Refused, Unreachable
from atoll.host.process import Process, start_time
from atoll.instance.engines.container.helper import MESSAGE, Order

_ANSWER_IN = 30.0  # seconds to fork; a busy host is slow
_MOUNT_IN = 60.0


class Workshop:
    """One order is handed over at a time; what comes of them is awaited side by side."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None
        self._turn = asyncio.Lock()

    async def do(self, order: Order) -> Process | None:
        """Returns once the program runs, with it, or the mount is made. None: it ended at once.

        Raises Absent, Lacking, Refused (busy), Broken, Unreachable."""
        heard, said = os.pipe()
        try:
            async with self._turn:
                try:
                    process = await self._hand_over(order, said)
                except (OSError, EOFError):  # it was killed: a new one, once
                    self.close()
                    process = await self._hand_over(order, said)
        except (OSError, EOFError) as error:
            os.close(heard)
            raise Broken(f"the helper of containers cannot be reached: {error}") from error
        except BaseException:
            os.close(heard)
            raise
        finally:
            os.close(said)
        try:
            complaint = await _all_of(heard)
        except BaseException:
            if process is not None:
                process.close()
            raise
        if complaint:
            if process is not None:
                process.close()
            raise _translated(msgspec.json.decode(complaint))
        return process

    async def _hand_over(self, order: Order, report: int) -> Process | None:
        orders = self._open()
        loop = asyncio.get_running_loop()
        socket.send_fds(orders, [msgspec.json.encode(order)], [report])
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(orders, _settle, ready)
        try:
            async with asyncio.timeout(_ANSWER_IN):
                await ready
        except TimeoutError as error:
            self.close()
            raise Unreachable("the helper of containers does not answer") from error
        finally:
            loop.remove_reader(orders)
        data, fds, _, _ = socket.recv_fds(orders, MESSAGE, 1)
        if not data:
            raise EOFError
        answer = msgspec.json.decode(data)
        if "pid" not in answer:
            raise Broken(f"the helper of containers failed: {answer.get('message', '')}")
        started = start_time(answer["pid"])
        if started is None:
            os.close(fds[0])
            return None
        return Process(answer["pid"], started, fds[0])

    def _open(self) -> socket.socket:
        if self._orders is None:
            ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE * 2)
            argv = [sys.executable, "-m", "atoll.instance.engines.container.helper", str(its.fileno())]
            try:
                self._process = subprocess.Popen(
                    argv,
                    pass_fds=[its.fileno()],
                    cwd="/",
                    env={"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PATH": os.defpath},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
            finally:
                its.close()
            self._orders = ours
        return self._orders

    def open(self) -> None:
        """Have it ready before it is needed."""
        self._open()

    def close(self) -> None:
        """It ends; what it started goes on."""
        if self._orders is not None:
            self._orders.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            if self._process.returncode is None:
                self._process.kill()
                self._process.wait()
        self._orders = self._process = None


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _all_of(fd: int) -> bytes:
    """Everything that comes on a pipe, to its end. Closes it."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    found, more = b"", asyncio.Event()
    loop.add_reader(fd, more.set)
    try:
        async with asyncio.timeout(_MOUNT_IN):
            while True:
                await more.wait()
                more.clear()
                with contextlib.suppress(BlockingIOError):
                    data = os.read(fd, 65536)
                    if not data:
                        return found
                    found += data
    except TimeoutError as error:
        raise Unreachable("a container's file systems could not be mounted in time") from error
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _translated(said: dict[str, Any]) -> AtollError:
    message, number = str(said.get("message", "")), said.get("errno")
    if kind := BY_CODE.get(said.get("code", "")):
        return kind(message, hint=said.get("hint", ""))
    if number == 2:
        return Absent(message)
    if number == 16:
        return Refused(f"{message}: something in it is in use", hint="leave it and close its files first")
    return Broken(f"a container's file systems: {message}")
