"""Writing cpio archives for a kernel's initramfs: the "newc" format.

Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. Every entry belongs to root and has the
time 0, so the same files always give the same bytes.
"""

import stat
from collections.abc import Iterable

import msgspec

from atoll.base.errors import Invalid

_MAGIC = b"070701"
_END = "TRAILER!!!"
_ALIGN = 4
_BLOCK = 512


class Entry(msgspec.Struct, frozen=True):
    """One entry. `path` has no leading slash; `mode` holds the type and the permissions, as in stat(2).

    `data`: a file's content or a symbolic link's target. `device`: (major, minor) of a device node.
    A directory must come before what is in it.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, mode: int = 0o755) -> Entry:
    return Entry(path, stat.S_IFDIR | mode)


def file(path: str, data: bytes, mode: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | mode, data)


def symlink(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    return Entry(path, stat.S_IFCHR | mode, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive. Raises `Invalid` for a path that is empty, absolute, climbs or comes twice."""
    out = bytearray()
    seen: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        if entry.path in seen or any(part in ("", ".", "..") for part in entry.path.split("/")):
            raise Invalid(f"{entry.path!r} cannot be a path in a cpio archive")
        seen.add(entry.path)
        _append(out, number, entry)
    _append(out, 0, Entry(_END, 0))
    _pad(out, _BLOCK)
    return bytes(out)


def _append(out: bytearray, number: int, entry: Entry) -> None:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    out += _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    _pad(out, _ALIGN)
    out += entry.data
    _pad(out, _ALIGN)


def _pad(out: bytearray, to: int) -> None:
    out += bytes(-len(out) % to)
