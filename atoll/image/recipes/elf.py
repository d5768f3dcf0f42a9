"""The few facts of ELF files that building a root file system needs, read without running or linking anything.

Format: elf(5), System V ABI; 64-bit little-endian only.
"""

import struct

from atoll.base.errors import Broken

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_DYNAMIC = struct.Struct("<QQ")
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5
_PAGE = 4096


def is_elf(data: bytes) -> bool:
    return data[:6] == b"\x7fELF\x02\x01"


def needed(data: bytes) -> tuple[str, ...]:
    """The shared objects that a program or library asks for by name, and its interpreter by path."""
    names: list[str] = []
    segments = _segments(data)
    for kind, _, offset, _, _, size, _, _ in segments:
        if kind == PT_INTERP:
            names.append(_string(data, offset))
        elif kind == PT_DYNAMIC:
            tags = list(_DYNAMIC.iter_unpack(data[offset : offset + size - size % _DYNAMIC.size]))
            strings = next((_offset(segments, value) for tag, value in tags if tag == _DT_STRTAB), 0)
            for tag, value in tags:
                if tag == _DT_NULL:
                    break
                if tag == _DT_NEEDED:
                    names.append(_string(data, strings + value))
    return tuple(names)


def section(data: bytes, name: str) -> bytes:
    """A section's content, b"" where there is none."""
    fields = _header(data)
    table, size, count, names = fields[6], fields[11], fields[12], fields[13]
    rows = [_SECTION.unpack_from(data, table + size * number) for number in range(count)]
    for row in rows:
        if _string(data, rows[names][4] + row[0]) == name:
            return data[row[4] : row[4] + row[5]]
    return b""


def pack(data: bytes) -> bytes:
    """The same program for a loader: only what the segments load, without sections, padding and trailing zeros."""
    fields = list(_header(data))
    segments = _segments(data)
    start = -(-(_HEADER.size + _SEGMENT.size * len(segments)) // _PAGE) * _PAGE
    rows: list[tuple[int, ...]] = []
    body = bytearray()
    moved: list[tuple[int, int, int]] = []
    for row in segments:
        kind, flags, offset, virtual, physical, size, memory, align = row
        if kind == PT_LOAD:
            content = data[offset : offset + size].rstrip(b"\0")
            body += bytes(-len(body) % _PAGE)
            moved.append((offset, size, start + len(body)))
            rows.append((kind, flags, start + len(body), virtual, physical, len(content), memory, _PAGE))
            body += content
        elif kind == PT_NOTE:
            rows.append(row)
    for number, (kind, flags, offset, virtual, physical, size, memory, align) in enumerate(rows):
        if kind == PT_NOTE:  # lies inside a loaded segment, and moves with it
            old, _, new = next(place for place in moved if place[0] <= offset < place[0] + place[1])
            rows[number] = (kind, flags, offset - old + new, virtual, physical, size, memory, align)
    fields[5], fields[6], fields[10], fields[11], fields[12], fields[13] = _HEADER.size, 0, len(rows), 0, 0, 0
    head = _HEADER.pack(*fields) + b"".join(_SEGMENT.pack(*row) for row in rows)
    return head.ljust(start, b"\0") + bytes(body)


def _header(data: bytes) -> tuple[int, ...]:
    if not is_elf(data):
        raise Broken("this is not a 64-bit ELF file")
    return _HEADER.unpack_from(data)


def _segments(data: bytes) -> list[tuple[int, ...]]:
    fields = _header(data)
    return [_SEGMENT.unpack_from(data, fields[5] + fields[9] * number) for number in range(fields[10])]


def _offset(segments: list[tuple[int, ...]], address: int) -> int:
    """Where in the file that virtual address lies."""
    for kind, _, offset, virtual, _, size, _, _ in segments:
        if kind == PT_LOAD and virtual <= address < virtual + size:
            return offset + address - virtual
    raise Broken("an address of this ELF file lies in no segment")


def _string(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()
