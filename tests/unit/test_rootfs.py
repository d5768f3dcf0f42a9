"""Root file systems as files: told by their content, unpacked in a cell that can do nothing else."""

import gzip
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.base.errors import Exhausted, Invalid, Lacking, Refused
from atoll.base.units import MiB
from atoll.host import rootfs
from tests.kit import eviltar

ROOT = os.geteuid() == 0
FIRST, COUNT = 0x7FFE0000, 65536
TOP = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(not ROOT, reason="only root unpacks root file systems")

PROBE = """
import os, socket, sys
"x".encode("idna")
sys.path.append(sys.argv[1])
from atoll.host.unpack import walls
tree = os.open(sys.argv[2], os.O_RDONLY | os.O_DIRECTORY)
ready, its_ready = os.pipe(); its_go, go = os.pipe()
worker = os.fork()
if worker:
    os.read(ready, 1); walls.write_maps(worker, 2147352576, 65536); os.write(go, b"y")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))
held = os.open("/etc/hostname", os.O_RDONLY)
walls.unshare(tree); os.write(its_ready, b"y"); os.read(its_go, 1)
walls.shut_in(); walls.bound(memory=1 << 30, cpu=60, largest=1 << 20); walls.drop()
def can(act):
    try: act()
    except Exception as error: return type(error).__name__
    return "yes"
big = lambda: os.posix_fallocate(os.open("/big", os.O_RDWR | os.O_CREAT), 0, 2 << 20)
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for name, act in {
    "list": lambda: print("root", os.listdir("/")), "up": lambda: print("above", os.listdir("/../..")),
    "passwd": lambda: open("/etc/passwd"), "proc": lambda: os.stat("/proc/self"), "chroot": lambda: os.chroot("/"),
    "mknod": lambda: os.mknod("/n", 0o20666, 259), "chown": lambda: os.chown("/", 70000, 0),
    "own": lambda: os.chown("/", 65535, 65535),
    "mount": lambda: walls._check(walls._libc.mount(b"n", b"/", b"tmpfs", 0, None)), "fork": os.fork,
    "unshare": lambda: walls._check(walls._libc.unshare(0x10000000)), "big": big, "kill": lambda: os.kill(1, 0),
    "net": lambda: socket.create_connection(("127.0.0.1", 22), 1),
    "trusted": lambda: os.setxattr("/", "trusted.overlay.opaque", b"y"),
}.items():
    print(name, can(act), flush=True)
"""


@needs_root
def test_the_cell_has_its_tree_and_nothing_else(tmp_path: Path) -> None:
    tree = tmp_path / "closed" / "tree"
    tree.mkdir(parents=True)
    (tree.parent).chmod(0o700)
    (tree / "mine").touch()
    os.chown(tree, FIRST, FIRST)
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROBE, str(TOP), str(tree)], capture_output=True, text=True, check=False
    )
    told = dict(line.split(" ", 1) for line in ran.stdout.splitlines())
    assert told.pop("root") == told.pop("above") == "['mine']", ran
    assert told.pop("list") == told.pop("up") == told.pop("own") == "yes"
    assert told == {
        "passwd": "FileNotFoundError", "proc": "FileNotFoundError", "chroot": "PermissionError",
        "mknod": "PermissionError", "chown": "OSError", "mount": "PermissionError", "fork": "BlockingIOError",
        "unshare": "OSError", "big": "OSError", "kill": "PermissionError", "net": "OSError",
        "trusted": "PermissionError",
    }, ran  # fmt: skip
    assert tree.stat().st_uid == FIRST + 65535


def honest(at: Path) -> Path:
    (at / "bin").mkdir(parents=True)
    (at / "etc").mkdir()
    (at / "bin/sh").write_bytes(b"\x7fELF\2\1" + bytes(12) + b"\xb7\0" + os.urandom(MiB))
    (at / "bin/sh").chmod(0o755)
    (at / "etc/os-release").write_text('NAME=Some\nPRETTY_NAME="Some Linux 1.2"\n')
    return at


@pytest.fixture
def packed(tmp_path: Path) -> dict[str, Path]:
    """The same tree in every format, as other tools write it."""
    tree = honest(tmp_path / "in")
    plain = tmp_path / "rootfs.tar"
    subprocess.run(["tar", "-C", str(tree), "-cf", str(plain), "."], check=True)
    paths = {name: tmp_path / f"rootfs.{name}" for name in rootfs.STREAMS}
    paths["tar.gz"].write_bytes(gzip.compress(plain.read_bytes(), 1))
    paths["tar.xz"].write_bytes(lzma.compress(plain.read_bytes(), preset=0))
    subprocess.run(["zstd", "-q", str(plain), "-o", str(paths["tar.zst"])], check=True)
    subprocess.run(["mksquashfs", str(tree), str(paths["squashfs"]), "-quiet", "-no-progress"], check=True)
    return paths


async def test_a_format_is_told_by_content(packed: dict[str, Path], tmp_path: Path) -> None:
    assert {name: await rootfs.format_of(path) for name, path in packed.items()} == {name: name for name in packed}
    for name, content in (
        ("text", b"hello"),
        ("empty", b""),
        ("gz", gzip.compress(b"hello")),
        ("bad", b"\x1f\x8bxx"),
    ):
        (tmp_path / name).write_bytes(content)
        assert await rootfs.format_of(tmp_path / name) == ""


@needs_root
@pytest.mark.parametrize("format", rootfs.STREAMS)
async def test_every_format_gives_the_same_tree(format: str, packed: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    facts = await rootfs.unpack(packed[format], format, out, first=FIRST, count=COUNT)
    assert facts.system == "Some Linux 1.2"
    assert (facts.arch, facts.shell, facts.init, facts.top) == ("aarch64", "/bin/sh", "", ("bin", "etc"))
    assert (out / "bin/sh").read_bytes() == (tmp_path / "in/bin/sh").read_bytes()
    assert {path.stat().st_uid for path in (out, *out.rglob("*"))} == {FIRST}
    await rootfs.remove(out)


async def attempt(path: Path, format: str, at: Path, largest: int = 64 * MiB, reserve: int = MiB) -> rootfs.Facts:
    at.mkdir()
    return await rootfs.unpack(path, format, at, first=FIRST, count=COUNT, largest=largest, reserve=reserve)


@needs_root
@pytest.mark.parametrize("format", ["tar.gz", "tar.xz", "tar.zst", "squashfs"])
async def test_a_cut_or_changed_file_is_told(format: str, packed: dict[str, Path], tmp_path: Path) -> None:
    content = packed[format].read_bytes()
    damages = [("cut", content[: len(content) // 2])]
    if format != "squashfs":  # which has no checksums
        damages.append(("changed", content[:4096] + bytes(999) + content[5095:]))
    for name, damaged in damages:
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(Invalid, match=r"cannot read it|damaged|truncated"):
            await attempt(tmp_path / name, format, tmp_path / f"{name}-out")


@needs_root
async def test_a_bomb_ends_at_the_bound(tmp_path: Path) -> None:
    """100 MiB of zeros in 100 KiB: more than is allowed, or than the disk has to give."""
    bomb = tmp_path / "bomb.tar.gz"
    bomb.write_bytes(gzip.compress(eviltar.archive(eviltar.file(b"bin/a", bytes(100 * MiB))), 9))
    with pytest.raises(Invalid, match="more than"):
        await attempt(bomb, "tar.gz", tmp_path / "one")
    with pytest.raises(Exhausted):
        await attempt(bomb, "tar.gz", tmp_path / "two", largest=1 << 40, reserve=1 << 60)


@needs_root
@pytest.mark.parametrize(
    ("members", "words", "hint"),
    [
        ((eviltar.file(b"project-1.0/configure", b"#!/bin/sh", mode=0o755),), "project-1.0", "tar -C project-1.0"),
        ((eviltar.file(b"a"), eviltar.file(b"b")), "a, b", "docker export"),
        ((), "nothing", "docker export"),
        ((eviltar.directory(b"bin"), eviltar.directory(b"usr")), "no program", "docker export"),
        ((eviltar.file(b"bin/sh", b"\x7fELF" + bytes(60), mode=0o644),), "no program", "docker export"),
    ],
)
async def test_what_is_not_a_root_file_system(
    members: tuple[bytes, ...], words: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / "a.tar").write_bytes(eviltar.archive(*members))
    with pytest.raises(Invalid, match="not a root file system") as caught:
        await attempt(tmp_path / "a.tar", "tar", tmp_path / "out")
    assert words in caught.value.message
    assert hint in caught.value.hint


@needs_root
async def test_cve_2019_14271_no_module_of_the_tree_is_loaded(tmp_path: Path) -> None:
    """docker cp loaded a library of the tree it had entered. Here the tree has Python's modules, and fails."""
    version = f"usr/lib/python{sys.version_info.major}.{sys.version_info.minor}"
    poison = b"open('/poisoned', 'w').close()"
    names = ("traceback", "linecache", "encodings/idna", "warnings", "tokenize", "string", "locale")
    members = [eviltar.file(f"{version}/{name}.py".encode(), poison) for name in names]
    members += [eviltar.file(b"etc/os-release", b"NAME=\xff\xfe\n"), eviltar.file(b"bin/\xff\xfe", b"x" * 600)]
    (tmp_path / "a.tar").write_bytes(b"".join(members) + b"\xff" * 512)
    with pytest.raises(Invalid, match="damaged"):
        await attempt(tmp_path / "a.tar", "tar", tmp_path / "out")
    assert (tmp_path / "out" / version / "traceback.py").exists()
    assert not (tmp_path / "out/poisoned").exists()


@needs_root
async def test_a_pipe_for_os_release_blocks_nobody(tmp_path: Path) -> None:
    members = (
        eviltar.header(b"etc/os-release", b"6"),
        eviltar.symlink(b"usr/lib/os-release", b"/etc/os-release"),
        eviltar.file(b"bin/sh", b"\x7fELF" + bytes(60), mode=0o755),
        eviltar.symlink(b"sbin/init", b"/sbin/init"),
    )
    (tmp_path / "a.tar").write_bytes(eviltar.archive(*members))
    facts = await attempt(tmp_path / "a.tar", "tar", tmp_path / "out")
    assert (facts.system, facts.init) == ("", "")


@pytest.mark.parametrize("case", ["CVE-2021-40153", "CVE-2021-41072"])
@needs_root
async def test_squashfs_that_made_unsquashfs_write_outside(case: str, tmp_path: Path) -> None:
    """A name with `..` in a directory (40153), and one name twice, a link and a directory (41072), put into the
    bytes of a filesystem that mksquashfs made without compression."""
    tree = tmp_path / "in"
    names = (b"xxAxxAxxAoutside", b"../../../outside") if case == "CVE-2021-40153" else (b"lin2", b"lin1")
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/sh").write_bytes(b"\x7fELF" + bytes(60))
    (tree / os.fsdecode(names[0])).mkdir()
    (tree / os.fsdecode(names[0]) / "pwned").write_text("x")
    if case == "CVE-2021-41072":
        (tree / "lin1").symlink_to(str(tmp_path))
    made = tmp_path / "evil.squashfs"
    argv = ["mksquashfs", str(tree), str(made), "-quiet", "-no-progress", "-noI", "-noD", "-noF", "-noX"]
    subprocess.run(argv, check=True)
    content = made.read_bytes()
    assert content.count(names[0]) == 1
    made.write_bytes(content.replace(*names))
    with pytest.raises(Invalid):
        await attempt(made, "squashfs", tmp_path / "out")
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "outside").exists()


async def test_who_may_not_is_told(
    packed: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Lacking, match="root"):
        await attempt(packed["tar"], "tar", tmp_path / "out")


async def test_a_deep_tree_goes(tmp_path: Path) -> None:
    """Deeper than any path can say."""
    at = tmp_path / "deep"
    at.mkdir()
    fd = os.open(at, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    await rootfs.remove(at)
    assert not at.exists()
    await rootfs.remove(at)


@needs_root
async def test_what_is_mounted_in_a_tree_is_not_removed(tmp_path: Path) -> None:
    at = tmp_path / "tree" / "here"
    at.mkdir(parents=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").touch()
    subprocess.run(["mount", "--bind", str(other), str(at)], check=True)
    try:
        with pytest.raises(Refused, match="mounted"):
            await rootfs.remove(tmp_path / "tree")
    finally:
        subprocess.run(["umount", str(at)], check=True)
    assert (other / "precious").exists()
    await rootfs.remove(tmp_path / "tree")
