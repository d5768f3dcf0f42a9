"""Recipes of whole distributions: what each says where the host lacks something, and what mmdebstrap is told (a
fake of it stands in: what it would have made is not looked at here)."""

import os
import tarfile
from pathlib import Path

import pytest

from atoll.base.errors import Broken, Lacking
from atoll.daemon import config
from atoll.image.recipes import bootstrap, debian, ubuntu
from atoll.image.recipes.registry import recipes

MIRROR = "http://mirror.example/ubuntu"
FAKE = """#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word"; done > "$TMPDIR/told"
echo "I: running apt-get update..."
echo "E: no such suite" >&2
exit 1
"""


def quiet(_: str, __: int | None) -> None:
    return None


def refused(archive: ubuntu.Archive) -> Lacking:
    with pytest.raises(Lacking) as caught:
        ubuntu.system(archive, ubuntu.RELEASES[1])
    return caught.value


def test_ubuntu_says_what_is_missing(tmp_path: Path) -> None:
    assert "no mirror for ubuntu/24.04 is set" in refused(ubuntu.Archive()).message
    without = refused(ubuntu.Archive(MIRROR, tmp_path / "keys.gpg"))
    assert str(tmp_path / "keys.gpg") in without.message
    assert "atoll.toml" in without.hint


async def test_ubuntu_without_a_mirror_builds_nothing(tmp_path: Path) -> None:
    with pytest.raises(Lacking, match="no mirror"):
        await recipes(ubuntu.Archive())["ubuntu/24.04"](tmp_path, tmp_path / "cache", quiet)
    assert list(tmp_path.iterdir()) == []


async def test_ubuntu_from_the_mirror_and_keys_that_are_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake fails at the end, as a mirror without the suite would make it."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin/mmdebstrap"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    keys = tmp_path / "keys.gpg"
    keys.write_bytes(b"keys")
    (tmp_path / "atoll.toml").write_text(f'[images]\nubuntu_mirror = "{MIRROR}"\nubuntu_keyring = "{keys}"\n')
    given = config.load(tmp_path / "atoll.toml").images
    system = ubuntu.system(ubuntu.Archive(given.ubuntu_mirror, Path(given.ubuntu_keyring)), ubuntu.RELEASES[1])
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(Broken, match="could not be built: no such suite") as caught:
        await bootstrap.bootstrap(system, work / "rootfs.tar", work, tmp_path / "archives", quiet)
    assert caught.value.hint == f"is {MIRROR} reachable?"
    told = (work / "told").read_text().splitlines()
    assert f"--keyring={keys}" in told
    assert told[-4:] == [
        str(work / "rootfs.tar"),
        *(f"deb {MIRROR} noble{pocket} main universe" for pocket in ("", "-updates", "-security")),
    ]
    [included] = [word for word in told if word.startswith("--include=")]
    assert "linux-image-virtual" in included
    assert "cloud-amd64" not in included
    with tarfile.open(work / "overlay.tar") as overlay:
        assert "etc/cloud/cloud.cfg.d/10_atoll.cfg" in overlay.getnames()
        assert all(member.uid == member.gid == 0 for member in overlay)


@pytest.mark.parametrize("line", ["ubuntu_mirror = 'file:///srv'", "ubuntu_keyring = 'keys.gpg'"])
def test_a_setting_that_is_no_mirror_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "atoll.toml").write_text(f"[images]\n{line}\n")
    with pytest.raises(Exception, match="images"):
        config.load(tmp_path / "atoll.toml")


def test_an_ordinary_user_is_told_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subuid = tmp_path / "subuid"
    (tmp_path / "newuidmap").write_text("")
    (tmp_path / "newuidmap").chmod(0o755)
    bootstrap.check_host("debian/12", subuid)  # root needs neither
    monkeypatch.setattr(os, "geteuid", lambda: 61_234)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Lacking, match="newuidmap is missing") as caught:
        bootstrap.check_host("debian/12", subuid)
    assert caught.value.hint == "apt-get install uidmap"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Lacking, match="uid 61234 has none"):
        bootstrap.check_host("debian/12", subuid)
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    with pytest.raises(Lacking, match="daemon has none") as caught:
        bootstrap.check_host("debian/12", subuid)
    assert "usermod --add-subuids" in caught.value.hint
    subuid.write_text("daemon:100000:65536\n")
    bootstrap.check_host("debian/12", subuid)


def test_only_bookworm_has_its_cloud_init_helped() -> None:
    """Later releases' own cloud-init runs all stages by one process."""
    extras = {one.name: one.extra for one in debian.RELEASES}
    assert extras == {"debian/12": "bookworm", "debian/13": ""}
    units = debian.folder() / "bookworm/etc/systemd/system"
    assert len(list(units.glob("cloud-*.service.d/one-process.conf"))) == 4


def test_what_adapts_the_tree_leaves_the_builder_its_tmp() -> None:
    """mmdebstrap's apt configuration lies in the tree's /tmp: without it, its apt would empty the host's lists."""
    words = (debian.folder() / "customize").read_text().split()
    assert not [word for word in words if word.startswith('"$root"/tmp')]
