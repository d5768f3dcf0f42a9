"""The verdict on a file that somebody brought: what it is, or why it is not taken."""

from pathlib import Path

import msgspec

from atoll.base.ids import Bytes
from atoll.base.units import show_size
from atoll.host.inspector import qcow2
from atoll.host.inspector.sniff import COMPRESSED, PLAIN, named_by_vmdk, recognise
from atoll.host.inspector.window import Window, bad, window

TAKEN = ("qcow2", "raw", "iso")
"""Formats that an image may have. An ISO is raw bytes, of a disc rather than of a disk."""
SECTOR = 512


class Facts(msgspec.Struct, frozen=True):
    """`format`: of TAKEN. `virtual_size`: bytes a guest sees."""

    format: str
    virtual_size: Bytes


def inspect(path: Path, *, said: str = "", largest: int = qcow2.LARGEST) -> Facts:
    """Look at it without trusting a byte. `said`: the format it was said to have, "" for none; `largest`: bytes of
    a guest's disk.

    Raises Invalid: not what was said, of no format that is taken, or made to do harm. Blocks.
    """
    with window(path) as seen:
        return _judged(seen, said, largest)


def packing(path: Path) -> str:
    """How it is compressed, "" where it is not. Blocks."""
    with window(path) as seen:
        return next((name for name in recognise(seen) if name in COMPRESSED), "")


def _judged(seen: Window, said: str, largest: int) -> Facts:
    if said and said not in TAKEN:
        raise bad(f"an image has the format {', '.join(TAKEN)}, not {said[:40]}", "leave --format out")
    if not seen.size:
        raise bad("it is empty")
    found = recognise(seen)
    odd = [name for name in found if name not in PLAIN]
    if not odd:
        return _plain(seen, said, found, largest)
    if len(odd) > 1:
        raise bad(f"it looks like {' and '.join(odd)} at once: somebody hides something in it")
    if odd[0] == "vmdk" and (names := named_by_vmdk(seen)):
        raise bad(f"it is a vmdk whose descriptor names {', '.join(map(repr, names))[:300]}", _convert("vmdk"))
    if odd[0] != "qcow2":
        raise bad(f"it is {odd[0]}, which cannot be an image's disk", _convert(odd[0]))
    if said not in ("", "qcow2"):
        raise bad(f"it was said to be {said} and is qcow2", "say --format qcow2 if that is what you expect")
    return Facts("qcow2", Bytes(qcow2.walk(seen, largest).virtual_size))


def _plain(seen: Window, said: str, found: tuple[str, ...], largest: int) -> Facts:
    if said == "qcow2":
        raise bad(f"it was said to be qcow2 and looks like {', '.join(found) or 'raw'}")
    if said == "iso" and "iso" not in found:
        raise bad("it was said to be an ISO image and has no volume descriptor of one")
    size = -(-seen.size // SECTOR) * SECTOR
    if size > largest:
        raise bad(f"its disk would have {show_size(size)}", f"{show_size(largest)} are allowed (images.max_size)")
    if not said and not found:
        raise bad(
            "it has no partition table and no signature of a disk image",
            "if it is a disk without partitions: --format raw",
        )
    return Facts(said or ("iso" if "iso" in found else "raw"), Bytes(size))


def _convert(format: str) -> str:
    known = {"vhd": "vpc", "vhdx": "vhdx", "vdi": "vdi", "vmdk": "vmdk", "qed": "qed", "qcow": "qcow"}
    if format in known:
        return f"convert it where you trust it: qemu-img convert -f {known[format]} -O qcow2 OLD NEW"
    return "unpack it first" if format in ("zip", "7z", "tar", "bz2") else ""
