"""Reads a tar stream that a stranger made: ustar, pax and GNU, and nothing beyond what a tree needs.

Formats: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Interchange Format"; GNU tar manual, "Basic Tar
Format" and "Storing Sparse Files". Paths are bytes. Where two readers of tar could disagree about an archive (a
link with content, two names of one member, a number that is none) it is refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

BLOCK = 512
LONGEST_PATH, LONGEST_NAME, DEEPEST = 4095, 255, 128
LARGEST_HEADER = 1 << 20
"""Bytes of a pax header: names, xattrs and a map of holes fit in it."""
MOST_HOLES = 1 << 16
_TRAILER = 64 << 20  # bytes after the end of the archive
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_KINDS = {
    b"0": "file", b"\0": "file", b"7": "file", b"S": "file", b"1": "hardlink", b"2": "symlink", b"3": "chr",
    b"4": "blk", b"5": "dir", b"6": "fifo",
}  # fmt: skip
_GLOBAL = frozenset({b"comment", b"charset", b"hdrcharset"})
"""All that a header for every following member may say: a commit's hash, as git archive writes it."""
_SCHILY, _LIBARCHIVE = b"SCHILY.xattr.", b"LIBARCHIVE.xattr."

Path = tuple[bytes, ...]
Segment = tuple[int, int]
"""(offset in the file, bytes)."""


class Hostile(Exception):
    """The archive is damaged or made to do harm. The text is for people."""


@dataclass
class Member:
    """`path`: its components, () for the root. `size`: bytes of the file; `stored`: those in the archive, in
    `segments` where it has holes. `mtime` in nanoseconds. `link`: where a symlink leads, as written."""

    path: Path
    kind: str
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int = 0
    stored: int = 0
    link: bytes = b""
    target: Path = ()
    device: tuple[int, int] = (0, 0)
    segments: list[Segment] | None = None
    xattrs: dict[str, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        return show(b"/".join(self.path))


def show(path: bytes) -> str:
    """For people: bounded, printable."""
    return repr(path[:200].decode("utf-8", "replace"))


def components(raw: bytes, what: str = "a member") -> Path:
    """A path inside the archive. Raises Hostile: absolute, climbing, too long or too deep, of odd bytes."""
    if _CONTROL.search(raw):
        raise Hostile(f"{what} has a control character in its name: {show(raw)}")
    if raw.startswith(b"/"):
        raise Hostile(f"{what} has an absolute name: {show(raw)}")
    parts = tuple(part for part in raw.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise Hostile(f"{what} climbs out of its tree by '..': {show(raw)}")
    if len(raw) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in parts):
        raise Hostile(f"{what} has a name of {len(raw)} bytes: {show(raw)}")
    if len(parts) > DEEPEST:
        raise Hostile(f"{what} lies {len(parts)} directories deep: {show(raw)}")
    return parts


class Archive:
    """`stream`: read to its end once, never sought. Between two members the content of the first is to be read with
    `read`, or it is skipped."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left = self._padding = 0
        self.headers = 0

    def __iter__(self) -> Iterator[Member]:
        """Raises Hostile."""
        extended: dict[bytes, bytes] = {}
        before: set[bytes] = set()
        while True:
            self._skip()
            block = self._exactly(BLOCK, "a header")
            if not block.strip(b"\0"):
                self._drain()
                return
            self.headers += 1
            _check(block)
            kind = block[156:157]
            if kind in before:
                raise Hostile("a member has two headers of one kind")
            if kind in b"xXg":
                found = _records(self._body(block, LARGEST_HEADER))
                if kind == b"g":
                    if odd := found.keys() - _GLOBAL:
                        raise Hostile(f"a header for all members sets {show(sorted(odd)[0])}")
                    continue
                _merge(extended, found)
                before |= {b"x", b"X"}
            elif kind in b"LK":
                name = self._body(block, 2 * LONGEST_PATH).rstrip(b"\0")
                _merge(extended, {b"path" if kind == b"L" else b"linkpath": name})
                before.add(kind)
            else:
                member = self._member(block, kind, extended)
                extended, before = {}, set()
                yield member

    def read(self, most: int) -> bytes:
        """Content of the present member, b"" at its end. Raises Hostile where the archive ends in it."""
        chunk = self._exactly(min(most, self._left), "a member's content") if self._left else b""
        self._left -= len(chunk)
        return chunk

    def _skip(self) -> None:
        while self.read(1 << 20):
            pass
        if self._padding:
            self._exactly(self._padding, "a member's padding")
            self._padding = 0

    def _holds(self, size: int) -> None:
        self._left, self._padding = size, -size % BLOCK

    def _body(self, block: bytes, most: int) -> bytes:
        size = _number(block[124:136], "size")
        if size > most:
            raise Hostile(f"a header of {size} bytes")
        self._holds(size)
        body = self._exactly(size, "a header")
        self._left = 0
        return body

    def _exactly(self, size: int, what: str) -> bytes:
        found = self._stream.read(size)
        if len(found) != size:
            raise Hostile(f"the archive is truncated: it ends in {what}")
        return found

    def _drain(self) -> None:
        """What follows the end is padding of the last record; whoever writes it shall not be stopped by us."""
        left = _TRAILER
        while chunk := self._stream.read(1 << 20):
            left -= len(chunk)
            if left < 0:
                raise Hostile("much follows the end of the archive")

    def _member(self, block: bytes, kind: bytes, extended: dict[bytes, bytes]) -> Member:
        raw = extended.get(b"GNU.sparse.name", extended.get(b"path", _name(block)))
        if kind not in _KINDS:
            raise Hostile(f"{show(raw)} is of a kind that no tree has ({show(kind)})")
        link = extended.get(b"linkpath", _text(block[157:257]))
        size = _decimal(extended[b"size"], "size") if b"size" in extended else _number(block[124:136], "size")
        member = Member(
            components(raw),
            "dir" if _KINDS[kind] == "file" and raw.endswith(b"/") else _KINDS[kind],
            _number(block[100:108], "mode") & 0o7777,
            _owner(extended.get(b"uid"), block[108:116], raw),
            _owner(extended.get(b"gid"), block[116:124], raw),
            _time(extended.get(b"mtime"), block[136:148]),
            xattrs=_xattrs(extended),
        )
        if member.kind == "file":
            member.size = member.stored = size
            self._holds(size)
            self._sparse(member, block, kind, extended)
        elif size:
            raise Hostile(f"{member} is no file and has content")
        if member.kind == "symlink":
            member.link = link
        elif member.kind == "hardlink":
            member.target = components(link, f"the file that {member} is a link to")
        elif member.kind in ("chr", "blk"):
            member.device = _number(block[329:337], "device"), _number(block[337:345], "device")
        if not member.path and member.kind != "dir":
            raise Hostile("the root of the tree is no directory")
        return member

    def _sparse(self, member: Member, block: bytes, kind: bytes, extended: dict[bytes, bytes]) -> None:
        """Where the file has holes: which bytes the archive holds."""
        if kind == b"S":
            numbers = self._old_map(block)
            member.size = _number(block[483:495], "size")
        elif b"GNU.sparse.map" in extended:
            numbers = [_decimal(number, "map") for number in extended[b"GNU.sparse.map"].split(b",")]
            member.size = _decimal(extended.get(b"GNU.sparse.size", b""), "size")
        elif extended.get(b"GNU.sparse.major") == b"1":
            numbers = self._new_map()
            member.size = _decimal(extended.get(b"GNU.sparse.realsize", b""), "size")
            member.stored = self._left
        elif any(key.startswith(b"GNU.sparse.") for key in extended):
            raise Hostile(f"{member} has holes in a form that is not known")
        else:
            return
        if len(numbers) % 2 or len(numbers) > 2 * MOST_HOLES:
            raise Hostile(f"{member} has {len(numbers) // 2} parts")
        member.segments = list(zip(numbers[::2], numbers[1::2], strict=True))
        at = 0
        for start, length in member.segments:
            if start < at or start + length > member.size:
                raise Hostile(f"{member} has parts that overlap or lie outside of it")
            at = start + length
        if sum(length for _, length in member.segments) != member.stored:
            raise Hostile(f"{member} has parts of another size than its content")

    def _old_map(self, block: bytes) -> list[int]:
        """GNU's old format: four parts in the header, 21 in each block after it."""
        numbers = _parts(block[386:482])
        more = block[482] != 0
        while more:
            if len(numbers) > 2 * MOST_HOLES:
                raise Hostile("a map of holes without end")
            extra = self._exactly(BLOCK, "a map of holes")
            numbers += _parts(extra[:504])
            more = extra[504] != 0
        return numbers

    def _new_map(self) -> list[int]:
        """Format 1.0: decimal lines before the content, padded to a block."""
        found: list[bytes] = []
        rest, wanted = b"", 1
        while len(found) < wanted:
            block = self.read(BLOCK)
            if len(block) < BLOCK or len(rest) > BLOCK:
                raise Hostile("a map of holes is damaged")
            *lines, rest = (rest + block).split(b"\n")
            found += lines
            wanted = 1 + 2 * _decimal(found[0], "map") if found else 1
            if wanted > 2 * MOST_HOLES:
                raise Hostile("a map of holes without end")
        return [_decimal(line, "map") for line in found[1:wanted]]


def _check(block: bytes) -> None:
    if block[257:265] not in (b"ustar\x0000", b"ustar  \0"):
        raise Hostile("the archive is damaged: a header is none")
    told = _number(block[148:156], "checksum")
    plain = block[:148] + b" " * 8 + block[156:]
    if told not in (sum(plain), sum(byte - 256 if byte > 127 else byte for byte in plain)):
        raise Hostile("the archive is damaged: a header's checksum is wrong")


def _name(block: bytes) -> bytes:
    name, prefix = _text(block[:100]), _text(block[345:500])
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name


def _text(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


def _number(raw: bytes, what: str) -> int:
    """Octal digits, or GNU's base 256. Raises Hostile: negative, or none."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    text = raw.strip(b" \0")
    if text and not re.fullmatch(rb"[0-7]+", text):
        raise Hostile(f"the archive is damaged: {show(raw)} is no {what}")
    return int(text or b"0", 8)


def _decimal(raw: bytes, what: str) -> int:
    if not re.fullmatch(rb"[0-9]{1,19}", raw):
        raise Hostile(f"the archive is damaged: {show(raw)} is no {what}")
    return int(raw)


def _owner(told: bytes | None, raw: bytes, name: bytes) -> int:
    found = _decimal(told, "owner") if told is not None else _number(raw, "owner")
    if found > 65535:
        raise Hostile(f"{show(name)} belongs to user or group {found}; those of a container end at 65535")
    return found


def _time(told: bytes | None, raw: bytes) -> int:
    """In nanoseconds, between 1970 and 2200: others are no use to anybody, and not every file system keeps them."""
    if told is not None:
        match = re.fullmatch(rb"(-?)([0-9]{1,18})(?:\.([0-9]*))?", told)
        if match is None:
            raise Hostile(f"the archive is damaged: {show(told)} is no time")
        found = 0 if match[1] else int(match[2]) * 10**9 + int((match[3] or b"0")[:9].ljust(9, b"0"))
    else:
        found = 0 if raw[0] == 0xFF else _number(raw, "time") * 10**9
    return min(found, 7_258_118_400 * 10**9)


def _parts(raw: bytes) -> list[int]:
    """Pairs of an old map; one of only zeros ends it."""
    numbers: list[int] = []
    for at in range(0, len(raw) - 23, 24):
        if not raw[at : at + 24].strip(b"\0"):
            break
        numbers += [_number(raw[at : at + 12], "map"), _number(raw[at + 12 : at + 24], "map")]
    return numbers


def _records(body: bytes) -> dict[bytes, bytes]:
    """A pax header: lines of "LENGTH KEY=VALUE". Raises Hostile: damaged, or a key that comes twice."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(body):
        match = re.compile(rb"([0-9]{1,7}) ([^=\0\n]{1,512})=").match(body, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(body) or body[end - 1 : end] != b"\n":
            raise Hostile("the archive is damaged: a pax header's record")
        if match[2] in found:
            raise Hostile(f"a pax header says {show(match[2])} twice")
        found[match[2]] = body[match.end() : end - 1]
        at = end
    return found


def _merge(into: dict[bytes, bytes], more: dict[bytes, bytes]) -> None:
    if twice := into.keys() & more.keys():
        raise Hostile(f"a member has {show(sorted(twice)[0])} twice")
    into.update(more)


def _xattrs(extended: dict[bytes, bytes]) -> dict[str, bytes]:
    """bsdtar writes them in both forms; its own alone where it has ACLs only, which a tree does not keep."""
    found = {}
    for key, value in extended.items():
        if key.startswith(_SCHILY):
            name = key.removeprefix(_SCHILY)
            if _CONTROL.search(name) or len(name) > LONGEST_NAME:
                raise Hostile(f"an attribute with an odd name: {show(name)}")
            found[name.decode("utf-8", "surrogateescape")] = value
    return found
