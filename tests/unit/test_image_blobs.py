"""The content store: what goes in comes out, once, and nothing is left of what failed."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from atoll.base.errors import Absent, AtollError, Broken, Exhausted, Invalid
from atoll.base.ids import Digest
from atoll.base.units import MiB
from atoll.image.blobs import CHUNK, Blobs


@pytest.fixture
async def blobs(tmp_path: Path) -> Blobs:
    blobs = Blobs(tmp_path / "images" / "blobs")
    await blobs.open()
    return blobs


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def names(blobs: Blobs) -> list[str]:
    return sorted(os.listdir(blobs._root))


CONTENTS = {
    "empty": b"",
    "small": b"hello",
    "a chunk": os.urandom(CHUNK),
    "more than a turn": os.urandom(CHUNK) * 40 + b"end",
    "holes": b"a" * CHUNK + bytes(3 * CHUNK) + b"b" + bytes(2 * CHUNK),
    "a hole at the end": b"a" * CHUNK + bytes(4 * CHUNK),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
@pytest.mark.parametrize("how", ["copied", "linked", "streamed"])
async def test_what_goes_in_comes_out(blobs: Blobs, content: bytes, how: str) -> None:
    source = blobs._root.parent / "source"
    source.write_bytes(content)
    if how == "streamed":
        file = await blobs.add(chunks(*(content[at : at + CHUNK] for at in range(0, len(content), CHUNK))))
    else:
        file = await blobs.add(source, ours=how == "linked")
    assert (file.digest, file.size) == (digest(content), len(content))
    path = blobs.path(file.digest)
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o444
    assert path.samefile(source) == (how == "linked")
    await blobs.verify(file.digest)
    assert names(blobs) == [path.name]


async def test_holes_stay_holes(blobs: Blobs, tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as out:
        out.truncate(64 * MiB)
    file = await blobs.add(source)
    assert file.size == 64 * MiB
    assert (await blobs.usage())[file.digest] < MiB


async def test_equal_content_is_kept_once(blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"same")
    first = await blobs.add(tmp_path / "one")
    inode = blobs.path(first.digest).stat().st_ino
    added = await asyncio.gather(*(blobs.add(chunks(b"sa", b"me")) for _ in range(5)))
    assert set(added) == {first}
    assert blobs.path(first.digest).stat().st_ino == inode
    assert list(await blobs.usage()) == [first.digest]


async def test_what_is_added_is_held_until_released(blobs: Blobs) -> None:
    first, second = await blobs.add(chunks(b"x")), await blobs.add(chunks(b"x"))
    blobs.release(first.digest)
    assert blobs.held(second.digest)
    blobs.release(second.digest)
    assert not blobs.held(first.digest)


async def test_a_stream_that_fails_leaves_nothing(blobs: Blobs) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"half"
        raise Broken("the line went dead")

    with pytest.raises(Broken, match="line"):
        await blobs.add(failing())
    assert names(blobs) == []


async def test_a_cancelled_add_leaves_nothing(blobs: Blobs, tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.write_bytes(os.urandom(MiB) * 200)
    for delay in (0.0, 0.005, 0.03, 0.1):
        adding = asyncio.create_task(blobs.add(source))
        await asyncio.sleep(delay)
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert names(blobs) == []


async def test_what_a_crash_left_is_swept(blobs: Blobs) -> None:
    file = await blobs.add(chunks(b"x"))
    (blobs._root / ".new-0123").write_bytes(b"half")
    assert list(await blobs.usage()) == [file.digest]
    await Blobs(blobs._root).open()
    assert names(blobs) == [blobs.path(file.digest).name]


async def test_damage_is_found(blobs: Blobs) -> None:
    file = await blobs.add(chunks(b"good"))
    path = blobs.path(file.digest)
    path.chmod(0o600)
    path.write_bytes(b"evil")
    with pytest.raises(Broken, match="damaged"):
        await blobs.verify(file.digest)


async def test_an_absent_blob(blobs: Blobs, tmp_path: Path) -> None:
    absent = Digest(digest(b"never"))
    assert not blobs.present(absent)
    blobs.remove(absent)
    with pytest.raises(Absent):
        await blobs.verify(absent)
    with pytest.raises(Absent):
        await blobs.add(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:../../etc", "md5:" + "0" * 64, "sha256:" + "A" * 64])
async def test_a_digest_is_never_a_path(blobs: Blobs, text: str) -> None:
    with pytest.raises(Invalid):
        blobs.path(Digest(text))


async def test_only_plain_files_go_in(blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(AtollError):
            await asyncio.wait_for(blobs.add(tmp_path / name, ours=True), 5)
    with pytest.raises(AtollError):
        await blobs.add(tmp_path)
    assert names(blobs) == []


async def test_progress_is_told(blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100 * MiB))
    told: list[int] = []
    await blobs.add(tmp_path / "file", told=told.append)
    assert told == sorted(told)
    assert len(told) >= 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 2 MiB, which only root can have."""
    path = tmp_path / "small"
    path.mkdir()
    os.system(f"mount -t tmpfs -o size=2m none {path}")
    assert path.is_mount()
    yield path
    os.system(f"umount {path}")


async def test_a_full_disk_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    blobs = Blobs(small_disk / "blobs")
    await blobs.open()
    (tmp_path / "large").write_bytes(os.urandom(3 * MiB))
    with pytest.raises(Exhausted):
        await blobs.add(tmp_path / "large")
    with pytest.raises(Exhausted):
        await blobs.add(chunks(*[os.urandom(MiB)] * 3))
    assert names(blobs) == []
    await blobs.add(chunks(b"small"))


async def test_a_file_of_ours_on_another_disk_is_copied(small_disk: Path, tmp_path: Path) -> None:
    blobs = Blobs(small_disk / "blobs")
    await blobs.open()
    (tmp_path / "file").write_bytes(b"far")
    file = await blobs.add(tmp_path / "file", ours=True)
    assert blobs.path(file.digest).read_bytes() == b"far"
