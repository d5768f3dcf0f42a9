"""The library: from a build's files to what a thin clone stands on, and back to nothing."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from atoll.base.errors import Absent, AtollError, Broken, Invalid, Refused
from atoll.base.ids import Bytes, PoolId, VolumeId
from atoll.base.units import MiB
from atoll.host.run import run
from atoll.image.book import ImageBook
from atoll.image.library import Library
from atoll.image.model import Image, ImageUse
from atoll.image.recipes.recipe import Built, Progress
from atoll.storage.drivers.dir import DirPool
from atoll.storage.model import VolumeSpec
from atoll.store.memory import MemoryStore


class Sample:
    """A recipe whose content its `version` decides."""

    def __init__(self) -> None:
        self.version = "1"
        self.fails: AtollError | None = None

    async def __call__(self, out: Path, cache: Path, progress: Progress, *, refresh: bool = False) -> Built:
        assert not list(out.iterdir())
        (out / "kernel").write_text("a kernel")
        (out / "initrd").write_text(f"an initrd {self.version}")
        (out / "disk.raw").write_bytes(self.version.encode() * MiB)
        if self.fails:
            raise self.fails
        progress("built", 100)
        return Built(
            files={"disk": out / "disk.raw", "kernel": out / "kernel", "initrd": out / "initrd"},
            cmdline="quiet",
            disk_format="raw",
            disk_size=Bytes(MiB),
            agent=True,
            min_memory=Bytes(64 * MiB),
            source=f"sample {self.version}",
        )


@pytest.fixture
def sample() -> Sample:
    return Sample()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def library(tmp_path: Path, store: MemoryStore, sample: Sample) -> Library:
    library = Library(tmp_path / "images", tmp_path / "cache", ImageBook(store), {"sample": sample})
    await library.open()
    return library


def quiet(_: str, __: int | None) -> None:
    return None


async def build(library: Library, name: str = "sample", key: str = "op1") -> Image:
    """What the verb does."""
    built = await library.build("sample", key, quiet)
    try:
        return await library.add_built("default", name, built)
    finally:
        await library.clear(key)


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "images").rglob("*") if path.is_file())


async def claim(store: MemoryStore, library: Library, volume: str = "one") -> None:
    view = await library.book.find("default", "sample")
    use = ImageUse(volume=VolumeId(volume), project="default", user="web")
    await store.commit(library.book.claiming(view, use))


async def test_a_built_image_can_be_stood_on(library: Library, tmp_path: Path) -> None:
    image = await build(library)
    assert await library.get("default", "sample") == image
    assert list(await library.list("default")) == [image]
    assert image.manifest.files["disk"].virtual_size == MiB
    assert library.present(image.manifest)
    await library.verify(image.digest)
    real = await library.layers(image.digest)
    assert (real.manifest.cmdline, Path(real.kernel).read_text()) == ("quiet", "a kernel")
    assert Path(real.initrd).read_text() == "an initrd 1"
    pool = DirPool(PoolId("p"), "default", tmp_path / "pool", fresh=True)
    await pool.open()
    await pool.create(VolumeSpec(VolumeId("one"), Bytes(8 * MiB), real.base))
    own, base = (await pool.attach(VolumeId("one"))).layers
    assert base == real.base[0]
    assert base.read_only
    await run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", own.uri, base.uri])


async def test_building_again_gives_the_same_and_keeps_nothing_twice(library: Library, tmp_path: Path) -> None:
    first = await build(library)
    before = files(tmp_path)
    assert await build(library, key="op2") == first
    assert files(tmp_path) == before
    assert len(before) == 3


async def test_a_build_copies_nothing(library: Library, tmp_path: Path) -> None:
    built = await library.build("sample", "op1", quiet)
    image = await library.add_built("default", "sample", built)
    assert library.blobs.path(image.manifest.files["disk"].digest).samefile(built.files["disk"])


async def test_adding_again_after_a_crash_goes_on(library: Library) -> None:
    built = await library.build("sample", "op1", quiet)
    assert await library.add_built("default", "sample", built) == await library.add_built(
        "default", "sample", built
    )


async def test_a_newer_build_keeps_the_older_for_its_users(
    library: Library, sample: Sample, store: MemoryStore, tmp_path: Path
) -> None:
    old = await build(library)
    await claim(store, library)
    sample.version = "2"
    new = await build(library)
    assert new.digest != old.digest
    assert await library.get("default", "sample") == new
    await library.prune()
    assert await library.layers(old.digest)
    assert len(files(tmp_path)) == 5  # the kernel is one and the same
    await store.commit(library.book.releasing(old.digest, VolumeId("one")))
    pruned = await library.prune()
    assert pruned.manifests == (old.digest,)
    assert len(pruned.blobs) == 2
    assert pruned.freed >= MiB
    with pytest.raises(Absent):
        await library.layers(old.digest)
    assert await library.layers(new.digest)


async def test_deleting_removes_what_nobody_uses(library: Library, store: MemoryStore, tmp_path: Path) -> None:
    image = await build(library)
    await claim(store, library)
    with pytest.raises(Refused, match="default/web"):
        await library.delete("default", "sample")
    assert await library.layers(image.digest)
    await store.commit(library.book.releasing(image.digest, VolumeId("one")))
    pruned = await library.delete("default", "sample")
    assert len(pruned.blobs) == 3
    assert files(tmp_path) == []
    with pytest.raises(Absent):
        await library.delete("default", "sample")


async def test_renaming_keeps_the_content(library: Library) -> None:
    image = await build(library)
    assert (await library.rename("default", "sample", "other")).digest == image.digest
    await library.prune()
    assert await library.layers(image.digest)


async def test_content_that_is_not_here_is_an_ordinary_state(library: Library) -> None:
    image = await build(library)
    library.blobs.remove(image.manifest.files["disk"].digest)
    assert not library.present(image.manifest)
    assert await library.get("default", "sample") == image
    with pytest.raises(Absent, match="not on this host"):
        await library.layers(image.digest)
    assert await build(library) == image
    assert library.present(image.manifest)


async def test_a_failed_build_leaves_nothing(library: Library, sample: Sample, tmp_path: Path) -> None:
    sample.fails = Broken("no luck")
    with pytest.raises(Broken):
        await build(library)
    with pytest.raises(Broken):
        await library.build("sample", "op1", quiet)
    assert files(tmp_path) != []
    sample.fails = None
    await library.build("sample", "op1", quiet)
    await library.clear("op1")
    await library.clear("op1")
    assert files(tmp_path) == []


async def test_what_a_crash_left_is_gone_after_the_next_start(
    library: Library, sample: Sample, store: MemoryStore, tmp_path: Path
) -> None:
    kept = await build(library)
    before = files(tmp_path)
    sample.version = "2"
    built = await library.build("sample", "op2", quiet)
    await library.blobs.add(built.files["disk"], ours=True)
    later = Library(tmp_path / "images", tmp_path / "cache", ImageBook(store), {})
    await later.open()
    assert files(tmp_path) == before
    assert await later.layers(kept.digest)


async def test_pruning_during_an_add_takes_nothing_from_it(library: Library) -> None:
    for round in range(10):
        adding = asyncio.create_task(build(library, key=f"op{round}"))
        while not adding.done():
            await library.prune()
            await asyncio.sleep(0)
        image = adding.result()
        assert library.present(image.manifest)
        await library.delete("default", "sample")
        assert not library.present(image.manifest)


async def test_what_cannot_be_kept_is_not_kept_in_part(library: Library, tmp_path: Path) -> None:
    built = await library.build("sample", "op1", quiet)
    built.files["kernel"].unlink()  # the disk and the initrd come first
    with pytest.raises(Absent):
        await library.add_built("default", "sample", built)
    assert list(await library.blobs.usage()) == []
    assert list(await library.list("default")) == []


async def test_an_unknown_recipe(library: Library) -> None:
    with pytest.raises(Absent) as caught:
        await library.build("smaple", "op1", quiet)
    assert caught.value.hint == "did you mean sample?"
    for key in ("..", "a/b", ""):
        with pytest.raises(Invalid):
            library.workplace(key)


async def test_a_disk_must_stand_alone(library: Library, tmp_path: Path) -> None:
    out = tmp_path / "images" / "evil"
    out.mkdir()
    (out / "data.raw").write_bytes(bytes(MiB))
    over = ["qemu-img", "create", "-q", "-f", "qcow2"]
    await run([*over, "-b", "/etc/hostname", "-F", "raw", str(out / "backed")])
    await run([*over, "-o", f"data_file={out / 'data.raw'}", str(out / "split"), "1M"])
    good = await library.build("sample", "op1", quiet)
    for name in ("backed", "split"):
        bad = msgspec.structs.replace(good, files={"disk": out / name}, disk_format="qcow2")
        with pytest.raises(Invalid, match="another file"):
            await library.add_built("default", "evil", bad)
    for bad in (
        msgspec.structs.replace(good, disk_format="vmdk"),
        msgspec.structs.replace(good, files={"kernel": good.files["kernel"]}),
        msgspec.structs.replace(good, files={**good.files, "firmware": good.files["kernel"]}),
    ):
        with pytest.raises(Invalid):
            await library.add_built("default", "evil", bad)
    with pytest.raises(Invalid):
        await library.add_built("default", "evil", msgspec.structs.replace(good, disk_format="qcow2"))
    assert list(await library.blobs.usage()) == []
