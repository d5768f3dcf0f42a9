"""What a file is, by every signature that it bears: more than one, and somebody hides something.

A signature here is what QEMU's own probing goes by (block/*.c, `.bdrv_probe`) and what disk tools look for.
"""

import re

from atoll.host.inspector.window import Window

_HEADS = {
    b"QED\0": "qed",
    b"KDMV": "vmdk",
    b"COWD": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vhd",
    b"LUKS\xba\xbe": "luks",
    b"WithoutFreeSpace": "parallels",
    b"WithouFreSpacExt": "parallels",
    b"Bochs Virtual HD Image": "bochs",
    b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop": "cloop",
    b"\x1f\x8b": "gz",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"BZh": "bz2",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x7fELF": "elf",
}
_TAR = (257, b"ustar")
_VDI = (64, b"\x7f\x10\xda\xbe")
_OPTICAL = frozenset({b"CD001", b"BEA01", b"NSR02", b"NSR03"})
_DESCRIPTOR = re.compile(rb"(\s*(#[^\n\0]*)?\n)*\s*version\s*=\s*[123]|#\s*disk\s+descriptorfile", re.IGNORECASE)
_EXTENT = re.compile(rb'^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+\w+\s+"([^"\n]*)"', re.MULTILINE | re.IGNORECASE)
TEXT = 64 * 1024
"""Bytes of a VMDK descriptor that are looked at; QEMU takes no longer ones."""

PLAIN = frozenset({"gpt", "mbr", "iso"})
"""Formats whose bytes are the disk's bytes."""
COMPRESSED = frozenset({"gz", "xz", "zst"})


def recognise(seen: Window) -> tuple[str, ...]:
    """Names of all formats whose signatures it bears, sorted; () for what could only be raw."""
    head = seen.peek(0, 4096)
    found = {name for magic, name in _HEADS.items() if head.startswith(magic)}
    if head.startswith(b"QFI\xfb"):
        found.add("qcow" if head[4:8] == b"\0\0\0\x01" else "qcow2")
    if head[_TAR[0] :].startswith(_TAR[1]):
        found.add("tar")
    if head[_VDI[0] :].startswith(_VDI[1]):
        found.add("vdi")
    if _DESCRIPTOR.match(head):
        found.add("vmdk")
    foot = seen.peek(-512, 512)
    if foot.startswith(b"conectix") or foot[1:].startswith(b"conectix"):  # some tools' footers have 511 bytes
        found.add("vhd")
    if foot.startswith(b"koly"):
        found.add("dmg")
    return tuple(sorted(found | _plain(seen, head)))


def _plain(seen: Window, head: bytes) -> set[str]:
    found = set()
    if any(seen.peek(sector * 2048 + 1, 5) in _OPTICAL for sector in (16, 17, 18)):
        found.add("iso")
    if head[510:512] == b"\x55\xaa" and all(head[at] in (0, 0x80) for at in (446, 462, 478, 494)):
        found.add("mbr")
    if head[512:520] == b"EFI PART" or seen.peek(4096, 8) == b"EFI PART":
        found.add("gpt")
    return found


def named_by_vmdk(seen: Window) -> tuple[str, ...]:
    """The files that a VMDK's descriptor names, its own sparse extent among them."""
    texts = [seen.peek(0, TEXT)]
    if texts[0].startswith(b"KDMV"):  # the descriptor's sector and length in sectors
        at, length = (int.from_bytes(texts[0][place : place + 8], "little") for place in (28, 36))
        texts.append(seen.peek(min(at * 512, seen.size), min(length * 512, TEXT)))
    names = {name for text in texts for name in _EXTENT.findall(text)}
    return tuple(sorted(name.decode(errors="replace")[:200] for name in names))
