"""The door to qemu-img. Formats are always named: a guest can write any image's magic number into a raw disk.

Sizes in bytes. Paths are absolute, so that QEMU never takes a part of one for a protocol. What a guest or a
stranger may have written is opened in a cell (confined.py), by its descriptor, without the files that it names;
a new overlay is made without opening what is below it.
"""

import enum
import json
import re
from pathlib import Path
from typing import Any

import msgspec

from atoll.base.errors import Absent, AtollError, Broken, Exhausted, Refused
from atoll.base.ids import Bytes
from atoll.base.units import GiB
from atoll.host import files
from atoll.host.confined import CHANGE, LOOK, confined, lent, name_of, new_uid
from atoll.host.inspector.qcow2 import Header, header
from atoll.host.inspector.window import window
from atoll.host.run import Ran, run

TIMEOUT = 120.0
"""Seconds. A create takes 10 ms on a local disk; a shared file system that hangs must end some time."""

METADATA_UP_TO = 32 * GiB
"""Largest disk whose qcow2 metadata is written ahead. That costs 1.3 ms and 180 KiB a GiB once, and makes writes to
new places 1.3 to 8 times faster (bench/pool.py)."""


_NODE = re.compile(r"'json:.*?}'|'/proc/self/fd/\d+'")
"""How qemu-img names what it was given in a cell."""


class Tuning(enum.StrEnum):
    """How an overlay's qcow2 is laid out (https://www.qemu.org/docs/master/interop/qcow2.html)."""

    QUICK_WRITES = "extended_l2=on,cluster_size=128k,preallocation=metadata"
    QUICK_CREATE = "compat=1.1"  # QEMU's defaults: without metadata written ahead 64k beats 128k with subclusters


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """One layer. `backing`: the next one's name as it is written there, "" where there is none; `outside`: a file
    that holds its data."""

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
    below: tuple[str, ...] = ()
    if backing:
        _check_there(path.parent / backing)
        below = ("-u", "-b", backing, "-F", backing_format)
    await _img("create", "-q", "-f", "qcow2", *below, "-o", tuning(size), str(path), str(size))


def _check_there(backing: Path) -> None:
    if not backing.exists():
        raise Absent(f"there is no file {backing} to stand on")


async def resize(path: Path, format: str, size: int) -> None:
    """Make a disk that nobody has open larger. Raises Refused (it is open, or would shrink), Exhausted, Absent."""
    ahead = "off"
    if format == "qcow2":
        top = await files.in_thread(_header, path)
        if top.data_file:  # nothing of ours has one: its guest's QEMU wrote it
            raise Broken(f"{path} names another file for its data: {top.data_file[:200]!r}")
        if top.subclusters and size <= METADATA_UP_TO:  # over a backing file only they allow metadata ahead of data
            ahead = "metadata"
    await _in_cell("resize", path, format, "-q", f"--preallocation={ahead}", more=(str(size),), write=True)


def _header(path: Path) -> Header:
    with window(path) as seen:
        return header(seen)


async def info(path: Path, format: str) -> Info:
    """The top layer alone; also of a disk that is open elsewhere. Raises Absent, Broken (not of this format)."""
    said = json.loads((await _in_cell("info", path, format, "--output=json", "-U")).stdout)
    specific = said.get("format-specific", {}).get("data", {})
    return Info(
        format=said["format"],
        virtual_size=Bytes(said["virtual-size"]),
        allocated=Bytes(said.get("actual-size", 0)),
        backing=said.get("backing-filename", ""),
        backing_format=said.get("backing-filename-format", ""),
        outside=specific.get("data-file", ""),
    )


async def measure(path: Path, format: str, *, to: str) -> Room:
    """What a conversion of this layer to format `to` would take."""
    ran = await _in_cell("measure", path, format, "--output=json", "-O", to)
    said = json.loads(ran.stdout)
    return Room(Bytes(said["required"]), Bytes(said["fully-allocated"]))


async def _in_cell(
    verb: str, path: Path, format: str, *args: str, more: tuple[str, ...] = (), write: bool = False
) -> Ran:
    """qemu-img on one file whose format is told; what that names is not followed."""
    uid = new_uid()
    with lent(path, uid, write=write) as fd:
        node: dict[str, Any] = {"driver": format, "file": {"driver": "file", "filename": name_of(fd)}}
        if format == "qcow2":
            node["backing"] = None
        argv = ("qemu-img", verb, *args, f"json:{json.dumps(node)}", *more)
        ran = await confined(argv, fds=(fd,), uid=uid, timeout=TIMEOUT, bounds=CHANGE if write else LOOK)
    return _judged(verb, ran, path)


async def _img(verb: str, *args: str) -> Ran:
    return _judged(verb, await run(("qemu-img", verb, *args), timeout=TIMEOUT, check=False), None)


def _judged(verb: str, ran: Ran, path: Path | None) -> Ran:
    if ran.code != 0:
        raise translated(verb, ran, path)
    return ran


def translated(verb: str, ran: Ran, path: Path | None) -> AtollError:
    said = ran.stderr.decode(errors="replace").strip().removeprefix("qemu-img: ")
    if path is not None:
        said = _NODE.sub(repr(str(path)), said)
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
