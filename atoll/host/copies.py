"""Whole disks copied from one file to another by qemu-img in a cell: each format is told, none guessed."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from atoll.base.errors import Broken
from atoll.base.units import GiB, TiB
from atoll.host.confined import Bounds, confined, lent, name_of, new_uid
from atoll.host.disks import translated
from atoll.host.run import run

HOURS = 6 * 3600.0
LOOKS_EVERY = 0.5
"""Seconds between looks at how much has been written."""
_COPYING = Bounds(memory=4 * GiB, cpu=int(HOURS), written=64 * TiB)
_EMPTY = "extended_l2=off,compat=1.1"

Told = Callable[[int], None]
"""Told now and then how many bytes the target takes by now."""


def untold(_: int) -> None:
    return None


async def create(path: Path, size: int, *, zstd: bool = False) -> None:
    """A new, empty qcow2 file that stands on nothing: what a copy is written to. `size`: bytes of its disk."""
    options = f"{_EMPTY},compression_type={'zstd' if zstd else 'zlib'}"
    argv = ("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(path), str(size))
    ran = await run(argv, check=False)
    if ran.code:
        raise translated("create", ran, None)


async def copy(
    layers: Sequence[tuple[Path, str]],
    target: tuple[Path, str],
    *,
    compress: bool = False,
    told: Told = untold,
) -> None:
    """What a guest sees of a disk (its `layers`: file and format, top first) into the file `target`, which is new:
    as large at least, and all zeros.

    Every file comes as an open descriptor, and nothing that one names is followed. `compress`: a qcow2's clusters.
    Raises Exhausted, Absent, Refused (somebody else has one open), Broken. What a failure leaves is the caller's.
    """
    uid = new_uid()
    with contextlib.ExitStack() as held:
        fds = [held.enter_context(lent(path, uid)) for path, _ in layers]
        out = held.enter_context(lent(target[0], uid, write=True))
        source = _chain(fds, [format for _, format in layers])
        goal = f"driver={target[1]},file.driver=file,file.filename={name_of(out)},file.locking=off"
        argv = ("qemu-img", "convert", "-n", "--target-is-zero", *(("-c",) if compress else ()))
        argv = (*argv, "--target-image-opts", f"json:{msgspec.json.encode(source).decode()}", goal)
        async with _watched(out, told):
            ran = await confined(argv, fds=(*fds, out), uid=uid, timeout=HOURS, bounds=_COPYING)
        if ran.code:
            raise translated("convert", ran, layers[0][0])


def _chain(fds: Sequence[int], formats: Sequence[str]) -> dict[str, Any]:
    """The node of the first layer, with those below it."""
    node: dict[str, Any] = {
        "driver": formats[0],
        "read-only": True,
        "file": {"driver": "file", "filename": name_of(fds[0]), "read-only": True},
    }
    if formats[0] == "qcow2":
        node["backing"] = _chain(fds[1:], formats[1:]) if len(fds) > 1 else None
    elif len(fds) > 1:
        raise Broken(f"a {formats[0]} file cannot stand on another")
    return node


@asynccontextmanager
async def _watched(fd: int, told: Told) -> AsyncIterator[None]:
    """`told` hears how the file grows while this lasts."""

    async def look() -> None:
        while True:
            await asyncio.sleep(LOOKS_EVERY)
            told(os.fstat(fd).st_blocks * 512)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
