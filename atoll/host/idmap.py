"""Idmapped mounts: a tree seen with other owners than it has on the disk (mount_setattr(2), user_namespaces(7)).

What a tree's files belong to stays as it is; who looks through the mount sees, and writes, the owners that the map
says. Works on ext4, xfs and btrfs from Linux 5.12 to 5.15 on, and below an overlay from 5.19 on.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence
from pathlib import Path

from atoll.base.errors import Broken, Lacking
from atoll.host import files

Extent = tuple[int, int, int]
"""(first id on the disk, first id seen, how many)."""
NEEDED = "Linux 5.19 or newer, with the tree on ext4, xfs or btrfs"
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same on every architecture
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_IDMAP = 0x1, 0x2, 0x4, 0x0010_0000
_CLONE_NEWUSER = 0x1000_0000
_UNKNOWN = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})
_libc = ctypes.CDLL(None, use_errno=True)


def idmapped(source: Path, target: Path, extents: Sequence[Extent], *, read_only: bool = False) -> None:
    """Mount the directory `source` on `target` with the owners of `extents`; devices in it are none.

    Whoever unmounts `target` takes it away. Blocks. It forks: for a process of one thread only. Raises Lacking
    (this kernel or file system cannot), Absent, Broken.
    """
    with files.translated(f"mount {source} on {target}"):
        tree = clone_mount(source, extents, read_only=read_only)
        try:
            _call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)


def clone_mount(source: Path, extents: Sequence[Extent], *, read_only: bool = False) -> int:
    """As `idmapped`, as a descriptor of a mount that is nowhere yet (move_mount(2) puts it somewhere)."""
    tree = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC)
    try:
        owners = user_namespace(extents)
        try:
            flags = _ATTR_IDMAP | _ATTR_NODEV | (_ATTR_RDONLY if read_only else 0)
            attributes = ctypes.create_string_buffer(struct.pack("=QQQQ", flags, 0, 0, owners), 32)
            _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, ctypes.c_size_t(32))
        finally:
            os.close(owners)
    except OSError as error:
        os.close(tree)
        if error.errno in _UNKNOWN:
            raise Lacking(
                f"{source} cannot be mounted with other owners (Linux {platform.release()}): {error.strerror}",
                hint=f"this needs {NEEDED}",
            ) from error
        raise
    return tree


def user_namespace(extents: Sequence[Extent]) -> int:
    """A descriptor of a new user namespace with that map of users and groups. Forks. Raises OSError, Broken."""
    lines = "".join(f"{disk} {seen} {count}\n" for disk, seen, count in extents)
    ours, its = os.pipe()
    more, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            made = _libc.unshare(_CLONE_NEWUSER) == 0
            os.write(its, b"y" if made else b"n")
            os.close(go)
            os.read(more, 1)  # until its end
        finally:
            os._exit(0)
    os.close(its)
    os.close(more)
    try:
        if os.read(ours, 1) != b"y":
            raise Broken("a user namespace could not be made", hint="sysctl user.max_user_namespaces")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text(lines)
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ours)
        os.close(go)
        os.waitpid(child, 0)


def _call(number: int, *arguments: object) -> int:
    """A system call that libc has no name for yet. Raises OSError."""
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
