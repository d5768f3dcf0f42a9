"""The store's contract (atoll/store/api.py) as code: memory, SQLite and a real etcd all pass it."""

import asyncio
import contextlib
import itertools
import random

import pytest

from atoll.base.errors import Compacted, Conflict, Invalid
from atoll.store.api import (
    ABSENT,
    MAX_OPERATIONS,
    MAX_TXN,
    MAX_VALUE,
    Entry,
    Key,
    Revision,
    Txn,
    read_all,
)
from tests.contract.conftest import Compactable
from tests.kit.stores import WEB, A, B, C, delete, now, put, take

# Reading and writing


async def test_what_was_put_is_there_at_the_revision_of_its_commit(store: Compactable) -> None:
    value = bytes(range(256))
    revision = await put(store, A, value)
    assert await store.get(A) == Entry(value, revision)
    assert (await store.read(WEB)).entries == {A: Entry(value, revision)}
    assert (await store.read(WEB)).revision == revision
    assert await store.get(B) is None


async def test_a_store_that_holds_nothing_has_a_revision_to_watch_from(store: Compactable) -> None:
    view = await store.read(WEB)
    assert (view.entries, view.more) == ({}, False)
    assert view.revision > ABSENT
    first = await put(store, A)
    assert [event.revision for event in await take(store.watch(WEB, view.revision), 1)] == [first]


async def test_a_transaction_has_one_revision_and_each_commit_a_greater_one(store: Compactable) -> None:
    first = await store.commit(Txn(put={A: b"1", B: b"1"}))
    second = await store.commit(Txn(put={B: b"2", C: b"2"}))
    third = await put(store, "/elsewhere")
    assert first < second < third
    revisions = {key: entry.revision for key, entry in (await store.read(WEB)).entries.items()}
    assert revisions == {A: first, B: second, C: second}


async def test_all_or_nothing(store: Compactable) -> None:
    revision = await put(store, A, b"old")
    before = await now(store)
    txn = Txn(expect={A: revision, B: Revision(revision + 5)}, put={A: b"new", C: b"new"}, delete=frozenset({B}))
    with pytest.raises(Conflict):
        await store.commit(txn)
    assert await store.get(A) == Entry(b"old", revision)
    assert await store.get(C) is None
    assert await now(store) == before


async def test_a_commit_that_expects_what_is_there_succeeds(store: Compactable) -> None:
    first = await put(store, A, b"1")
    second = await store.commit(Txn(expect={A: first, B: ABSENT}, put={A: b"2", B: b"2"}))
    assert await store.get(A) == Entry(b"2", second)
    assert await store.get(B) == Entry(b"2", second)


async def test_conflict_names_the_key(store: Compactable) -> None:
    first = await put(store, A)
    await put(store, A)
    with pytest.raises(Conflict, match=f"{A} was changed.*not {first}"):
        await store.commit(Txn(expect={A: first}, delete=frozenset({A})))
    with pytest.raises(Conflict, match=f"{A} exists"):
        await store.commit(Txn(expect={B: ABSENT, A: ABSENT}, put={A: b"mine"}))
    with pytest.raises(Conflict, match=f"{B} is gone"):
        await store.commit(Txn(expect={B: first}, put={B: b"back"}))


async def test_an_expectation_may_stand_alone(store: Compactable) -> None:
    first = await put(store, A)
    assert await store.commit(Txn(expect={A: first, B: ABSENT})) == await now(store) == first
    with pytest.raises(Conflict):
        await store.commit(Txn(expect={A: ABSENT}))


async def test_a_deleted_key_is_absent_and_may_be_made_again(store: Compactable) -> None:
    await put(store, A)
    deleted = await delete(store, A)
    assert await store.get(A) is None
    assert (await store.read(WEB)).entries == {}
    made = await store.commit(Txn(expect={A: ABSENT}, put={A: b"again"}))
    assert made > deleted


async def test_deleting_what_is_absent_changes_nothing(store: Compactable) -> None:
    before = await put(store, A)
    events = store.watch(WEB, before)
    assert await delete(store, B) == before == await now(store)
    after = await put(store, C)
    assert [event.key for event in await take(events, 1)] == [C]
    assert after == before + 1


async def test_putting_the_same_value_is_a_change(store: Compactable) -> None:
    first = await put(store, A, b"same")
    assert await put(store, A, b"same") > first


async def test_concurrent_counters_lose_no_increment(store: Compactable) -> None:
    await put(store, A, b"0")

    async def increment(times: int) -> int:
        conflicts = 0
        while times:
            entry = await store.get(A)
            assert entry is not None
            await asyncio.sleep(0)
            try:
                await store.commit(Txn(expect={A: entry.revision}, put={A: b"%d" % (int(entry.value) + 1)}))
                times -= 1
            except Conflict:
                conflicts += 1
        return conflicts

    conflicts = await asyncio.gather(*(increment(10) for _ in range(8)))
    entry = await store.get(A)
    assert entry is not None
    assert entry.value == b"80"
    assert sum(conflicts) > 0, "nothing raced: the test shows nothing"


async def test_of_many_claims_one_wins(store: Compactable) -> None:
    claims = [store.commit(Txn(expect={A: ABSENT}, put={A: b"%d" % n})) for n in range(16)]
    results = await asyncio.gather(*claims, return_exceptions=True)
    winners = [n for n, result in enumerate(results) if not isinstance(result, BaseException)]
    assert len(winners) == 1
    assert all(isinstance(result, Conflict) for n, result in enumerate(results) if n not in winners)
    entry = await store.get(A)
    assert entry is not None
    assert entry.value == b"%d" % winners[0]


async def test_a_cancelled_commit_happened_wholly_or_not_at_all(store: Compactable) -> None:
    async def both(n: int) -> None:
        await store.commit(Txn(put={A: b"%d" % n, B: b"%d" % n}))

    for n in range(20):
        task = asyncio.create_task(both(n))
        await asyncio.sleep(0.0005 * (n % 4))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        entries = (await store.read(WEB)).entries
        assert entries.get(A) == entries.get(B)
    await both(99)
    assert {entry.value for entry in (await store.read(WEB)).entries.values()} == {b"99"}


# Limits


async def test_limits_of_a_transaction(store: Compactable) -> None:
    keys = [Key(f"/web/{n:03}") for n in range(MAX_OPERATIONS)]
    await store.commit(Txn(put=dict.fromkeys(keys, b"x")))
    entries = (await store.read(WEB)).entries
    half = MAX_OPERATIONS // 2
    expect = {key: entries[key].revision for key in keys[:half]}
    await store.commit(Txn(expect=expect, put=dict.fromkeys(keys[:half], b"y")))
    with pytest.raises(Invalid, match="129 operations"):
        await store.commit(Txn(expect=expect, put=dict.fromkeys(keys[:half], b"z"), delete=frozenset({keys[99]})))
    await delete(store, *keys)
    assert (await store.read(WEB)).entries == {}


async def test_limits_of_values(store: Compactable) -> None:
    big = b"\xff" * MAX_VALUE
    await put(store, A, big)
    entry = await store.get(A)
    assert entry is not None
    assert entry.value == big
    with pytest.raises(Invalid, match="65537 bytes"):
        await put(store, B, big + b"!")
    fits = MAX_TXN // MAX_VALUE - 1
    await store.commit(Txn(put={Key(f"/web/{n}"): big for n in range(fits)}))
    with pytest.raises(Invalid, match="over the limit"):
        await store.commit(Txn(put={Key(f"/web/{n}"): big for n in range(fits + 1)}))


@pytest.mark.parametrize("key", ["", "web/a", "/web/", "/", "/web/é", "/web/\n", "/web/\0"])
async def test_bad_keys(store: Compactable, key: str) -> None:
    for txn in (Txn(put={Key(key): b""}), Txn(delete=frozenset({Key(key)})), Txn(expect={Key(key): ABSENT})):
        with pytest.raises(Invalid):
            await store.commit(txn)
    with pytest.raises(Invalid):
        await store.get(Key(key))


@pytest.mark.parametrize("prefix", ["", "/web", "web/", "/wéb/"])
async def test_bad_prefixes(store: Compactable, prefix: str) -> None:
    with pytest.raises(Invalid):
        await store.read(Key(prefix))
    with pytest.raises(Invalid):
        await take(store.watch(Key(prefix), Revision(1)), 1)


async def test_a_key_is_put_or_deleted_not_both(store: Compactable) -> None:
    with pytest.raises(Invalid, match="both"):
        await store.commit(Txn(put={A: b""}, delete=frozenset({A})))


# Pages


async def test_a_prefix_holds_its_own_keys_in_order(store: Compactable) -> None:
    inside = ["/web/B", "/web/a", "/web/a-b", "/web/a/b", "/web/a0", "/web/b", "/web/~"]
    for key in (*reversed(inside), "/web", "/web-1", "/web.a", "/web0", "/web2/a", "/we/b"):
        await put(store, key)
    assert list((await store.read(WEB)).entries) == inside
    assert list((await store.read(Key("/web/a/"))).entries) == ["/web/a/b"]
    assert len((await store.read(Key("/"))).entries) == len(inside) + 6


async def test_pages(store: Compactable) -> None:
    keys = [f"/web/{n:03}" for n in range(10)]
    await store.commit(Txn(put={Key(key): key.encode() for key in keys}))
    first = await store.read(WEB, limit=4)
    second = await store.read(WEB, after=Key(keys[3]), limit=4)
    third = await store.read(WEB, after=Key(keys[7]), limit=4)
    assert [list(page.entries) for page in (first, second, third)] == [keys[:4], keys[4:8], keys[8:]]
    assert [page.more for page in (first, second, third)] == [True, True, False]
    assert not (await store.read(WEB, limit=10)).more
    assert list((await store.read(WEB, after=Key("/web/0045"), limit=1)).entries) == [keys[5]]
    assert list((await store.read(WEB, after=Key("/a"), limit=1)).entries) == [keys[0]]
    assert not (await store.read(WEB, after=Key("/zoo"))).entries
    with pytest.raises(Invalid):
        await store.read(WEB, limit=0)


async def test_pages_at_a_revision_are_one_picture(store: Compactable) -> None:
    keys = [Key(f"/web/{n}") for n in range(9)]
    await store.commit(Txn(put=dict.fromkeys(keys, b"then")))
    first = await store.read(WEB, limit=3)
    await store.commit(Txn(put={keys[4]: b"now", Key("/web/55"): b"new"}, delete=frozenset({keys[3], keys[8]})))
    await store.commit(Txn(put={keys[3]: b"back", keys[4]: b"later", Key("/web/9"): b"new"}))
    seen, page = dict(first.entries), first
    while page.more:
        page = await store.read(WEB, after=max(seen), limit=3, at=first.revision)
        assert page.revision == first.revision
        assert len(page.entries) <= 3
        seen.update(page.entries)
    assert seen == dict.fromkeys(keys, Entry(b"then", first.revision))
    assert {entry.value for entry in (await store.read(WEB)).entries.values()} == {
        b"then",
        b"new",
        b"back",
        b"later",
    }


@pytest.mark.parametrize("seed", range(5))
async def test_every_revision_reads_as_it_was(store: Compactable, seed: int) -> None:
    """Random changes, then random pages of random revisions, against plain dictionaries."""
    dice = random.Random(seed)
    keys = [Key(f"/web/{n:02}") for n in range(30)]
    entries: dict[Key, Entry] = {}
    pictures: dict[Revision, dict[Key, Entry]] = {}
    for n in range(60):
        put, dead = dice.sample(keys, dice.randint(0, 4)), frozenset(dice.sample(keys, dice.randint(0, 3)))
        txn = Txn(put={key: b"%d" % n for key in put if key not in dead}, delete=dead)
        revision = await store.commit(txn)
        entries = {key: entry for key, entry in entries.items() if key not in dead}
        entries |= {key: Entry(value, revision) for key, value in txn.put.items()}
        pictures[revision] = entries
    for at, picture in dice.sample(sorted(pictures.items()), 20):
        limit, after, seen = dice.randint(1, 12), None, dict[Key, Entry]()
        while (page := await store.read(WEB, after=after, limit=limit, at=at)).more:
            assert len(page.entries) == limit
            seen.update(page.entries)
            after = max(seen)
        assert {**seen, **page.entries} == picture


async def test_pages_at_a_compacted_revision(store: Compactable) -> None:
    await store.commit(Txn(put={A: b"", B: b""}))
    first = await store.read(WEB, limit=1)
    await store.compact()
    assert list((await store.read(WEB, after=A, at=first.revision)).entries) == [B]
    await delete(store, B)
    await store.compact()
    with pytest.raises(Compacted):
        await store.read(WEB, after=A, at=first.revision)


async def test_a_revision_to_come_cannot_be_read(store: Compactable) -> None:
    with pytest.raises(Invalid, match="revision"):
        await store.read(WEB, at=Revision(await now(store) + 100))


async def test_read_all_is_one_picture_while_others_write(store: Compactable) -> None:
    """Each transaction moves one entry, so every picture holds as many."""
    keys = [Key(f"/web/{n:04}") for n in range(2500)]
    for n in range(0, len(keys), 100):
        await store.commit(Txn(put=dict.fromkeys(keys[n : n + 100], b"")))

    async def move() -> None:
        for n in itertools.count():
            old, new = (Key(f"/web/{i * 7 % 2500:04}{'-' * (i // 2500)}") for i in (n, n + 2500))
            await store.commit(Txn(put={new: b""}, delete=frozenset({old})))

    mover = asyncio.create_task(move())
    for _ in range(10):
        assert len((await read_all(store, WEB)).entries) == len(keys)
    assert not mover.done()
    mover.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await mover
