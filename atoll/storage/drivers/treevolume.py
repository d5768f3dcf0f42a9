"""Volumes of the format tree, as dir and btrfs pools keep them: directories.

ID.tree/upper    what the container has: its changes, or all of it where it stands on nothing
ID.tree/work     the overlay's own
ID.tree/lower    a file that names the tree below, relative to ID.tree where both lie in the state directory

Everything in `upper` belongs to the FOREIGN ids and is a container's: nothing in it is followed or believed.
"""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from atoll.base.errors import Absent, Broken, Invalid
from atoll.base.ids import Bytes
from atoll.host import files, filesystems, rootfs
from atoll.host.run import run
from atoll.storage.model import FOREIGN_BASE, Attachment, Layer, Usage, VolumeSpec

UPPER, WORK, LOWER = "upper", "work", "lower"
_MODE = 0o755

Clone = Callable[[Path, Path], Awaitable[bool]]
"""Make the second path a writable clone of the tree at the first; False where this pool cannot."""


async def make(fresh: Path, spec: VolumeSpec, *, home: Path | None, clone: Clone) -> None:
    """`fresh`: a new directory, which is to be renamed. `home`: the state directory. Raises Invalid, Absent,
    Exhausted, Broken."""
    if len(spec.base) > 1 or any(layer.format != "tree" for layer in spec.base):
        raise Invalid("a tree stands on one other tree", field="format")
    below = Path(spec.base[0].uri) if spec.base else None
    with files.translated(f"make volume {spec.id}"):
        await files.in_thread(fresh.mkdir, 0o700)
        if below is None or not await clone(below, fresh / UPPER):
            await files.in_thread(_lay, fresh, below, home)


def _lay(fresh: Path, below: Path | None, home: Path | None) -> None:
    found = below.stat() if below else None
    upper = fresh / UPPER
    upper.mkdir()
    (fresh / WORK).mkdir(mode=0o700)
    os.chown(upper, *((found.st_uid, found.st_gid) if found else (FOREIGN_BASE, FOREIGN_BASE)))
    upper.chmod((found.st_mode & 0o7777) if found else _MODE)
    if below is not None:
        files.write_whole(fresh / LOWER, os.fsencode(_named(below, fresh, home)))


def layers(path: Path) -> Attachment:
    """What an engine mounts. Raises Broken where the tree below is not as it was recorded."""
    own = Layer(str(path), "tree")
    try:
        named = Path(os.fsdecode((path / LOWER).read_bytes()))
    except FileNotFoundError:
        return Attachment((own,))
    return Attachment((own, Layer(os.path.normpath(path / named), "tree", read_only=True)))


async def usage(path: Path) -> Usage:
    """What it takes of the pool: its own files, not what it shares with the tree below. Raises Absent, Broken."""
    if (own := await filesystems.exclusive(path / UPPER)) is not None:
        return Usage(Bytes(0), Bytes(own), Bytes(own))
    ran = await run(("du", "-sx", "--block-size=1", "--", str(path / UPPER)), timeout=600, check=False)
    told = ran.text.partition("\t")[0]  # files that vanish meanwhile make it complain, and count nothing
    if not told.isdigit():
        if not await files.in_thread(path.exists):
            raise Absent(f"there is no volume {path.stem}")
        raise Broken(f"{path} cannot be measured")
    return Usage(Bytes(0), Bytes(int(told)), Bytes(int(told)))


async def remove(path: Path, gone: Path) -> None:
    """At once under the name `gone`, which is swept should this end early. Absent is success."""
    if not await files.in_thread(path.exists):
        return
    await rootfs.remove(gone)  # of a removal that was broken off
    await files.in_thread(path.rename, gone)
    await rootfs.remove(gone)


def _named(below: Path, fresh: Path, home: Path | None) -> str:
    if home is not None and below.is_relative_to(home) and fresh.is_relative_to(home):
        return os.path.relpath(below.resolve(), fresh.resolve())
    return str(below)
