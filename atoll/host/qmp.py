"""The door to QMP: every command has a deadline, and every failure is one of ours. Wraps qemu.qmp."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, EventListener, ExecuteError, Message, QMPClient, QMPError

from atoll.base.errors import Absent, AtollError, Broken, Unreachable
from atoll.host import sockets

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # what it would log is raised, and told once by us

Event = Mapping[str, Any]
TIMEOUT = 20.0
"""Seconds for a command. QEMU answers in milliseconds, but its main loop may wait for a slow disk."""


class _Teller(EventListener):
    """Tells each event as it is read, so that all that came before the end are told before the end."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        super().__init__()
        self._tell = tell

    async def put(self, event: Message) -> None:
        self._tell(event)


class Qmp:
    """One connection to a running QEMU. `lost` is done once it is gone, by whichever end."""

    def __init__(self, client: QMPClient, name: str, sock: socket.socket) -> None:
        self._client, self._name, self._sock = client, name, sock
        self._handing = asyncio.Lock()
        self.lost = asyncio.create_task(self._watch(), name=f"qmp of {name}")

    @classmethod
    async def connect(
        cls, path: Path, name: str, on_event: Callable[[Event], None], *, timeout: float = TIMEOUT
    ) -> "Qmp":
        """Raises Absent (nobody listens there), Unreachable (silent), Broken (it hung up or is no QMP)."""
        client = QMPClient(name)
        client.register_listener(_Teller(on_event))
        sock = await sockets.connect(path, timeout=timeout)
        own = sock.dup()  # the client's is its transport's alone
        connecting = asyncio.create_task(client.connect(sock), name=f"qmp connection to {name}")
        try:
            await asyncio.wait({connecting}, timeout=timeout)
            if not connecting.done():
                raise Unreachable(f"{name}: QEMU did not answer within {timeout:g} s")
            await connecting
        except (ConnectError, QMPError, OSError, EOFError) as error:
            raise Broken(f"{name}: QEMU hung up: {error}") from error
        finally:
            if not connecting.done():  # cancelled in the middle the client would lose its transport: let it end
                sock.shutdown(socket.SHUT_RDWR)
                await asyncio.wait({connecting}, timeout=5)
            if connecting.cancelled() or connecting.exception() is not None:
                sock.close()
                own.close()
        return cls(client, name, own)

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float = TIMEOUT
    ) -> Any:
        """Raises Broken (QEMU said no), Unreachable (the outcome is unknown)."""
        try:
            async with asyncio.timeout(timeout):
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            kind: type[AtollError] = Absent if error.error_class == "DeviceNotFound" else Broken
            raise kind(f"{self._name}: QEMU refused {command}: {error}") from error
        except TimeoutError as error:
            raise Unreachable(f"{self._name}: QEMU did not answer {command} within {timeout:g} s") from error
        except (QMPError, OSError, EOFError, asyncio.InvalidStateError) as error:
            raise Unreachable(f"{self._name}: QEMU hung up during {command}") from error

    async def add_fd(self, fd: int) -> int:
        """Hand over an open file: the number of its set, so that /dev/fdset/NUMBER is its name there. Raises as
        `execute`."""
        return int((await self._hand_over(fd, "add-fd"))["fdset-id"])

    async def send_fd(self, name: str, fd: int) -> None:
        """Let QEMU have a descriptor of ours under `name`. Raises as `execute`."""
        await self._hand_over(fd, "getfd", {"fdname": name})

    async def _hand_over(self, fd: int, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Not the client's own way to do so: that needs asyncio's sockets, and the daemon's loop is uvloop.
        White space between two commands is nothing to QEMU but what carries the descriptor."""
        async with self._handing:  # QEMU keeps only the last one sent
            try:
                socket.send_fds(self._sock, [b" "], [fd])
            except (OSError, ValueError) as error:
                raise Unreachable(f"{self._name}: QEMU takes no descriptor: {error}") from error
            return await self.execute(command, arguments)

    async def _watch(self) -> None:
        while self._client.runstate.name == "RUNNING":
            await self._client.runstate_changed()
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._client.disconnect()

    async def close(self) -> None:
        """Hang up. QEMU goes on."""
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(5):
                await self._client.disconnect()
        self._sock.close()
        self.lost.cancel()
        await asyncio.gather(self.lost, return_exceptions=True)
