"""The door to qemu-img. Formats are always named: a guest can write any image's magic number into a raw disk.

Sizes in bytes. Paths are absolute, so that QEMU never takes a part of one for a protocol.
"""

import enum
import json
from pathlib import Path
from typing import Any

import msgspec

from atoll.base.errors import Absent, AtollError, Broken, Exhausted, Refused
from atoll.base.ids import Bytes
from atoll.base.units import GiB
from atoll.host.run import Ran, run

TIMEOUT = 120.0
"""Seconds. A create takes 10 ms on a local disk; a shared file system that hangs must end some time."""

METADATA_UP_TO = 32 * GiB
"""Largest disk whose qcow2 metadata is written ahead. That costs 1.3 ms and 180 KiB a GiB once, and makes writes to
new places 1.3 to 8 times faster (bench/pool.py)."""


class Tuning(enum.StrEnum):
    """How an overlay's qcow2 is laid out (https://www.qemu.org/docs/master/interop/qcow2.html)."""

    QUICK_WRITES = "extended_l2=on,cluster_size=128k,preallocation=metadata"
    QUICK_CREATE = "compat=1.1"  # QEMU's defaults: without metadata written ahead 64k beats 128k with subclusters


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """One layer. `backing`: the next one's path, "" where there is none; `outside`: a file that holds its data."""

    path: str
    format: str
    virtual_size: Bytes
    allocated: Bytes
    backing: str = ""
    backing_format: str = ""
    outside: str = ""


class Room(msgspec.Struct, frozen=True):
    """Bytes that a converted image takes: as it is now, and once every block is written."""

    required: Bytes
    full: Bytes


def tuning(size: int) -> Tuning:
    return Tuning.QUICK_WRITES if size <= METADATA_UP_TO else Tuning.QUICK_CREATE


async def create_overlay(path: Path, size: int, *, backing: str = "", backing_format: str = "") -> None:
    """A new, empty qcow2 disk, over `backing` where given (a path; relative ones count from `path`'s directory).

    Raises Exhausted, Absent (the backing file), Lacking, Broken, Unreachable. What a failure leaves at `path` is
    the caller's to remove.
    """
    below = ("-b", backing, "-F", backing_format) if backing else ()
    await _img("create", "-q", "-f", "qcow2", *below, "-o", tuning(size), str(path), str(size))


async def resize(path: Path, format: str, size: int) -> None:
    """Make a disk that nobody has open larger. Raises Refused (it is open, or would shrink), Exhausted, Absent."""
    ahead = "metadata" if format == "qcow2" and await _writes_ahead(path, size) else "off"
    await _img("resize", "-q", "-f", format, f"--preallocation={ahead}", str(path), str(size))


async def _writes_ahead(path: Path, size: int) -> bool:
    """Over a backing file only subclusters allow metadata ahead of data."""
    (info,) = _read(await _img("info", "--output=json", "-U", "-f", "qcow2", str(path)))
    return size <= METADATA_UP_TO and bool(info.get("format-specific", {}).get("data", {}).get("extended-l2"))


async def info(path: Path, format: str) -> Info:
    """The top layer alone; also of a disk that is open elsewhere. Raises Absent, Broken (not of this format)."""
    return _info(_read(await _img("info", "--output=json", "-U", "-f", format, str(path)))[0])


async def chain(path: Path, format: str) -> tuple[Info, ...]:
    """All layers, top first; also of a disk that is open elsewhere. Raises Absent (any of them), Broken."""
    ran = await _img("info", "--output=json", "-U", "--backing-chain", "-f", format, str(path))
    return tuple(_info(layer) for layer in _read(ran))


async def measure(path: Path, format: str, *, to: str) -> Room:
    """What a conversion to format `to` would take."""
    ran = await _img("measure", "--output=json", "-f", format, "-O", to, str(path))
    said = json.loads(ran.stdout)
    return Room(Bytes(said["required"]), Bytes(said["fully-allocated"]))


def _read(ran: Ran) -> list[dict[str, Any]]:
    said = json.loads(ran.stdout)
    return said if isinstance(said, list) else [said]


def _info(said: dict[str, Any]) -> Info:
    specific = said.get("format-specific", {}).get("data", {})
    return Info(
        path=said["filename"],
        format=said["format"],
        virtual_size=Bytes(said["virtual-size"]),
        allocated=Bytes(said.get("actual-size", 0)),
        backing=said.get("full-backing-filename", said.get("backing-filename", "")),
        backing_format=said.get("backing-filename-format", ""),
        outside=specific.get("data-file", ""),
    )


async def _img(verb: str, *args: str) -> Ran:
    ran = await run(("qemu-img", verb, *args), timeout=TIMEOUT, check=False)
    if ran.code != 0:
        raise _translated(verb, ran)
    return ran


def _translated(verb: str, ran: Ran) -> AtollError:
    said = ran.stderr.decode(errors="replace").strip().removeprefix("qemu-img: ")
    told = f"qemu-img {verb}: {said[-500:] or f'exit code {ran.code}'}"
    if "No space left on device" in said or "Disk quota exceeded" in said or "File too large" in said:
        return Exhausted(told, hint="make room on the pool's disk")
    if "Failed to get" in said and "lock" in said:
        return Refused(told, hint="stop the instance that has it open")
    if "shrink" in said:
        return Refused(told, hint="a disk can only grow")
    if "No such file or directory" in said:
        return Absent(told)
    return Broken(told)
