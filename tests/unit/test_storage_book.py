"""Storage records: names, claims and releases by transaction; and the pools of a host."""

import asyncio
import shutil
from pathlib import Path

import msgspec
import pytest

from atoll.base.clock import now
from atoll.base.errors import Absent, Broken, Conflict, Exists, Invalid, Refused
from atoll.base.ids import Bytes, HostId, VolumeId
from atoll.base.units import GiB
from atoll.storage.book import StorageBook, pool_key
from atoll.storage.drivers.dir import MARKER
from atoll.storage.model import Pool, Volume, VolumeAttachment, VolumeSpec
from atoll.storage.registry import Pools
from atoll.store.api import Key, Txn, read_all
from atoll.store.memory import MemoryStore
from atoll.store.txn import merge

HERE, ONE = HostId("host-a"), VolumeId("one")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def book(store: MemoryStore) -> StorageBook:
    return StorageBook(store)


def volume(pool: Pool, id: VolumeId = ONE) -> Volume:
    return Volume(id=id, project="lab", name="web-root", pool=pool.id, size=Bytes(GiB), created=now())


def attachment(instance: str = "web", generation: int = 0, host: HostId = HERE) -> VolumeAttachment:
    return VolumeAttachment(volume=ONE, instance=instance, host=host, generation=generation)


async def test_the_default_pool_is_made_once_and_seen_by_every_project(book: StorageBook) -> None:
    made = await asyncio.gather(*(book.ensure_default() for _ in range(5)))
    assert len({pool.id for pool in made}) == 1
    assert await book.visible("lab") == await book.all() == [made[0]]
    assert await book.get("lab", "default") == made[0]


async def test_a_projects_own_pool_hides_the_shared_one(book: StorageBook) -> None:
    shared = await book.ensure_default()
    own = await book.create("lab", "default", "dir")
    assert await book.get("lab", "default") == own
    assert await book.get("office", "default") == shared
    assert await book.visible("lab") == [own]


async def test_an_unknown_pool_brings_what_may_have_been_meant(book: StorageBook) -> None:
    await book.ensure_default()
    with pytest.raises(Absent) as caught:
        await book.get("lab", "defualt")
    assert caught.value.hint == "did you mean default?"
    for strange in ("é", "a\nb", "", "a/", "../default", "x" * 500):
        with pytest.raises(Absent):
            await book.get("lab", strange)


async def test_pool_names_are_labels_and_taken_once(book: StorageBook) -> None:
    await book.create("lab", "fast", "dir")
    with pytest.raises(Exists):
        await book.create("lab", "fast", "dir")
    with pytest.raises(Invalid):
        await book.create("lab", "a/b", "dir")


async def test_a_claim_is_recorded_and_released(store: MemoryStore, book: StorageBook) -> None:
    found = await book.find("lab", (await book.ensure_default()).name)
    await store.commit(book.claiming(found, volume(found.pool), attachment()))
    assert await book.volumes("lab") == [await book.volume("lab", ONE)]
    assert await book.volumes("office") == []
    assert await book.attachment(ONE) == attachment()
    await store.commit(await book.releasing("lab", [ONE]))
    with pytest.raises(Absent):
        await book.volume("lab", ONE)
    assert await book.attachment(ONE) is None
    await store.commit(await book.releasing("lab", [ONE]))


async def test_a_volume_is_claimed_once(store: MemoryStore, book: StorageBook) -> None:
    found = await book.find("lab", (await book.ensure_default()).name)
    part = book.claiming(found, volume(found.pool), attachment())
    await store.commit(part)
    with pytest.raises(Conflict):
        await store.commit(part)


async def test_a_claim_fails_where_its_pool_changed(store: MemoryStore, book: StorageBook) -> None:
    found = await book.find("lab", (await book.ensure_default()).name)
    changed = msgspec.structs.replace(found.pool, description="moved")
    await store.commit(Txn(put={pool_key("default", found.pool.id): msgspec.json.encode(changed)}))
    with pytest.raises(Conflict):
        await store.commit(book.claiming(found, volume(found.pool), attachment()))
    assert (await read_all(store, Key("/volumes/"))).entries == {}


async def test_a_release_fails_where_the_owner_changed_meanwhile(store: MemoryStore, book: StorageBook) -> None:
    found = await book.find("lab", (await book.ensure_default()).name)
    await store.commit(book.claiming(found, volume(found.pool), attachment()))
    release = await book.releasing("lab", [ONE])
    await store.commit(await book.owning(attachment(generation=1)))
    with pytest.raises(Conflict):
        await store.commit(release)


async def test_an_older_generation_never_takes_a_volume_back(store: MemoryStore, book: StorageBook) -> None:
    await store.commit(await book.owning(attachment(generation=3, host=HostId("host-b"))))
    with pytest.raises(Refused, match="older"):
        await book.owning(attachment(generation=2))
    with pytest.raises(Refused, match="attached to instance web"):
        await book.owning(attachment("db", generation=9))
    await store.commit(await book.owning(attachment(generation=4)))
    assert await book.attachment(ONE) == attachment(generation=4)


async def test_of_two_new_owners_at_once_one_wins(store: MemoryStore, book: StorageBook) -> None:
    first, second = await book.owning(attachment(generation=1)), await book.owning(attachment(generation=1))
    await store.commit(merge(first))
    with pytest.raises(Conflict):
        await store.commit(merge(second))


async def test_a_host_lays_a_pool_out_once(tmp_path: Path, book: StorageBook) -> None:
    await book.ensure_default()
    assert await Pools(book, host=HERE, home=tmp_path).open() == {}
    (pool,) = await book.all()
    root = tmp_path / "pools" / pool.id
    assert (root / MARKER).read_text().strip() == pool.id
    shutil.rmtree(root)
    later = Pools(book, host=HERE, home=tmp_path)
    failed = await later.open()
    assert list(failed) == ["default"]
    assert isinstance(failed["default"], Broken)
    assert not root.exists()
    with pytest.raises(Broken):
        await later.capacity(pool)
    elsewhere = Pools(book, host=HostId("host-b"), home=tmp_path / "b")
    assert await elsewhere.open() == {}


async def test_a_pool_that_came_back_is_used_again(tmp_path: Path, book: StorageBook) -> None:
    pool = await book.ensure_default()
    await Pools(book, host=HERE, home=tmp_path).open()
    (tmp_path / "pools").rename(tmp_path / "away")
    pools = Pools(book, host=HERE, home=tmp_path)
    assert list(await pools.open()) == ["default"]
    (tmp_path / "away").rename(tmp_path / "pools")
    driver = await pools.driver(pool)
    await driver.create(VolumeSpec(ONE, Bytes(GiB)))
    assert await pools.driver(pool) is driver
    assert (await pools.capacity(pool)).available > 0


async def test_an_unknown_driver_is_told(tmp_path: Path, book: StorageBook) -> None:
    pool = await book.create("lab", "fast", "dri")
    with pytest.raises(Invalid) as caught:
        await Pools(book, host=HERE, home=tmp_path).driver(pool)
    assert caught.value.hint == "did you mean dir?"
