"""Root file systems as images, through a real daemon: whoever packed them, whatever is in them, nothing left."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import eviltar
from tests.kit.daemon import MIB, Daemon, daemon, until
from tests.kit.imported import as_before, content, refused, sha256


@pytest.fixture(scope="module")
def world(base: Path) -> Iterator[Daemon]:
    with daemon(base) as made:
        (made.state / "atoll.toml").write_text('[images]\nmax_size = "640MiB"\n')
        made.start()
        yield made


@pytest.fixture
def atoll(world: Daemon) -> Iterator[Daemon]:
    with as_before(world):
        yield world


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small distribution of its own."""
    at = tmp_path / "in"
    for folder in ("bin", "etc", "sbin", "dev", "root"):
        (at / folder).mkdir(parents=True)
    subprocess.run(["cp", "/usr/bin/busybox", str(at / "bin/busybox")], check=True)
    for name in ("bin/sh", "sbin/init"):
        (at / name).symlink_to("/bin/busybox")
    (at / "etc/os-release").write_text('PRETTY_NAME="Small Linux 3"\n')
    (at / "etc/noise").write_bytes(os.urandom(2 * MIB))
    os.mknod(at / "dev/null", 0o20666, os.makedev(1, 3))
    return at


def pack(tree: Path, tool: str) -> Path:
    path = tree.parent / f"rootfs.{tool}"
    if tool == "squashfs":
        argv = ["mksquashfs", str(tree), str(path), "-quiet", "-no-progress"]
    elif tool == "busybox":
        argv = ["busybox", "tar", "-C", str(tree), "-czf", str(path), "."]
    else:
        argv = ["tar", "-C", str(tree), f"--{tool}", "-cf", str(path), "."]
    subprocess.run(argv, check=True)
    return path


def trees(atoll: Daemon) -> list[str]:
    return sorted(path.name for path in (atoll.state / "images/trees").iterdir())


@pytest.mark.parametrize("tool", ["gzip", "xz", "zstd", "busybox", "squashfs"])
def test_one_comes_in_and_goes_out_as_it_was(atoll: Daemon, tree: Path, tool: str, tmp_path: Path) -> None:
    path = pack(tree, tool)
    atoll.atoll("image", "import", str(path), "--name", "small", "--sha256", sha256(path))
    found = atoll.json("image", "show", "small")["manifest"]
    assert (found["kind"], found["arch"], found["system"]) == ("rootfs", "x86_64", "Small Linux 3")
    file = found["files"]["rootfs"]
    assert file["digest"] == f"sha256:{sha256(path)}"
    assert file["format"] == {"squashfs": "squashfs", "xz": "tar.xz", "zstd": "tar.zst"}.get(tool, "tar.gz")
    told = atoll.atoll("image", "show", "small").out
    assert "container" in told
    assert "Small Linux 3" in told
    assert " container " in atoll.atoll("image", "list").out
    [name] = trees(atoll)
    unpacked = atoll.state / "images/trees" / name / "tree"
    assert (unpacked / "etc/noise").read_bytes() == (tree / "etc/noise").read_bytes()
    assert not (unpacked / "dev/null").exists()
    atoll.atoll("image", "export", "small", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
    atoll.atoll("image", "import", str(path), "--name", "other", "--format", "rootfs")
    assert trees(atoll) == [name], "one tree serves all names"
    atoll.atoll("image", "delete", "small")
    assert trees(atoll) == [name]
    atoll.atoll("image", "delete", "other")
    assert trees(atoll) == []


def test_what_strangers_make_is_refused_and_nothing_of_it_stays(atoll: Daemon, tree: Path, tmp_path: Path) -> None:
    before = content(atoll)
    shell = eviltar.file(b"bin/sh", b"\x7fELF" + bytes(60), mode=0o755)
    cases = {
        "climbs": (eviltar.archive(shell, eviltar.file(b"../../../../tmp/pwned")), "climbs"),
        "through a link": (
            eviltar.archive(shell, eviltar.symlink(b"etc", b"/etc"), eviltar.file(b"etc/cron.d/pwned", b"x")),
            "no directory",
        ),
        "a device": (eviltar.archive(shell, eviltar.header(b"disk", b"4", device=(8, 0))), "device"),
        "setuid of the host": (eviltar.archive(shell, eviltar.file(b"su", mode=0o4755, uid=70_000)), "65535"),
        "a source": (
            eviltar.archive(eviltar.file(b"src-1/configure", b"#!", mode=0o755)),
            "not a root file system",
        ),
        "truncated": (pack(tree, "gzip").read_bytes()[:MIB], "unexpected end of file"),
    }
    for case, (evil, why) in cases.items():
        (tmp_path / "evil").write_bytes(evil)
        refused(atoll.atoll("image", "import", str(tmp_path / "evil"), "--name", "x", check=False), 2, why)
        assert content(atoll) == before, case
        assert trees(atoll) == []
    assert not Path("/tmp/pwned").exists()
    (tmp_path / "noise").write_bytes(os.urandom(MIB))
    said = ("image", "import", str(tmp_path / "noise"), "--name", "x", "--format", "rootfs")
    refused(atoll.atoll(*said, check=False), 2, "neither a tar archive nor a squashfs")
    other = ("image", "import", str(pack(tree, "zstd")), "--name", "x", "--arch", "riscv64")
    refused(atoll.atoll(*other, check=False), 2, "programs are for x86_64")
    assert content(atoll) == before


@pytest.mark.parametrize("moment", ["inspect/journalled", "keep/enter", "keep/journalled"])
def test_a_killed_daemon_goes_on(atoll: Daemon, tree: Path, moment: str) -> None:
    """Wherever it is killed the import is the next daemon's, and comes to its end."""
    path = pack(tree, "zstd")
    atoll.stop()
    atoll.start(crash=f"image.import/{moment}")
    ran = atoll.atoll("image", "import", str(path), "--name", "small", "--no-wait", check=False)
    atoll.wait_dead()
    atoll.start()
    until(lambda: atoll.http("GET", "/v1/health").json["ready"], "it is ready", 60)
    found = atoll.json("image", "show", "small")["manifest"]["files"]["rootfs"]
    assert found["digest"] == f"sha256:{sha256(path)}", ran
    assert len(trees(atoll)) == 1
