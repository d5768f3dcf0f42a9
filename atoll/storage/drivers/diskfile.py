"""Files that are volumes of a dir pool: how each is opened, made and measured."""

import os
import struct
from pathlib import Path
from typing import BinaryIO

from atoll.base.ids import Bytes
from atoll.host import extents
from atoll.storage.model import Attachment, Layer, Usage

THIN, FULL = ".qcow2", ".full"
_HEADER = struct.Struct(">4sIQIIQ")
"""qcow2: magic, version, backing file's offset and length, cluster bits, virtual size (docs/interop/qcow2.txt)."""


def virtual_size(file: BinaryIO, path: Path) -> int | None:
    """None: damaged. Read here, for qemu-img takes 8 ms a volume and a pool has thousands."""
    if driver(path) == "raw":
        return os.fstat(file.fileno()).st_size
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(b"QFI\xfb"):
        return None
    return int(_HEADER.unpack(header)[5])


def create_raw(path: Path, size: int, full: bool) -> None:
    with open(path, "xb") as file:
        file.truncate(size)
    if full:
        allocate(path, size)


def allocate(path: Path, size: int) -> None:
    """Make it that large with every block its own. What it holds stays."""
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def driver(path: Path) -> str:
    """How a volume's file is opened: said by its name, for the pool gave it that."""
    return "qcow2" if path.suffix == THIN else "raw"


def own_layer(path: Path) -> Layer:
    """The top one of a volume. A full one keeps its blocks."""
    return Layer(str(path), driver(path), discard=path.suffix != FULL)


def attachment(own: Layer, *below: Layer) -> Attachment:
    return Attachment((own, *(Layer(os.path.normpath(layer.uri), layer.format, read_only=True) for layer in below)))


def usage(path: Path) -> Usage:
    with path.open("rb") as file:
        seen = extents.measure(file.fileno())
        return Usage(Bytes(virtual_size(file, path) or 0), seen.allocated, seen.used)
