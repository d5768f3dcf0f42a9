"""Which file system a path is on, and what only some of them can do."""

import errno
import fcntl
from pathlib import Path

from atoll.host import files
from atoll.host.run import run

BTRFS = "9123683e"
"""statfs(2)'s f_type in hexadecimal."""
_SUBVOLUME = 256
"""Inode of a subvolume's root (BTRFS_FIRST_FREE_OBJECTID)."""
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


async def snapshot(tree: Path, target: Path) -> bool:
    """Make `target`, which is new, a writable snapshot of the subvolume `tree`. False where it is none, or on
    another file system: `target` is not there then. Raises Lacking, Unreachable."""
    if not await files.in_thread(_is_subvolume, tree) or await magic(tree) != BTRFS:
        return False
    argv = ("btrfs", "subvolume", "snapshot", str(tree), str(target))
    return (await run(argv, timeout=60, check=False)).code == 0


async def bound_subvolume(path: Path, size: int) -> bool:
    """Bound what a subvolume holds, shared or not, in bytes. False where quotas are off, or it is no subvolume."""
    if not await files.in_thread(_is_subvolume, path):
        return False
    argv = ("btrfs", "qgroup", "limit", str(size), str(path))
    return (await run(argv, timeout=60, check=False)).code == 0


async def exclusive(path: Path) -> int | None:
    """Bytes that only this subvolume holds; None where it is none, or they cannot be told."""
    if not await files.in_thread(_is_subvolume, path):
        return None
    argv = ("btrfs", "filesystem", "du", "-s", "--raw", str(path))
    ran = await run(argv, timeout=600, check=False)
    told = ran.text.splitlines()[-1].split() if ran.code == 0 else []
    return int(told[1]) if len(told) > 1 and told[1].isdigit() else None


def _is_subvolume(path: Path) -> bool:
    return path.exists() and path.stat().st_ino == _SUBVOLUME
