"""Which file system a path is on, and what only some of them can do."""

import errno
import fcntl
from pathlib import Path

from atoll.host.run import run

BTRFS = "9123683e"
"""statfs(2)'s f_type in hexadecimal."""
_FICLONE = 0x40049409  # linux/fs.h
_CANNOT = frozenset({errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL})


async def magic(path: Path) -> str:
    """The file system's magic number in hexadecimal. Raises Broken (no such path), Unreachable (it hangs)."""
    return (await run(("stat", "-f", "-c", "%t", str(path)), timeout=10)).text.strip()


async def kind(path: Path) -> str:
    """Its name, for people: `ext2/ext3`, `btrfs`, `tmpfs`."""
    return (await run(("stat", "-f", "-c", "%T", str(path)), timeout=10)).text.strip()


def reflink(source: Path, target: Path) -> bool:
    """Make `target`, which is new, a copy of `source` that shares its blocks. False where this cannot be (another
    file system, or one without reflinks): `target` is not there then. Blocks. Raises OSError."""
    with source.open("rb") as old, target.open("xb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
            return True
        except OSError as error:
            target.unlink()
            if error.errno in _CANNOT:
                return False
            raise


async def make_subvolume(path: Path) -> None:
    """On btrfs. Raises Lacking (no btrfs-progs), Broken."""
    await run(("btrfs", "subvolume", "create", str(path)), timeout=30)
