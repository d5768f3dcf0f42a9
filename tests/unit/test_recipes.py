"""The parts that recipes are made of: trees, ELF files, kernel modules, ext4 from a tree."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from atoll.base.errors import Broken
from atoll.base.ids import Bytes
from atoll.base.units import MiB
from atoll.host.run import find, run
from atoll.image.recipes import elf, ext4, kernel
from atoll.image.recipes.kernel import Module
from atoll.image.recipes.tree import Kind, Tree

UUID = "3f0c2f54-0d1c-4b8e-9a51-6b7a5a0c7e11"
TIME = 1_577_836_800


def package(path: Path, *members: tuple[str, bytes, str]) -> Path:
    """A Debian package's content: (name, tar type, link target or text) each."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as out:
        for name, kind, text in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode = kind, 0o755
            if kind == tarfile.REGTYPE:
                member.size = len(text)
            else:
                member.linkname = text
            out.addfile(member, io.BytesIO(text.encode()))
    data = tar.getvalue()
    path.write_bytes(b"!<arch>\ndata.tar        0           0     0     100644  %-10d`\n" % len(data) + data)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "spool")


@pytest.mark.parametrize("name", ["../../evil", "./../evil", "usr/../../evil", "/../evil", "a/./../../evil"])
def test_no_package_climbs_out(tree: Tree, tmp_path: Path, name: str) -> None:
    with pytest.raises(Broken, match="not a path"):
        tree.unpack(package(tmp_path / "evil.deb", (name, tarfile.REGTYPE, "x")), lambda _: True)
    assert not (tmp_path.parent / "evil").exists()


def test_a_link_leads_no_write_outside(tree: Tree, tmp_path: Path) -> None:
    """A link to the host's directory, then a file through it: both stay names in the tree."""
    outside = tmp_path / "outside"
    outside.mkdir()
    members = (("./var/lib/x", tarfile.SYMTYPE, str(outside)), ("./var/lib/x/evil", tarfile.REGTYPE, "x"))
    tree.unpack(package(tmp_path / "evil.deb", *members), lambda _: True)
    assert os.listdir(outside) == []


def test_devices_are_refused(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(Broken, match="neither a file nor a link"):
        tree.unpack(package(tmp_path / "evil.deb", ("./dev/mem", tarfile.CHRTYPE, "")), lambda _: True)


def test_the_old_places_are_merged(tree: Tree, tmp_path: Path) -> None:
    members = (("./sbin/tool", tarfile.REGTYPE, "tool"), ("./lib/tool.so", tarfile.SYMTYPE, "/sbin/tool"))
    tree.unpack(package(tmp_path / "tool.deb", *members, ("./usr/share/doc/x", tarfile.REGTYPE, "")), bool)
    tree.merge_links()
    assert tree.nodes["usr/bin/tool"].kind is Kind.FILE
    assert tree.read("lib/tool.so") == b"tool"
    assert (tree.nodes["usr/sbin"].target, tree.nodes["lib"].target) == ("bin", "usr/lib")


def test_a_loop_of_links_ends(tree: Tree) -> None:
    tree.link("a", "b")
    tree.link("b", "a")
    assert tree.find("a") is None


async def test_what_a_program_needs() -> None:
    names = elf.needed(find("dpkg-deb").resolve().read_bytes())
    assert {"/lib64/ld-linux-x86-64.so.2", "libc.so.6"} <= set(names)
    with pytest.raises(Broken):
        elf.needed(b"#!/bin/sh\n")


def test_modules_in_order() -> None:
    modules = {
        "disk": Module("kernel/disk.ko", ("bus", "ring"), ("virtio:d2*",)),
        "bus": Module("kernel/bus.ko", ("ring",), ()),
        "ring": Module("kernel/ring.ko", (), ()),
    }
    assert kernel.in_order(modules, ["disk"]) == ("ring", "bus", "disk")
    files = kernel.index(modules)
    assert b"kernel/disk.ko: kernel/bus.ko kernel/ring.ko\n" in files["modules.dep"]
    assert files["modules.alias"] == b"alias virtio:d2* disk\n"
    with pytest.raises(Broken, match="no module floppy"):
        kernel.in_order(modules, ["floppy"])


async def test_ext4_is_sound_roots_and_the_same_twice(tree: Tree, tmp_path: Path) -> None:
    tree.directory("tmp", 0o1777)
    tree.file("usr/bin/tool", b"tool" * 5000, 0o4755)
    tree.link("usr/bin/alias", "tool")
    images = (tmp_path / "one", tmp_path / "two")
    for image in images:
        await ext4.make(tree, image, size=Bytes(64 * MiB), uuid=UUID, label="test", time=TIME)
    assert images[0].read_bytes() == images[1].read_bytes()
    await run(["e2fsck", "-f", "-n", str(images[0])])
    listed = (await run(["debugfs", "-R", "ls -p /usr/bin", str(images[0])])).text
    assert "/104755/0/0/tool/20000/" in listed
    assert "/120777/0/0/alias/" in listed
    assert "/041777/0/0/tmp/" in (await run(["debugfs", "-R", "ls -p /", str(images[0])])).text


async def test_ext4_that_cannot_be_filled_says_so(tree: Tree, tmp_path: Path) -> None:
    tree.file("large", b"\1" * (60 * MiB))
    with pytest.raises(Broken, match="could not be filled"):
        await ext4.make(tree, tmp_path / "x", size=Bytes(64 * MiB), uuid=UUID, label="test", time=TIME)
    tree.file("with space", b"")
    with pytest.raises(Broken, match="spaces"):
        await ext4.make(tree, tmp_path / "x", size=Bytes(64 * MiB), uuid=UUID, label="test", time=TIME)
