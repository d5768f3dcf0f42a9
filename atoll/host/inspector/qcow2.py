"""qcow2, read by its specification (https://www.qemu.org/docs/master/interop/qcow2.html) and nothing beyond it.

`header` is what any reader must know; `walk` follows every table of an image that is to be taken in.
"""

import struct
import sys
from array import array
from typing import NamedTuple

from atoll.base.units import KiB, MiB, TiB, show_size
from atoll.host.inspector.window import Window, bad

MAGIC = b"QFI\xfb"
FLATTEN = "flatten it where you trust it: qemu-img convert -O qcow2 OLD NEW"
_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _SUBCLUSTERS = 1, 2, 4, 8, 16
_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _SUBCLUSTERS
_BACKING_FORMAT, _DATA_FILE_NAME, _ENCRYPTION = 0xE2792ACA, 0x44415441, 0x0537BE77
_OFFSET = 0x00FFFFFFFFFFFE00
"""Bits of an L1 or L2 entry that are an offset."""
_COMPRESSED, _ZERO = 1 << 62, 1
_L2_RESERVED = 0x3F000000000001FE
_L1_RESERVED = 0x7F000000000001FF
_MAX_L1, _MAX_REFCOUNTS = 32 * MiB, 8 * MiB
"""As QEMU bounds them (QCOW_MAX_L1_SIZE, QCOW_MAX_REFTABLE_SIZE)."""
LARGEST = 64 * TiB


class Header(NamedTuple):
    """Sizes and offsets in bytes. `backing`, `data_file`: other files that it names, "" for none."""

    virtual_size: int
    cluster_bits: int
    backing: str
    backing_format: str
    data_file: str
    encrypted: bool
    features: int
    snapshots: int
    l1_at: int
    l1_entries: int
    refcounts_at: int
    refcount_clusters: int

    @property
    def subclusters(self) -> bool:
        return bool(self.features & _SUBCLUSTERS)

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits


def header(seen: Window) -> Header:
    """Raises Invalid: no qcow2, a version or feature that is not known, a field that cannot be."""
    raw = seen.read(0, _V2.size, "its header")
    (magic, version, backing_at, backing_length, bits, size, crypt, l1_entries, l1_at,
     refcounts_at, refcount_clusters, snapshots, _) = _V2.unpack(raw)  # fmt: skip
    if magic != MAGIC or version not in (2, 3):
        raise bad("it is not a qcow2 image" if magic != MAGIC else f"qcow2 has no version {version}")
    features, order, length = 0, 4, _V2.size
    if version == 3:
        features, _, _, order, length = _V3.unpack(seen.read(_V2.size, _V3.size, "its header"))
    if not 9 <= bits <= 21 or order > 6 or length % 8 or not _V2.size <= length <= (1 << bits):
        raise bad(f"its header is damaged: 2^{bits} bytes a cluster, 2^{order} bits a reference count")
    if features & ~_KNOWN:
        raise bad(f"it needs features of qcow2 that are not known here ({features & ~_KNOWN:#x})", FLATTEN)
    found = _extensions(seen, length, backing_at or 1 << bits, 1 << bits)
    backing = ""
    if backing_at or backing_length:
        if not 0 < backing_length <= 1023 or backing_at + backing_length > 1 << bits:
            raise bad("its header is damaged: the name of its backing file lies outside")
        backing = _text(seen.read(backing_at, backing_length, "the name of its backing file"))
    data_file = _text(found.get(_DATA_FILE_NAME, b"")) or ("an unnamed file" if features & _DATA_FILE else "")
    return Header(
        size, bits, backing, _text(found.get(_BACKING_FORMAT, b"")), data_file, bool(crypt) or _ENCRYPTION in found,
        features, snapshots, l1_at, l1_entries, refcounts_at, refcount_clusters,
    )  # fmt: skip


def _extensions(seen: Window, at: int, end: int, cluster: int) -> dict[int, bytes]:
    """By type. They lie between the header and the backing file's name, within the first cluster."""
    found: dict[int, bytes] = {}
    end = min(end, cluster, seen.size)
    while at + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack(seen.read(at, _EXTENSION.size, "an extension of its header"))
        if kind == 0:
            break
        at += _EXTENSION.size
        if at + length > end:
            raise bad("an extension of its header is longer than the header")
        found[kind] = seen.read(at, length, "an extension of its header")
        at += -(-length // 8) * 8
    return found


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def walk(seen: Window, largest: int) -> Header:
    """Check all that an image of its own must be: one that names no other file, without secrets and snapshots,
    whose tables lead nowhere outside it and nowhere twice. Raises Invalid. Memory: 100 bytes a cluster at most.
    """
    found = header(seen)
    _stands_alone(found, largest)
    cluster = found.cluster
    entry = 16 if found.subclusters else 8
    per_table = cluster // entry
    needed = -(-found.virtual_size // (per_table * cluster))
    if found.l1_entries < needed or found.l1_entries * 8 > _MAX_L1:
        raise bad(f"its L1 table has {found.l1_entries} entries, and its size needs {needed}")
    taken = _Clusters(seen, found)
    taken.own(found.l1_at, found.l1_entries * 8, "its L1 table")
    _refcounts(seen, found, taken)
    l1 = _table(seen, found.l1_at, found.l1_entries * 8, "its L1 table")
    for at in _offsets(l1, _L1_RESERVED, "its L1 table"):
        taken.own(at, cluster, "an L2 table")
        raw = seen.read(at, cluster, "an L2 table")
        if raw.strip(b"\0"):
            taken.hold(_entries(raw, found.subclusters))
    return found


def _stands_alone(found: Header, largest: int) -> None:
    if found.data_file:
        raise bad(f"it keeps its data in another file ({found.data_file[:200]!r})", FLATTEN)
    if found.backing:
        raise bad(f"it stands on another file ({found.backing[:200]!r})", FLATTEN)
    if found.encrypted:
        raise bad("it is encrypted", FLATTEN)
    if found.features & _CORRUPT:
        raise bad("it is marked as corrupt", "repair it where you trust it: qemu-img check -r all FILE")
    if found.features & _DIRTY:
        raise bad("it was not closed cleanly", "repair it where you trust it: qemu-img check -r all FILE")
    if found.snapshots:
        raise bad(f"it has {found.snapshots} snapshots inside", FLATTEN)
    if not 0 < found.virtual_size <= min(largest, LARGEST):
        raise bad(
            f"its disk would have {show_size(found.virtual_size)}",
            f"{show_size(min(largest, LARGEST))} are allowed (images.max_size in atoll.toml)",
        )


def _refcounts(seen: Window, found: Header, taken: "_Clusters") -> None:
    """QEMU reads the table when it opens the image, and blocks when it checks or writes it."""
    length = found.refcount_clusters * found.cluster
    if not 0 < length <= _MAX_REFCOUNTS:
        raise bad(f"its reference count table has {length} bytes")
    taken.own(found.refcounts_at, length, "its reference count table")
    table = _table(seen, found.refcounts_at, length, "its reference count table")
    for at in _offsets(table, 0x1FF, "its reference count table"):
        taken.own(at, found.cluster, "a reference count block")


def _table(seen: Window, at: int, length: int, what: str) -> "array[int]":
    return _numbers(seen.read(at, length, what))


def _numbers(raw: bytes) -> "array[int]":
    found = array("Q", raw)
    if sys.byteorder == "little":
        found.byteswap()
    return found


def _offsets(table: "array[int]", reserved: int, what: str) -> list[int]:
    used = [entry for entry in table if entry]
    if any(entry & reserved for entry in used):
        raise bad(f"{what} is damaged: reserved bits are set")
    return [at for entry in used if (at := entry & _OFFSET)]


def _entries(raw: bytes, subclusters: bool) -> "array[int]":
    numbers = _numbers(raw)
    return numbers[::2] if subclusters else numbers


class _Clusters:
    """Every place in the file that a table leads to: each once, each inside, each where a cluster may begin."""

    def __init__(self, seen: Window, found: Header) -> None:
        self._size, self._cluster, self._found = seen.size, found.cluster, found
        self._end = -(-seen.size // found.cluster) * found.cluster  # the last cluster may be cut short
        self._own: set[int] = {0}
        self._held: set[int] = set()
        self._packed: set[int] = set()

    def own(self, at: int, length: int, what: str) -> None:
        """The image's own."""
        if at % self._cluster or at + length > self._end or at == 0:
            raise bad(f"{what} lies where it cannot be (at {at} of {self._size} bytes)")
        places = range(at, at + max(length, 1), self._cluster)
        if not self._own.isdisjoint(places) or not self._held.isdisjoint(places):
            raise bad(f"{what} lies on another part of the image (at {at})")
        self._own.update(places)

    def hold(self, entries: "array[int]") -> None:
        """A guest's data, by an L2 table's entries."""
        plain = [entry for entry in entries if entry and not entry & _COMPRESSED]
        places = [at for entry in plain if (at := entry & _OFFSET)]
        reserved = _L2_RESERVED | (_ZERO if self._found.subclusters else 0)
        if any(entry & reserved for entry in plain):
            raise bad("an L2 table is damaged: reserved bits are set")
        if places:
            self._check(places)
        if len(plain) < len(entries):
            self._pack([entry for entry in entries if entry & _COMPRESSED])

    def _check(self, places: list[int]) -> None:
        if max(places) + 512 > self._size or any(at % self._cluster for at in places):
            raise bad("an L2 table leads outside the image: it is truncated or damaged")
        before = len(self._held)
        self._held.update(places)
        if len(self._held) != before + len(places) or not self._own.isdisjoint(places):
            raise bad("two places of the disk lead to one place of the image")

    def _pack(self, packed: list[int]) -> None:
        """Compressed clusters: bits 0 to x-1 are the offset, those up to 61 more sectors, x = 62 - (bits - 8)."""
        width = 62 - (self._found.cluster_bits - 8)
        mask, more = (1 << width) - 1, (1 << 62) - 1
        for entry in packed:
            at = entry & mask
            first_sectors = 512 * (((entry & more) >> width) + 1) - at % 512
            # The last sectors of a file that ends with compressed data may be cut short.
            if at < self._cluster or at >= self._size or first_sectors > 2 * self._cluster + KiB:
                raise bad("a compressed part leads outside the image: it is truncated or damaged")
            if at + first_sectors > self._end + self._cluster:
                raise bad("a compressed part leads outside the image: it is truncated or damaged")
        before = len(self._packed)
        self._packed.update(entry & mask for entry in packed)
        if len(self._packed) != before + len(packed):
            raise bad("two places of the disk lead to one place of the image")
