"""Disk images as strangers make them: honest ones by qemu-img, then changed byte by byte."""

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

MIB = 1 << 20
HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
FIELDS = (
    "magic version backing_at backing_length cluster_bits size crypt l1_entries l1_at refcounts_at"
    " refcount_clusters snapshots snapshots_at incompatible compatible autoclear refcount_order header_length"
).split()


def qemu_img(*args: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, args)], check=True, stdout=subprocess.DEVNULL)


def qcow2(path: Path, size: str = "64M", *options: str, data: bytes = b"boot" * 64 * 1024) -> Path:
    """An honest one with some content."""
    raw = path.with_suffix(".src")
    raw.write_bytes(data)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, raw, path)
    raw.unlink()
    qemu_img("resize", "-q", "-f", "qcow2", path, size)
    return path


def fields(path: Path) -> dict[str, int]:
    return dict(zip(FIELDS, HEADER.unpack(path.read_bytes()[: HEADER.size]), strict=True))


def change(path: Path, **new: int | Callable[[int], int]) -> Path:
    """Other values in its header."""
    found = fields(path)
    for name, value in new.items():
        found[name] = value(found[name]) if callable(value) else value
    poke(path, 0, HEADER.pack(*found.values()))
    return path


def poke(path: Path, at: int, content: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)
    return path


def number(path: Path, at: int) -> int:
    return int.from_bytes(path.read_bytes()[at : at + 8], "big")


def put(path: Path, at: int, value: int) -> Path:
    return poke(path, at, value.to_bytes(8, "big"))


def l2_of(path: Path) -> int:
    """Where the first L2 table is."""
    return number(path, fields(path)["l1_at"]) & 0x00FFFFFFFFFFFE00


def vmdk_descriptor(names: str) -> bytes:
    """A VMDK that is nothing but text, with an extent in `names`."""
    return (
        f'# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
        f'RW 20480 FLAT "{names}" 0\nddb.adapterType = "ide"\n'
    ).encode()
