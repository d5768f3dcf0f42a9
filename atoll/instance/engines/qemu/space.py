"""Guests that wait for space on the host go on when there is some. Looked at only while one waits."""

import asyncio
import contextlib
import os
from pathlib import Path

from atoll.base.errors import AtollError
from atoll.base.units import MiB
from atoll.instance.engines.qemu.guest import Guest

ENOUGH = 16 * MiB
_EVERY = 1.0  # seconds; no file system tells when space comes free


class SpaceWatch:
    def __init__(self) -> None:
        self._waiting: set[Guest] = set()
        self._task: asyncio.Task[None] | None = None

    def look_after(self, guest: Guest) -> None:
        """Call it with every guest that may have begun to wait."""
        if guest.starved:
            self._waiting.add(guest)
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._watch(), name="space watch")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while self._waiting:
            await asyncio.sleep(_EVERY)
            self._waiting = {guest for guest in self._waiting if guest.starved}
            for guest in tuple(self._waiting):
                if all(free(path) >= ENOUGH for path in guest.written()):
                    with contextlib.suppress(AtollError):
                        await guest.resume()


def free(path: Path) -> int:
    """Bytes that an unprivileged writer may still add to the file system of `path`; 0 where it is absent."""
    try:
        stat = os.statvfs(path)
    except OSError:
        return 0
    return stat.f_bavail * stat.f_frsize
