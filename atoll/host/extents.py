"""What a file really holds and takes, from its file system's own map (FIEMAP, linux/fiemap.h)."""

import errno
import fcntl
import os
import struct

import msgspec

from atoll.base.ids import Bytes

_FIEMAP = 0xC020660B  # _IOWR('f', 11, struct fiemap)
_HEAD = struct.Struct("=QQLLLL")  # start, length, flags, mapped extents, room for extents, reserved
_EXTENT = struct.Struct("=QQQQQLLLL")  # logical, physical, length, 2 reserved, flags, 3 reserved
_LAST, _UNWRITTEN, _SHARED = 0x1, 0x800, 0x2000
_BATCH = 512
_MOST = 1 << 16
"""Extents looked at; a file in more pieces is measured without the map."""
_NOT_HERE = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL})


class Extents(msgspec.Struct, frozen=True):
    """Bytes. `used` hold data; `allocated` are taken of the file system by this file alone."""

    used: Bytes
    allocated: Bytes


def measure(fd: int) -> Extents:
    """Of an open file, also while somebody writes to it. Blocks. Raises OSError."""
    taken = os.fstat(fd).st_blocks * 512
    try:
        found = _map(fd)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        found = None
    if found is None:
        return Extents(Bytes(taken), Bytes(taken))
    used, shared = found
    return Extents(Bytes(used), Bytes(max(0, taken - shared)))


def _map(fd: int) -> tuple[int, int] | None:
    """Bytes that hold data, and bytes shared with other files. None: too many pieces."""
    used = shared = start = 0
    for _ in range(_MOST // _BATCH):
        buffer = bytearray(_HEAD.size + _BATCH * _EXTENT.size)
        _HEAD.pack_into(buffer, 0, start, (1 << 64) - 1 - start, 0, 0, _BATCH, 0)
        fcntl.ioctl(fd, _FIEMAP, buffer)
        count = _HEAD.unpack_from(buffer)[3]
        last = count == 0
        for number in range(count):
            logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(buffer, _HEAD.size + number * _EXTENT.size)
            used += 0 if flags & _UNWRITTEN else length
            shared += length if flags & _SHARED else 0
            start, last = logical + length, bool(flags & _LAST)
        if last:
            return used, shared
    return None
