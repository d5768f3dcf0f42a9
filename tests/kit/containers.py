"""Root file systems for containers, made of busybox in a moment, and the host of the engine's contract suite."""

import os
import secrets
import shutil
from pathlib import Path

from atoll.storage.model import FOREIGN_BASE, Attachment, Layer

INIT = """#!/bin/sh
trap 'exit 0' USR2 TERM
echo "hello from $(hostname)"
while :; do sleep 1000 & wait $!; done
"""
INITTAB = """::sysinit:/bin/echo hello from init
::respawn:-/bin/sh
"""


def make_tree(at: Path, *, init: str = "") -> Path:
    """A tree owned by the FOREIGN ids: busybox under all its names as userland, its init or a script as the first
    program."""
    for folder in ("bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp", "root", "var"):
        (at / folder).mkdir(parents=True)
    (at / "tmp").chmod(0o1777)
    busybox = shutil.which("busybox")
    assert busybox, "apt-get install busybox-static"
    shutil.copy(busybox, at / "bin/busybox")
    for applet in os.popen(f"{busybox} --list").read().split():
        if not (at / "bin" / applet).exists():
            (at / "bin" / applet).symlink_to("busybox")
    (at / "etc/inittab").write_text(INITTAB)
    (at / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:u:/tmp:/bin/sh\n")
    (at / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
    if init:
        (at / "sbin/init").write_text(init)
        (at / "sbin/init").chmod(0o755)
    else:
        (at / "sbin/init").symlink_to("../bin/busybox")
    own(at)
    return at


def own(at: Path) -> None:
    """Give it the owner of every tree on a disk."""
    for where, folders, files in os.walk(at):
        for name in (".", *folders, *files):
            os.lchown(Path(where) / name, FOREIGN_BASE, FOREIGN_BASE)


def make_volume(at: Path, tree: Path) -> Attachment:
    """As a pool attaches a root volume over a tree."""
    (at / "upper").mkdir(parents=True)
    (at / "work").mkdir()
    os.chown(at / "upper", FOREIGN_BASE, FOREIGN_BASE)
    return Attachment((Layer(str(at), "tree"), Layer(str(tree), "tree", read_only=True)))


def tag() -> str:
    return secrets.token_hex(3)
