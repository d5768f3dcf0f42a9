"""Archives of root file systems: honest ones come out whole, whoever made them; the others are refused, each by its
name, and write nothing outside."""

import contextlib
import io
import os
import random
import stat
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from atoll.host.unpack.tarstream import Archive, Hostile
from atoll.host.unpack.tree import Bounds, Full, Tree
from tests.kit import eviltar as evil

MIB = 1 << 20
ROOT = os.geteuid() == 0
USUAL = Bounds(bytes=64 * MIB)
HUGE = b"9000000000000000000"
LONG = b"n" * 300


def take(content: bytes, at: Path, bounds: Bounds = USUAL) -> Tree:
    at.mkdir(parents=True, exist_ok=True)
    fd = os.open(at, os.O_RDONLY | os.O_DIRECTORY)
    try:
        tree = Tree(fd, bounds)
        tree.take(Archive(io.BytesIO(content)))
        return tree
    finally:
        os.close(fd)


def holes(map: bytes, size: bytes = b"8") -> bytes:
    return evil.pax({b"GNU.sparse.map": map, b"GNU.sparse.size": size})


REFUSED: dict[str, tuple[bytes, str]] = {
    "CVE-2007-4559 a member climbs": (evil.archive(evil.file(b"../../outside/pwned", b"x")), "climbs"),
    "a member climbs by its prefix": (evil.archive(evil.header(b"pwned", prefix=b"../outside")), "climbs"),
    "CVE-2016-6321 a climb hides behind a good beginning": (evil.archive(evil.file(b"etc/../../pwned")), "climbs"),
    "an absolute member": (evil.archive(evil.file(b"/tmp/pwned", b"x")), "absolute"),
    "CVE-2024-12718 times and modes outside": (evil.archive(evil.directory(b"x/../..", 0o777)), "climbs"),
    "CVE-2025-4138 a link out, then a file through it": (
        evil.archive(evil.symlink(b"a", b"../outside"), evil.file(b"a/pwned")), "climbs"),
    "CVE-2025-4330 an absolute link, then a file through it": (
        evil.archive(evil.symlink(b"a", b"/tmp"), evil.file(b"a/pwned")), "no directory"),
    "CVE-2025-4517 links longer than realpath can tell": (evil.links_beyond_realpath(), "no directory"),
    "CVE-2021-32803 a directory becomes a link": (
        evil.archive(evil.directory(b"a"), evil.symlink(b"a", b"/tmp"), evil.file(b"a/pwned")), "twice"),
    "a file through a link inside": (
        evil.archive(evil.directory(b"b"), evil.symlink(b"a", b"b"), evil.file(b"a/c")), "no directory"),
    "a link becomes a file": (evil.archive(evil.symlink(b"a", b"/tmp/pwned"), evil.file(b"a", b"x")), "twice"),
    "a file comes twice": (evil.archive(evil.file(b"a", b"x"), evil.file(b"./a", b"y")), "twice"),
    "a file is a directory": (evil.archive(evil.file(b"a"), evil.file(b"a/b")), "no directory"),
    "a directory where a file is": (evil.archive(evil.file(b"a"), evil.directory(b"a")), "twice"),
    "the root is a link": (evil.archive(evil.symlink(b".", b"/tmp")), "root"),
    "the root is a pipe": (evil.archive(evil.header(b"./", b"6")), "root"),
    "a hard link out": (evil.archive(evil.hardlink(b"a", b"../outside/secret")), "climbs"),
    "an absolute hard link": (evil.archive(evil.hardlink(b"a", b"/etc/shadow")), "absolute"),
    "CVE-2025-4435 a hard link through a link": (
        evil.archive(evil.symlink(b"a", b"/etc"), evil.hardlink(b"b", b"a/shadow")), "no directory"),
    "a hard link to what comes later": (evil.archive(evil.hardlink(b"b", b"a"), evil.file(b"a")), "before"),
    "a hard link to a directory": (evil.archive(evil.directory(b"a"), evil.hardlink(b"b", b"a")), "directory"),
    "a hard link to the root": (evil.archive(evil.hardlink(b"b", b".")), "before"),
    "a hard link with content": (evil.archive(evil.header(b"b", b"1", link=b"a", size=512), bytes(512)), "content"),
    "a directory with content": (evil.archive(evil.header(b"b", b"5", size=512), bytes(512)), "content"),
    "the host's disk": (evil.archive(evil.header(b"disk", b"4", device=(8, 0))), "device"),
    "the host's memory": (evil.archive(evil.header(b"mem", b"3", device=(1, 1))), "device"),
    "a whiteout": (evil.archive(evil.header(b"etc", b"3", device=(0, 0))), "layer"),
    "an owner beyond": (evil.archive(evil.file(b"a", mode=0o4755, uid=70_000)), "65535"),
    "an owner beyond in base 256": (evil.archive(evil.file(b"a", uid=b"\x80" + bytes(3) + b"\1\0\0\0")), "65535"),
    "an owner beyond by pax": (evil.archive(evil.pax({b"uid": b"4294967296"}), evil.file()), "65535"),
    "a negative owner": (evil.archive(evil.file(b"a", uid=b"\xff" * 8)), "no owner"),
    "an overlay is redirected": (
        evil.archive(evil.pax({b"SCHILY.xattr.trusted.overlay.redirect": b"/etc"}), evil.directory(b"a")), "steer"),
    "a user's overlay is redirected": (
        evil.archive(evil.pax({b"SCHILY.xattr.user.overlay.redirect": b"/etc"}), evil.directory(b"a")), "steer"),
    "capabilities of an odd form": (
        evil.archive(evil.pax({b"SCHILY.xattr.security.capability": b"\1" * 12}), evil.file()), "odd form"),
    "an attribute with a NUL": (evil.archive(evil.pax({b"SCHILY.xattr.user.a\x01": b""}), evil.file()), "odd name"),
    "a NUL in a name": (evil.archive(evil.pax({b"path": b"a\0b"}), evil.file()), "control"),
    "a newline in a name": (evil.archive(evil.file(b"a\nroot:x:0:0")), "control"),
    "an escape in a name": (evil.archive(evil.file(b"\x1b[2J")), "control"),
    "a long name": (evil.archive(evil.pax({b"path": LONG}), evil.file()), "300 bytes"),
    "a long path": (evil.archive(evil.long_name(b"/".join([b"n" * 99] * 50)), evil.file()), "bytes"),
    "a deep path": (evil.archive(evil.pax({b"path": b"d/" * 500}), evil.directory(b"d")), "deep"),
    "a link that is no path": (evil.archive(evil.symlink(b"a", b"")), "no path"),
    "a link with a newline": (evil.archive(evil.symlink(b"a", b"b\nc")), "no path"),
    "a link that climbs": (evil.archive(evil.symlink(b"usr/lib/a", b"../../../etc/shadow")), "climbs"),
    "all members get one name": (evil.archive(evil.pax({b"path": b"a"}, b"g"), evil.file()), "all members"),
    "all members get one size": (evil.archive(evil.pax({b"size": b"9"}, b"g"), evil.file()), "all members"),
    "two names": (evil.archive(evil.long_name(b"good"), evil.pax({b"path": b"evil"}), evil.file()), "twice"),
    "two long names": (evil.archive(evil.long_name(b"good"), evil.long_name(b"evil"), evil.file()), "two headers"),
    "two pax headers": (
        evil.archive(evil.pax({b"path": b"b"}), evil.pax({b"uid": b"1"}), evil.file()), "two headers"),
    "a name twice in one header": (
        evil.archive(evil.raw_pax(evil.record(b"path", b"b") + evil.record(b"path", b"c")), evil.file()), "twice"),
    "CVE-2019-20907 a record of no length": (evil.archive(evil.raw_pax(b"0 path=x\n"), evil.file()), "record"),
    "a record longer than its header": (evil.archive(evil.raw_pax(b"99 path=x\n"), evil.file()), "record"),
    "a record without end": (evil.archive(evil.raw_pax(b"9 path=xy"), evil.file()), "record"),
    "a header of gigabytes": (evil.archive(evil.header(b"p", b"x", size=3 << 30)), "header of"),
    "a long name of gigabytes": (evil.archive(evil.header(b"p", b"L", size=3 << 30)), "header of"),
    "CVE-2025-8194 a negative size": (evil.archive(evil.header(size=b"\xff" * 11 + b"\0")), "no size"),
    "a negative size by pax": (evil.archive(evil.pax({b"size": b"-512"}), evil.file()), "no size"),
    "a size that is none": (evil.archive(evil.header(size=b"12x4567")), "no size"),
    "an endless size": (evil.archive(evil.header(size=b"\x80" + b"\xff" * 11)), "bytes at"),
    "CVE-2024-6232 digits without end": (evil.archive(evil.raw_pax(b"1" * 900_000), evil.file()), "record"),
    "a kind that is none": (evil.archive(evil.header(b"a", b"Z")), "kind"),
    "a volume of several": (evil.archive(evil.header(b"a", b"M")), "kind"),
    "a sparse file of exabytes": (
        evil.archive(holes(b"0,0", HUGE), evil.file()),
        "bytes at"),
    "parts that overlap": (
        evil.archive(holes(b"0,4,2,4"), evil.file(b"a", b"x" * 8)),
        "overlap"),
    "parts outside": (
        evil.archive(holes(b"9,4"), evil.file(b"a", b"x" * 4)),
        "outside"),
    "parts of another size": (
        evil.archive(holes(b"0,4"), evil.file(b"a", b"x" * 8)),
        "another size"),
    "a map of a million holes": (
        evil.archive(holes(b"0," * 200_000 + b"0"), evil.file()),
        "parts"),
    "a map without end": (
        evil.archive(evil.pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"8"}),
                     evil.file(b"a", b"999999999\n" * 60)), "without end"),
    "a map of an unknown form": (
        evil.archive(evil.pax({b"GNU.sparse.offset": b"0", b"GNU.sparse.numbytes": b"0"}), evil.file()), "form"),
    "a header that is none": (evil.file(b"a") + b"x" * 512 + evil.END, "header is none"),
    "a wrong checksum": (b"b" + evil.archive(evil.file(b"a"))[1:], "checksum"),
    "no end": (evil.file(b"a", b"x" * 512), "truncated"),
    "an end in a file": (evil.file(b"a", b"x" * 5120)[:-512], "truncated"),
    "an end in a header": (evil.file(b"a")[:100], "truncated"),
    "nothing": (b"", "truncated"),
    "much after the end": (evil.archive(evil.file()) + bytes(80 * MIB), "follows"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    content, words = REFUSED[case]
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("of the host")
    began = time.monotonic()
    with pytest.raises(Hostile, match=words):
        take(content, tmp_path / "deep" / "tree")
    assert time.monotonic() - began < 20
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert outside.joinpath("secret").stat().st_nlink == 1
    assert not Path("/tmp/pwned").exists()


def test_a_bomb_of_bytes_ends_at_the_bound(tmp_path: Path) -> None:
    with pytest.raises(Hostile, match="more than"):
        take(evil.archive(evil.file(b"a", bytes(2 * MIB))), tmp_path / "t", Bounds(bytes=MIB))


def test_a_bomb_of_members_ends_at_the_bound(tmp_path: Path) -> None:
    many = evil.archive(*(evil.directory(b"%d" % number) for number in range(200)))
    with pytest.raises(Hostile, match="members"):
        take(many, tmp_path / "t", Bounds(bytes=MIB, members=100))


def test_the_host_keeps_its_reserve(tmp_path: Path) -> None:
    with pytest.raises(Full):
        take(evil.archive(evil.file()), tmp_path / "t", Bounds(bytes=MIB, reserve=1 << 60))


def test_devices_that_every_container_has_are_left_out(tmp_path: Path) -> None:
    content = evil.archive(
        evil.directory(b"dev"),
        evil.header(b"dev/sda", b"4", device=(8, 0)),
        evil.header(b"var/spool/postfix/dev/null", b"3", device=(1, 3)),
    )
    assert take(content, tmp_path / "t").counted.devices == 2
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["dev"]


def test_a_link_to_an_absolute_path_is_text(tmp_path: Path) -> None:
    take(evil.archive(evil.symlink(b"etc/mtab", b"/proc/mounts"), evil.symlink(b"a/b", b"../c")), tmp_path / "t")
    assert os.readlink(tmp_path / "t/etc/mtab") == "/proc/mounts"
    assert os.readlink(tmp_path / "t/a/b") == "../c"


@pytest.mark.skipif(not ROOT, reason="only root gives files away")
@pytest.mark.parametrize("version", [2, 3])
def test_capabilities_and_setuid_stay(version: int, tmp_path: Path) -> None:
    value = evil.capability(version, 4242)
    capable = evil.pax({b"SCHILY.xattr.security.capability": value})
    take(evil.archive(capable, evil.file(b"ping", b"x", mode=0o4755)), tmp_path / "t")
    assert os.getxattr(tmp_path / "t/ping", "security.capability") == evil.capability(2)
    assert stat.S_IMODE((tmp_path / "t/ping").stat().st_mode) == 0o4755


def test_attributes_of_another_host_are_left_out(tmp_path: Path) -> None:
    given = {b"SCHILY.xattr.security.selinux": b"x", b"SCHILY.xattr.system.posix_acl_access": b"x"}
    content = evil.archive(evil.pax({**given, b"SCHILY.xattr.user.note": b"\xff\0\n"}), evil.file())
    assert take(content, tmp_path / "t").counted.attributes == 2
    assert os.listxattr(tmp_path / "t/a") == ["user.note"]
    assert os.getxattr(tmp_path / "t/a", "user.note") == b"\xff\0\n"


def test_every_cut_of_an_archive_is_told(tmp_path: Path) -> None:
    whole = evil.archive(evil.directory(b"d"), evil.pax({b"path": b"d/x" * 9}), evil.file(b"a", b"x" * 700))
    for end in range(0, len(whole) - 1024, 97):
        with pytest.raises(Hostile):
            take(whole[:end], tmp_path / str(end))


def test_noise_is_refused_or_harmless(tmp_path: Path) -> None:
    """A thousand changed archives: nothing else than a refusal comes of them, and nothing is outside."""
    draw = random.Random(7)
    whole = bytearray(
        evil.archive(
            evil.directory(b"d"),
            evil.symlink(b"d/l", b"../d"),
            evil.pax({b"path": b"d/file", b"GNU.sparse.map": b"0,4,8,2", b"GNU.sparse.size": b"64"}),
            evil.file(b"x", b"abcdef"),
            evil.hardlink(b"d/h", b"d/file"),
            evil.long_name(b"e" * 120),
            evil.file(b"x", b"y" * 600),
        )
    )
    for number in range(1000):
        changed = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        for at in range(0, len(changed) - 511, 512):  # its checksums right again, so that more than those are tried
            block = changed[at : at + 512]
            if block[257:262] == b"ustar" and draw.random() < 0.9:
                changed[at + 148 : at + 156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:]))
        outer = tmp_path / str(number)
        outer.mkdir()
        with contextlib.suppress(Hostile, PermissionError):
            take(bytes(changed), outer / "t")
        assert [path.name for path in outer.iterdir()] == ["t"]


def honest(at: Path) -> None:
    """A new tree with everything that one may hold."""
    for folder in ("bin", "etc", "var/log", "usr/" + "d" * 90, "tmp"):
        (at / folder).mkdir(parents=True)
    (at / "bin/tool").write_bytes(b"\x7fELF" + bytes(100))
    (at / "bin/tool").chmod(0o4755)
    (at / "bin/sh").symlink_to("tool")
    (at / "etc/mtab").symlink_to("/proc/self/mounts")
    os.link(at / "bin/tool", at / "bin/again")
    (at / "etc/ünïcode \\x2d").write_text("x" * 1000)
    (at / ("usr/" + "d" * 90) / ("f" * 90)).write_text("long")
    with (at / "var/log/lastlog").open("wb") as file:
        file.truncate(5 * MIB)
        file.seek(2 * MIB)
        file.write(b"in the middle")
    os.mkfifo(at / "var/log/fifo", 0o640)
    (at / "tmp").chmod(0o1777)
    for path in (*at.rglob("*"), at):
        os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)


def seen(at: Path) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for path in sorted(at.rglob("*")):
        now = path.lstat()
        links = now.st_nlink if path.is_file() else 0
        body = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found.append((str(path.relative_to(at)), now.st_mode, now.st_uid, int(now.st_mtime), links, body))
    return found


WRITERS = {
    "gnu": ("tar", "--format=gnu", "-cf", "-", "."),
    "gnu sparse": ("tar", "--format=gnu", "-S", "-cf", "-", "."),
    "posix": ("tar", "--format=posix", "-cf", "-", "."),
    "posix sparse": ("tar", "--format=posix", "-S", "-cf", "-", "."),
    "posix sparse 0.1": ("tar", "--format=posix", "-S", "--sparse-version=0.1", "-cf", "-", "."),
    "busybox": ("busybox", "tar", "-cf", "-", "."),
}


@pytest.mark.parametrize("writer", [*WRITERS, "python"])
def test_an_honest_tree_comes_out_as_it_was(writer: str, tmp_path: Path) -> None:
    honest(tmp_path / "in")
    if writer == "python":
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            tar.add(tmp_path / "in", ".")
        content = packed.getvalue()
    else:
        content = subprocess.run(WRITERS[writer], cwd=tmp_path / "in", check=True, capture_output=True).stdout
    tree = take(content, tmp_path / "out")
    assert seen(tmp_path / "out") == seen(tmp_path / "in")
    assert tree.counted.machines == {0: 1}
    if "sparse" in writer:
        assert (tmp_path / "out/var/log/lastlog").stat().st_blocks * 512 < MIB
