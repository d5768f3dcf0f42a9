"""Packages by the real apt and dpkg-deb, from a package archive made here: no network."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from atoll.base.errors import Broken, Lacking
from atoll.host.debs import Wanted, obtain, unpack
from atoll.host.run import run


class Archive:
    """A trusted archive of packages, in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._index = ""
        (path / "sources.d").mkdir(parents=True)
        (path / "sources.list").write_text(f"deb [trusted=yes] file:{path} ./\n")

    async def add(self, name: str, version: str, depends: str = "") -> None:
        tree = self.path / "trees" / f"{name}-{version}"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "usr/share").mkdir(parents=True)
        (tree / "usr/share" / name).write_text(version)
        (tree / "usr/share" / f"{name}.link").symlink_to(name)
        fields = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
        fields += "Maintainer: Nobody <nobody@localhost>\nDescription: for a test\n"
        fields += f"Depends: {depends}\n" if depends else ""
        (tree / "DEBIAN/control").write_text(fields)
        deb = self.path / f"{name}.deb"
        await run(["dpkg-deb", "--root-owner-group", "--build", str(tree), str(deb)])
        data = deb.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        self._index += f"{fields}Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {digest}\n\n"
        (self.path / "Packages").write_text(self._index)

    def wanted(self, *names: str, assumed: tuple[str, ...] = ()) -> Wanted:
        sources = ("-o", f"Dir::Etc::sourcelist={self.path}/sources.list")
        parts = ("-o", f"Dir::Etc::sourceparts={self.path}/sources.d")
        return Wanted(names, assumed, options=(*sources, *parts))


@pytest.fixture
async def archive(tmp_path: Path) -> Archive:
    made = Archive(tmp_path / "archive")
    await made.add("tool", "1:2.0-1", "libtool, scripts (>= 1)")
    await made.add("libtool", "3.1")
    await made.add("unrelated", "1")
    return made


def kept(cache: Path) -> list[Path]:
    """The sets that the cache records as whole."""
    return list(cache.glob("set-*"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    path = tmp_path / "cache"
    path.mkdir()
    return path


async def test_a_package_comes_with_what_it_needs(archive: Archive, cache: Path) -> None:
    found = await obtain(archive.wanted("tool", assumed=("scripts",)), cache)
    assert {name: path.name for name, path in found.items()} == {
        "libtool": "libtool_3.1_amd64.deb",
        "tool": "tool_1%3a2.0-1_amd64.deb",
    }
    for name, path in found.items():
        assert path.read_bytes() == (archive.path / f"{name}.deb").read_bytes()


async def test_what_is_in_the_cache_needs_nobody(archive: Archive, cache: Path) -> None:
    wanted = archive.wanted("libtool")
    first = await obtain(wanted, cache)
    for path in archive.path.glob("*.deb"):
        path.unlink()
    assert await obtain(wanted, cache) == first


async def test_a_damaged_file_is_fetched_again(archive: Archive, cache: Path) -> None:
    wanted = archive.wanted("libtool")
    path = (await obtain(wanted, cache))["libtool"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert (await obtain(wanted, cache))["libtool"].read_bytes() == whole


async def test_refresh_takes_newer_versions(archive: Archive, cache: Path) -> None:
    wanted = archive.wanted("libtool")
    assert "3.1" in (await obtain(wanted, cache))["libtool"].name
    await archive.add("libtool", "3.2")
    assert "3.1" in (await obtain(wanted, cache))["libtool"].name
    assert "3.2" in (await obtain(wanted, cache, refresh=True))["libtool"].name


async def test_a_package_nobody_offers(archive: Archive, cache: Path) -> None:
    with pytest.raises(Lacking, match="no-such-thing"):
        await obtain(archive.wanted("no-such-thing"), cache)
    assert not kept(cache)


async def test_a_file_that_is_not_what_was_signed(archive: Archive, cache: Path) -> None:
    (archive.path / "libtool.deb").write_bytes((archive.path / "unrelated.deb").read_bytes())
    with pytest.raises(Lacking, match="libtool"):
        await obtain(archive.wanted("libtool"), cache)
    assert not kept(cache)


async def test_unpack(archive: Archive, cache: Path) -> None:
    path = (await obtain(archive.wanted("libtool"), cache))["libtool"]
    members = {one.name: (one.linkname, content.read() if content else b"") for one, content in unpack(path)}
    assert members["./usr/share/libtool"] == ("", b"3.1")
    assert members["./usr/share/libtool.link"] == ("libtool", b"")


@pytest.mark.parametrize("data", [b"", b"hello", b"!<arch>\n", b"!<arch>\n" + b"x" * 60])
def test_what_is_no_package(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.deb").write_bytes(data)
    with pytest.raises(Broken):
        list(unpack(tmp_path / "bad.deb"))


def test_a_package_cut_short(tmp_path: Path) -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz") as out:
        member = tarfile.TarInfo("./a")
        member.size = 100_000
        out.addfile(member, io.BytesIO(hashlib.sha256(b"a").digest() * 3125))
    header = b"data.tar.xz/    0           0     0     100644  %-10d`\n" % len(tar.getvalue())
    (tmp_path / "cut.deb").write_bytes(b"!<arch>\n" + header + tar.getvalue()[:60])
    with pytest.raises(Broken):
        list(unpack(tmp_path / "cut.deb"))
