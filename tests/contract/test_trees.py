"""What every store of trees promises (atoll/storage/treestore.py), on the fake and on ext4 and btrfs."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from atoll.base.errors import Invalid
from atoll.base.ids import Digest
from atoll.base.units import GiB
from atoll.storage.model import FOREIGN_BASE
from atoll.storage.trees import Trees
from atoll.storage.treestore import TreeStore
from tests.kit import eviltar
from tests.kit.btrfs import btrfs
from tests.kit.fake_trees import FakeTrees

ONE, TWO = Digest("sha256:" + "1" * 64), Digest("sha256:" + "2" * 64)
ROOT = os.geteuid() == 0


@dataclass
class Rig:
    """`store`: a new object for the same trees, as after a restart. `at`: where they are, None of the fake."""

    store: Callable[[], TreeStore]
    at: Path | None


@pytest.fixture(scope="session")
def btrfs_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with btrfs(tmp_path_factory.mktemp("btrfs"), size=4 * GiB) as mounted:
        yield mounted


KINDS = ("fake", "dir", "btrfs") if ROOT else ("fake",)


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    if request.param == "fake":
        fake = FakeTrees()
        return Rig(lambda: FakeTrees(fake.held), None)
    place = tmp_path
    if request.param == "btrfs":
        place = Path(tempfile.mkdtemp(dir=request.getfixturevalue("btrfs_disk")))
    return Rig(lambda: Trees(place / "trees"), place / "trees")


@pytest.fixture
async def store(rig: Rig) -> TreeStore:
    made = rig.store()
    await made.open()
    return made


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "rootfs.tar"
    members = (
        eviltar.header(b"bin", b"5", mode=0o755, uid=0),
        eviltar.file(b"bin/sh", b"\x7fELF\2\1" + bytes(12) + b"\x3e\0" + bytes(2000), mode=0o4755, uid=0),
        eviltar.header(b"root", b"5", mode=0o700, uid=0),
        eviltar.pax({b"uid": b"1000", b"gid": b"1000"}) + eviltar.file(b"root/mine", b"x"),
    )
    path.write_bytes(eviltar.archive(*members))
    return path


async def test_a_tree_is_made_once(store: TreeStore, packed: Path) -> None:
    assert not store.present(ONE)
    assert store.facts(ONE) is None
    paths = await asyncio.gather(*(store.lower(ONE, packed, "tar") for _ in range(5)))
    assert set(paths) == {store.path(ONE)}
    assert store.present(ONE)
    facts = store.facts(ONE)
    assert facts is not None
    assert facts.shell == "/bin/sh"
    assert await store.usage() == {ONE: facts.bytes}
    packed.unlink()
    assert await store.lower(ONE, packed, "tar") == store.path(ONE)


async def test_it_outlives_the_daemon(rig: Rig, store: TreeStore, packed: Path) -> None:
    await store.lower(ONE, packed, "tar")
    again = rig.store()
    await again.open()
    assert again.present(ONE)
    assert again.path(ONE) == store.path(ONE)


async def test_what_is_no_archive_leaves_nothing(rig: Rig, store: TreeStore, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"noise" * 1000)
    with pytest.raises(Invalid):
        await store.lower(ONE, tmp_path / "noise", "tar")
    assert not store.present(ONE)
    assert rig.at is None or not list(rig.at.iterdir())


async def test_one_that_is_kept_already_stays(rig: Rig, store: TreeStore, packed: Path) -> None:
    first, second = await store.make(packed, "tar"), await store.make(packed, "tar")
    await store.keep(first, ONE)
    await store.keep(second, ONE)
    await store.drop(first)
    await store.drop(second)
    assert store.present(ONE)
    assert rig.at is None or [path.name for path in rig.at.iterdir()] == [ONE.replace(":", "-")]


async def test_what_nobody_needs_goes(rig: Rig, store: TreeStore, packed: Path) -> None:
    await store.lower(ONE, packed, "tar")
    await store.lower(TWO, packed, "tar")
    assert await store.prune([ONE]) > 0
    assert not store.present(ONE)
    assert store.present(TWO)
    await store.remove(ONE)
    await store.remove(TWO)
    assert await store.usage() == {}
    assert rig.at is None or not list(rig.at.iterdir())


async def test_a_crash_leaves_nothing_half_made(rig: Rig, store: TreeStore, packed: Path) -> None:
    if rig.at is None:
        return
    fresh = await store.make(packed, "tar")
    await store.lower(TWO, packed, "tar")
    (rig.at / TWO.replace(":", "-") / "facts.json").unlink()  # as a crash in the middle of its removal would
    again = rig.store()
    await again.open()
    assert not fresh.path.exists()
    assert not list(rig.at.iterdir())


async def test_a_cancelled_one_leaves_nothing(rig: Rig, store: TreeStore, packed: Path) -> None:
    if rig.at is None:
        return
    os.mkfifo(packed.with_name("slow"))
    writer = os.open(packed.with_name("slow"), os.O_RDWR)  # it never ends
    try:
        making = asyncio.create_task(store.lower(ONE, packed.with_name("slow"), "tar"))
        while not list(rig.at.glob(".new-*/tree")):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
    finally:
        os.close(writer)
    assert not list(rig.at.iterdir())


async def test_its_files_belong_to_nobody_of_the_host(rig: Rig, store: TreeStore, packed: Path) -> None:
    tree = await store.lower(ONE, packed, "tar")
    if rig.at is None:
        return
    assert (tree / "bin/sh").stat().st_uid == FOREIGN_BASE
    assert (tree / "bin/sh").stat().st_mode & 0o7777 == 0o4755
    assert (tree / "root/mine").stat().st_uid == FOREIGN_BASE + 1000
    assert tree.stat().st_mode & 0o7777 == 0o755
    assert rig.at.stat().st_mode & 0o7777 == 0o700  # a setuid program in it is nobody's to run
