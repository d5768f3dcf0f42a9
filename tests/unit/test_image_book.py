"""Image records: names, uses, and a deletion that races with launches."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.base.errors import Absent, Broken, Conflict, Exists, Invalid, Refused
from atoll.base.ids import Bytes, Digest, VolumeId
from atoll.image.book import ImageBook, image_key, manifest_key
from atoll.image.digest import canonical, digest_of
from atoll.image.model import File, Image, ImageState, ImageUse, Manifest
from atoll.store.api import PAGE, Entry, Event, Key, Lease, Revision, Txn, View
from atoll.store.memory import MemoryStore


def manifest(number: int = 1) -> Manifest:
    disk = File(Digest(f"sha256:{number:064x}"), Bytes(100), "qcow2", Bytes(1000))
    return Manifest(arch="x86_64", files={"disk": disk}, source=f"number {number}")


def use(volume: str = "one", user: str = "web") -> ImageUse:
    return ImageUse(volume=VolumeId(volume), project="lab", user=user)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def book(store: MemoryStore) -> ImageBook:
    return ImageBook(store)


async def claim(store: MemoryStore, book: ImageBook, name: str = "tiny", **of: str) -> Digest:
    view = await book.find("default", name)
    await store.commit(book.claiming(view, use(**of)))
    return view.image.digest


async def test_an_image_is_found_by_name_and_by_the_beginning_of_its_digest(book: ImageBook) -> None:
    image = await book.record("default", "tiny", manifest())
    assert image.digest == digest_of(manifest())
    for ref in ("tiny", image.digest, image.digest[:20], image.digest.removeprefix("sha256:")[:6]):
        assert (await book.find("lab", ref)).image == image


async def test_an_unknown_image_brings_what_may_have_been_meant(book: ImageBook) -> None:
    with pytest.raises(Absent) as none:
        await book.find("lab", "tiny")
    assert "atoll image build" in none.value.hint
    await book.record("default", "tiny", manifest())
    with pytest.raises(Absent) as caught:
        await book.find("lab", "tinny")
    assert caught.value.hint == "did you mean tiny?"
    for strange in ("", "é", "a/", "sha256:", "abc", "f" * 64, "x" * 400):
        with pytest.raises(Absent):
            await book.find("lab", strange)


async def test_a_prefix_of_several_digests_is_refused(book: ImageBook) -> None:
    seen: dict[str, str] = {}
    for number in range(400_000):
        prefix = digest_of(manifest(number))[:13]
        if prefix in seen:
            break
        seen[prefix] = str(number)
    await book.record("default", "one", manifest(int(seen[prefix])))
    await book.record("default", "two", manifest(number))
    with pytest.raises(Invalid, match="several"):
        await book.find("default", prefix)
    await book.record("default", "two", manifest(int(seen[prefix])))
    await book.find("default", prefix)


async def test_a_projects_own_image_hides_the_shared_one(book: ImageBook) -> None:
    shared = await book.record("default", "tiny", manifest(1))
    own = await book.record("lab", "tiny", manifest(2))
    assert (await book.find("lab", "tiny")).image == own
    assert (await book.find("office", "tiny")).image == shared
    assert [view.image for view in await book.visible("lab")] == [own]
    with pytest.raises(Absent):
        await book.delete("office", "tiny")


async def test_recording_again_changes_nothing(book: ImageBook) -> None:
    first = await book.record("default", "tiny", manifest())
    revision = (await book.find("default", "tiny")).revision
    assert await book.record("default", "tiny", manifest()) == first
    assert (await book.find("default", "tiny")).revision == revision


async def test_names_are_labels(book: ImageBook) -> None:
    for name in ("a/b", "", "Tiny", "../x"):
        with pytest.raises(Invalid):
            await book.record("default", name, manifest())


async def test_uses_are_counted(store: MemoryStore, book: ImageBook) -> None:
    await book.record("default", "tiny", manifest())
    digest = await claim(store, book, volume="one")
    await claim(store, book, volume="two", user="db")
    assert [view.uses for view in await book.visible("lab")] == [2]
    await store.commit(await book.renaming(digest, use("two", "database")))
    assert [found.user for found in await book.uses(digest)] == ["web", "database"]
    await store.commit(book.releasing(digest, VolumeId("one")))
    await store.commit(book.releasing(digest, VolumeId("one")))
    assert [view.uses for view in await book.visible("lab")] == [1]


async def test_renaming_a_user_brings_no_reference_back(store: MemoryStore, book: ImageBook) -> None:
    await book.record("default", "tiny", manifest())
    digest = await claim(store, book)
    part = await book.renaming(digest, use(user="www"))
    await store.commit(book.releasing(digest, VolumeId("one")))
    with pytest.raises(Conflict):
        await store.commit(part)
    await store.commit(await book.renaming(digest, use(user="www")))
    assert await book.uses(digest) == []


async def test_an_image_in_use_is_kept_and_its_users_named(store: MemoryStore, book: ImageBook) -> None:
    await book.record("default", "tiny", manifest())
    digest = await claim(store, book)
    with pytest.raises(Refused, match="in use by lab/web"):
        await book.delete("default", "tiny")
    assert (await book.find("default", "tiny")).image.state is ImageState.READY
    await claim(store, book, volume="two")
    for volume in ("one", "two"):
        await store.commit(book.releasing(digest, VolumeId(volume)))
    await book.delete("default", "tiny")
    with pytest.raises(Absent):
        await book.manifest(digest)
    with pytest.raises(Absent):
        await book.delete("default", "tiny")


async def test_a_launch_that_read_the_image_before_its_deletion_fails(store: MemoryStore, book: ImageBook) -> None:
    await book.record("default", "tiny", manifest())
    part = book.claiming(await book.find("default", "tiny"), use())
    await book.delete("default", "tiny")
    with pytest.raises(Conflict):
        await store.commit(part)


async def test_what_is_being_deleted_is_neither_launched_nor_renamed(store: MemoryStore, book: ImageBook) -> None:
    await book.record("default", "tiny", manifest())
    await mark(store, book)
    with pytest.raises(Refused, match="being deleted"):
        book.claiming(await book.find("default", "tiny"), use())
    with pytest.raises(Refused, match="being deleted"):
        await book.record("default", "tiny", manifest(2))
    with pytest.raises(Refused, match="being deleted"):
        await book.rename("default", "tiny", "small")


async def mark(store: MemoryStore, book: ImageBook) -> None:
    """As far as a deletion that crashed in the middle."""
    view = await book.own("default", "tiny")
    await store.commit(book._moving(view, ImageState.DELETING))


async def test_a_crash_in_the_middle_is_brought_to_an_end(store: MemoryStore, book: ImageBook) -> None:
    await book.record("default", "tiny", manifest())
    await mark(store, book)
    await book.recover()
    assert await book.all() == []
    assert await book.manifests() == {}
    await book.record("default", "tiny", manifest())
    await claim(store, book)
    await mark(store, book)
    await book.recover()
    assert (await book.find("default", "tiny")).image.state is ImageState.READY


async def test_a_second_name_lets_the_first_go(store: MemoryStore, book: ImageBook) -> None:
    await book.record("default", "tiny", manifest())
    await book.record("lab", "small", manifest())
    digest = await claim(store, book)
    await book.delete("default", "tiny")
    assert await book.manifest(digest) == manifest()
    with pytest.raises(Refused):
        await book.delete("lab", "small")


async def test_a_newer_image_under_the_name_keeps_the_older_for_its_users(
    store: MemoryStore, book: ImageBook
) -> None:
    await book.record("default", "tiny", manifest(1))
    old = await claim(store, book)
    new = await book.record("default", "tiny", manifest(2))
    assert (await book.find("default", "tiny")).image == new
    assert await book.prune() == []
    assert await book.manifest(old) == manifest(1)
    await store.commit(book.releasing(old, VolumeId("one")))
    assert await book.prune() == [old]
    assert list(await book.manifests()) == [new.digest]


async def test_renaming(book: ImageBook) -> None:
    image = await book.record("default", "tiny", manifest())
    await book.record("default", "other", manifest(2))
    with pytest.raises(Exists):
        await book.rename("default", "tiny", "other")
    with pytest.raises(Absent):
        await book.rename("default", "tinny", "small")
    with pytest.raises(Invalid):
        await book.rename("default", "tiny", "Not a label")
    assert (await book.rename("default", "tiny", "tiny")).name == "tiny"
    moved = await book.rename("default", "tiny", "small")
    assert (moved.digest, moved.created) == (image.digest, image.created)
    assert [view.image.name for view in await book.all()] == ["other", "small"]


async def test_a_damaged_manifest_is_told(store: MemoryStore, book: ImageBook) -> None:
    image = await book.record("default", "tiny", manifest(1))
    await store.commit(Txn(put={manifest_key(image.digest): canonical(manifest(2))}))
    with pytest.raises(Broken, match="damaged"):
        await book.manifest(image.digest)


def test_a_field_left_at_its_default_does_not_enter_the_digest() -> None:
    assert canonical(manifest()) == canonical(
        Manifest(arch="x86_64", files=manifest().files, source="number 1", cmdline="")
    )
    assert b"cmdline" not in canonical(manifest())
    assert digest_of(manifest(1)) != digest_of(manifest(2))
    assert canonical(manifest()).startswith(b'{"arch":"x86_64","files":{"disk":{"digest":"sha256:')


class Stepped:
    """A store whose every call waits until the test lets it go on: any interleaving can be played."""

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.waiting: list[asyncio.Future[None]] = []

    async def _turn(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        await turn

    async def get(self, key: Key) -> Entry | None:
        await self._turn()
        return await self.inner.get(key)

    async def read(
        self, prefix: Key, *, after: Key | None = None, limit: int = PAGE, at: Revision | None = None
    ) -> View:
        await self._turn()
        return await self.inner.read(prefix, after=after, limit=limit, at=at)

    async def commit(self, txn: Txn) -> Revision:
        await self._turn()
        return await self.inner.commit(txn)

    def watch(self, prefix: Key, since: Revision) -> AsyncIterator[Event]:
        return self.inner.watch(prefix, since)

    async def lease(self, ttl: float) -> Lease:
        return await self.inner.lease(ttl)

    async def close(self) -> None:
        await self.inner.close()


async def launch(store: Stepped, book: ImageBook, name: str, volume: str) -> None:
    view = await book.find("default", name)
    await store.commit(book.claiming(view, use(volume)))


async def end(store: Stepped, book: ImageBook, volume: str) -> None:
    for number in (1, 2):
        await store.commit(book.releasing(digest_of(manifest(number)), VolumeId(volume)))


Act = Callable[[Stepped, ImageBook], Coroutine[Any, Any, object]]
ACTS: dict[str, Act] = {
    "launch 1": lambda store, book: launch(store, book, "a", "v1"),
    "launch 2": lambda store, book: launch(store, book, "b", "v2"),
    "launch 3": lambda store, book: launch(store, book, "a", "v3"),
    "end 1": lambda store, book: end(store, book, "v1"),
    "delete a": lambda _, book: book.delete("default", "a"),
    "delete b": lambda _, book: book.delete("default", "b"),
    "rebuild a": lambda _, book: book.record("default", "a", manifest(2)),
    "build b": lambda _, book: book.record("default", "b", manifest(1)),
    "rename": lambda _, book: book.rename("default", "a", "c"),
    "prune": lambda _, book: book.prune(),
}


async def play(names: list[str], seed: int, crash: int) -> None:
    """Run the acts at once, letting one store call at a time happen; every `crash`th turn ends an act instead."""
    store = Stepped()
    await ImageBook(store.inner).record("default", "a", manifest(1))
    book = ImageBook(store)
    tasks = [asyncio.create_task(ACTS[name](store, book)) for name in names]
    turn, dice = 0, random.Random(seed)
    while any(not task.done() for task in tasks):
        await asyncio.sleep(0)
        store.waiting = [waiting for waiting in store.waiting if not waiting.done()]
        if not store.waiting:
            continue
        chosen = store.waiting.pop(dice.randrange(len(store.waiting)))
        turn += 1
        if crash and turn % crash == 0:
            chosen.cancel()
        else:
            chosen.set_result(None)
    done = await asyncio.gather(*tasks, return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            assert isinstance(result, Refused | Absent | Conflict | Exists | asyncio.CancelledError), result
    await check(store.inner)


async def check(store: MemoryStore) -> None:
    """Before and after recovery: whoever stands on an image, or names it, has its manifest."""
    book = ImageBook(store)
    for recovered in (False, True):
        if recovered:
            await book.recover()
            await book.prune()
        manifests = await book.manifests()
        views = await book.all()
        used = {number for number in (1, 2) if await book.uses(digest_of(manifest(number)))}
        assert {view.image.digest for view in views} <= manifests.keys()
        assert {digest_of(manifest(number)) for number in used} <= manifests.keys()
        if recovered:
            assert all(view.image.state is ImageState.READY for view in views)
            held = {view.image.digest for view in views} | {digest_of(manifest(number)) for number in used}
            assert manifests.keys() == held


@settings(max_examples=1500, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(ACTS)), min_size=2, max_size=6, unique=True),
    seed=st.integers(0, 1 << 32),
    crash=st.sampled_from([0, 0, 0, 3, 5, 7, 11]),
)
def test_no_interleaving_takes_an_image_from_under_its_user(names: list[str], seed: int, crash: int) -> None:
    asyncio.run(play(names, seed, crash))


@pytest.mark.parametrize("seed", range(200))
def test_a_name_given_during_a_deletion_keeps_its_manifest(seed: int) -> None:
    asyncio.run(play(["delete a", "build b"], seed, 0))
    asyncio.run(play(["rebuild a", "prune", "build b"], seed, 0))


async def test_the_record_alone_decodes_as_the_image(store: MemoryStore, book: ImageBook) -> None:
    image = await book.record("default", "tiny", manifest())
    entry = await store.get(image_key("default", "tiny"))
    assert entry is not None
    assert msgspec.json.decode(entry.value, type=Image) == image
