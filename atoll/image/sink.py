"""Where bytes from outside come in: written and hashed by a thread while the next ones come."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from atoll.base.errors import Exhausted, Invalid
from atoll.base.ids import Digest
from atoll.base.units import MiB, show_size
from atoll.host import files

BATCH = 4 * MiB
BLOCK = MiB
RESERVE = 64 * MiB
"""Bytes left to the host's guests, whatever comes in."""
_ZEROS = bytes(BLOCK)


class Sink:
    """One file being written. `largest`: bytes it may have. Zeros in blocks of a MiB become holes."""

    def __init__(self, file: BinaryIO, largest: int, size: int = 0) -> None:
        self.size = size
        self._file, self._largest = file, largest
        self._hash = hashlib.sha256()
        self._batch = bytearray()
        self._working: asyncio.Task[None] | None = None

    @classmethod
    async def resumed(cls, file: BinaryIO, largest: int) -> "Sink":
        """Of a file that has content already, which is hashed again. Blocks nobody."""
        made = cls(file, largest)
        while chunk := await files.in_thread(file.read, BATCH):
            await files.in_thread(made._hash.update, chunk)
            made.size += len(chunk)
        return made

    @property
    def digest(self) -> Digest:
        """Once finished."""
        return Digest(f"sha256:{self._hash.hexdigest()}")

    async def feed(self, chunk: bytes) -> None:
        """Raises Invalid beyond `largest`, Exhausted."""
        self.size += len(chunk)
        if self.size > self._largest:
            raise Invalid(
                f"it has more than {show_size(self._largest)}", hint="images.max_size in atoll.toml allows more"
            )
        self._batch += chunk
        if len(self._batch) >= BATCH:
            await self._turn(len(self._batch) // BLOCK * BLOCK)

    async def finish(self) -> None:
        """Everything is in the file, though maybe not yet on the disk."""
        await self._turn(len(self._batch))
        await self._settle()
        os.ftruncate(self._file.fileno(), self.size)  # it may end in a hole

    async def _turn(self, length: int) -> None:
        await self._settle()
        batch, self._batch = self._batch[:length], self._batch[length:]
        if batch:
            self._working = asyncio.create_task(files.in_thread(self._take, batch))

    async def _settle(self) -> None:
        working, self._working = self._working, None
        if working is not None:
            with files.translated("write what comes in"):
                await working

    def _take(self, batch: bytearray) -> None:
        self._hash.update(batch)
        with memoryview(batch) as whole:
            for at in range(0, len(whole), BLOCK):
                if batch.startswith(_ZEROS, at):  # comparing a memoryview is 50 times slower
                    self._file.seek(BLOCK, os.SEEK_CUR)
                else:
                    _write(self._file, whole[at : at + BLOCK])


def _write(file: BinaryIO, block: memoryview) -> None:
    done = 0
    while done < len(block):
        done += file.write(block[done:])


def check_room(folder: Path, wanted: int) -> None:
    """Raises Exhausted where `wanted` bytes do not fit."""
    space = os.statvfs(folder)
    left = space.f_bavail * space.f_frsize - RESERVE
    if wanted > left:
        raise Exhausted(
            f"the image has {show_size(wanted)}, and the disk of {folder} has {show_size(max(0, left))} to give",
            hint="make room there, or remove images: atoll image prune",
        )


async def pour(chunks: AsyncIterator[bytes], path: Path, largest: int) -> Sink:
    """Write a new file of what comes. Raises Invalid, Exhausted; then it is gone again."""
    with files.gone_if_failed(path), files.translated("write what comes in"), path.open("xb", buffering=0) as file:
        sink = Sink(file, largest)
        try:
            async for chunk in chunks:
                await sink.feed(chunk)
        finally:
            await sink.finish()
        return sink
