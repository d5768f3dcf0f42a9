"""The mirror over every driver of the store."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import cast

import pytest

from atoll.base.errors import Refused
from atoll.store.api import Entry, Event, Key, Revision, Store, Txn
from atoll.store.mirror import GRACE, Mirror
from tests.contract.conftest import Compactable

A, B, C = Key("/web/a"), Key("/web/b"), Key("/web/c")
WEB = Key("/web/")


def number(_key: Key, entry: Entry) -> int:
    return int(entry.value)


async def test_holds_what_was_and_what_comes(store: Compactable) -> None:
    await store.commit(Txn(put={B: b"2", A: b"1", Key("/web2/a"): b"9"}))
    async with Mirror(store, WEB, number) as mirror:
        assert list(mirror.values()) == [1, 2]
        assert (mirror.get(A), mirror.get(C), len(mirror)) == (1, None, 2)
        await store.commit(Txn(put={C: b"3"}))
        revision = await store.commit(Txn(put={B: b"20"}, delete=frozenset({A})))
        await mirror.caught_up(revision)
        assert list(mirror.values()) == [20, 3]
        assert mirror.revision == revision
        assert mirror.get(A) is None


async def test_catches_up_at_once_with_what_it_was_told(store: Compactable) -> None:
    async with Mirror(store, WEB, number) as mirror:
        begun = time.monotonic()
        for n in range(20):
            await mirror.caught_up(await store.commit(Txn(put={A: b"%d" % n})))
            assert mirror.get(A) == n
        assert time.monotonic() - begun < 20 * GRACE


async def test_catches_up_with_a_revision_that_changed_nothing_below_it(store: Compactable) -> None:
    async with Mirror(store, WEB, number) as mirror:
        revision = await store.commit(Txn(put={Key("/elsewhere"): b"1"}))
        await mirror.caught_up(revision)
        assert mirror.revision >= revision


class Late:
    """A store whose watches begin only when they may."""

    def __init__(self, store: Compactable) -> None:
        self.read = store.read
        self._store = store
        self.may = asyncio.Event()

    async def watch(self, prefix: Key, since: Revision) -> AsyncIterator[Event]:
        await self.may.wait()
        async for event in self._store.watch(prefix, since):
            yield event


async def test_goes_on_after_compaction(store: Compactable) -> None:
    await store.commit(Txn(put={A: b"1", B: b"1"}))
    late = Late(store)
    async with Mirror(cast(Store, late), WEB, number) as mirror:
        await store.commit(Txn(put={A: b"2"}, delete=frozenset({B})))
        last = await store.commit(Txn(put={A: b"3", C: b"3"}))
        await store.compact()
        late.may.set()
        await mirror.caught_up(last)
        assert list(mirror.values()) == [3, 3]
        await mirror.caught_up(await store.commit(Txn(put={B: b"4"})))
        assert list(mirror.values()) == [3, 4, 3]


async def test_is_never_seen_halfway_through_a_transaction(store: Compactable) -> None:
    await store.commit(Txn(put={A: b"0", B: b"0"}))
    async with Mirror(store, WEB, number) as mirror:
        done = False

        async def write() -> None:
            nonlocal done
            for n in range(1, 101):
                await store.commit(Txn(put={A: b"%d" % n, B: b"%d" % n}))
            done = True

        async def look() -> int:
            looks = set()
            while not (done and mirror.get(A) == 100):
                assert mirror.get(A) == mirror.get(B)
                looks.add(mirror.get(A))
                await asyncio.sleep(0)
            return len(looks)

        _, looks = await asyncio.gather(write(), asyncio.wait_for(look(), 30))
        assert looks > 5


async def test_readers_that_catch_up_under_load_go_never_back(store: Compactable) -> None:
    async with Mirror(store, WEB, number) as mirror:

        async def client(n: int) -> None:
            key, other = Key(f"/web/{n}"), Key(f"/other/{n}")
            for value in range(15):
                await mirror.caught_up(await store.commit(Txn(put={key: b"%d" % value})))
                assert mirror.get(key) == value
                if value % 5 == 0:
                    await mirror.caught_up(await store.commit(Txn(put={other: b""})))
                    assert mirror.get(key) == value
                if value % 4 == 3:
                    await mirror.caught_up(await store.commit(Txn(delete=frozenset({key}))))
                    assert mirror.get(key) is None

        await asyncio.gather(*(client(n) for n in range(8)))


async def test_an_entry_is_decoded_once(store: Compactable) -> None:
    decoded: list[Key] = []

    def decode(key: Key, entry: Entry) -> bytes:
        decoded.append(key)
        return entry.value

    await store.commit(Txn(put={A: b"1", B: b"1"}))
    async with Mirror(store, WEB, decode) as mirror:
        await mirror.caught_up(await store.commit(Txn(put={B: b"2"})))
        await mirror.caught_up(await store.commit(Txn(put={Key("/elsewhere"): b""})))
        assert mirror.values() is mirror.values()
        assert list(mirror.values()) == [b"1", b"2"]
    assert decoded == [A, B, B]


async def test_what_it_cannot_decode_it_does_not_hide(store: Compactable) -> None:
    async with Mirror(store, WEB, number) as mirror:
        revision = await store.commit(Txn(put={A: b"not a number"}))
        with pytest.raises(ValueError, match="invalid literal"):
            await mirror.caught_up(revision)
        with pytest.raises(ValueError, match="invalid literal"):
            mirror.get(A)


async def listing(mirror: Mirror[int]) -> None:
    while True:
        mirror.values()
        await asyncio.sleep(0.01)


async def test_does_not_outlive_itself_or_its_store(store: Compactable) -> None:
    async with Mirror(store, WEB, number) as mirror:
        await store.close()
        with pytest.raises(Refused):
            await asyncio.wait_for(listing(mirror), 10)
    with pytest.raises(Refused):
        mirror.get(A)
