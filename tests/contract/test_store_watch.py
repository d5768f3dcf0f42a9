"""Watches, leases and closing of the store's contract: memory, SQLite and a real etcd all pass it."""

import asyncio
import time
from collections.abc import Coroutine

import pytest

from atoll.base.errors import Absent, Compacted, Conflict, Invalid, Refused
from atoll.store.api import (
    ABSENT,
    Entry,
    Event,
    Key,
    Revision,
    Txn,
)
from tests.contract.conftest import Compactable
from tests.kit.stores import WEB, A, B, C, delete, gone, now, put, take

# Watches


async def test_a_watch_from_a_read_misses_nothing_and_repeats_nothing(store: Compactable) -> None:
    await put(store, A, b"before")
    since = await now(store)
    missed = [await put(store, A, b"1"), await delete(store, A)]
    events = store.watch(WEB, since)
    first = await take(events, 2)
    later = [await put(store, B, b"2"), await put(store, A, b"3")]
    assert [*first, *await take(events, 2)] == [
        Event(A, Entry(b"1", missed[0]), missed[0]),
        Event(A, None, missed[1]),
        Event(B, Entry(b"2", later[0]), later[0]),
        Event(A, Entry(b"3", later[1]), later[1]),
    ]


async def test_a_watch_tells_of_its_prefix_only(store: Compactable) -> None:
    events = store.watch(WEB, await now(store))
    for key in ("/web", "/web2/a", "/web-a", "/we/b", "/web0"):
        await put(store, key)
    await put(store, A)
    assert [event.key for event in await take(events, 1)] == [A]


async def test_the_events_of_a_transaction_come_together(store: Compactable) -> None:
    await put(store, C)
    since = await now(store)
    revision = await store.commit(Txn(put={B: b"1", A: b"1"}, delete=frozenset({C})))
    events = await take(store.watch(WEB, since), 3)
    assert {event.key: event.entry for event in events} == {
        A: Entry(b"1", revision),
        B: Entry(b"1", revision),
        C: None,
    }
    assert {event.revision for event in events} == {revision}


async def test_many_watches_see_the_same_order_under_load(store: Compactable) -> None:
    since = await now(store)

    async def write(writer: int) -> None:
        for n in range(25):
            await store.commit(Txn(put={Key(f"/web/{writer}/{n % 3}"): b"%d" % n, Key(f"/web/all/{writer}"): b""}))

    watches = [asyncio.create_task(take(store.watch(WEB, since), 400)) for _ in range(20)]
    await asyncio.gather(*(write(n) for n in range(8)))
    seen = await asyncio.gather(*watches)
    revisions = [event.revision for event in seen[0]]
    assert revisions == sorted(revisions)
    assert len(set(revisions)) == 200
    assert len({(event.key, event.revision) for event in seen[0]}) == 400
    assert all(one == seen[0] for one in seen)


async def test_a_watch_may_begin_at_a_revision_to_come(store: Compactable) -> None:
    since = Revision(await now(store) + 2)
    watching = asyncio.create_task(take(store.watch(WEB, since), 1))
    await asyncio.sleep(0.1)
    revisions = [await put(store, A) for _ in range(3)]
    assert [event.revision for event in await watching] == revisions[2:]


async def test_a_watch_from_what_is_compacted(store: Compactable) -> None:
    since = await now(store)
    await put(store, A)
    await delete(store, A)
    await store.compact()
    for old in (since, Revision(since + 1), Revision(0)):
        with pytest.raises(Compacted):
            await take(store.watch(WEB, old), 1)
    events = store.watch(WEB, await now(store))
    await put(store, B)
    assert [event.key for event in await take(events, 1)] == [B]


async def test_a_watch_that_is_up_to_date_survives_compaction(store: Compactable) -> None:
    events = store.watch(WEB, await now(store))
    for _ in range(3):
        revision = await put(store, A)
        assert [event.revision for event in await take(events, 1)] == [revision]
        await store.compact()


async def test_a_slow_watch_misses_nothing_or_hears_of_it(store: Compactable) -> None:
    """Where it cannot be given everything any more it raises, after an unbroken beginning."""
    events = store.watch(WEB, await now(store))
    made = [await put(store, A, b"x" * 1000)]
    seen = [event.revision for event in await take(events, 1)]
    made += [await put(store, A, b"x" * 1000) for _ in range(300)]
    await store.compact()
    made.append(await put(store, A))
    try:
        while len(seen) < len(made):
            seen += [event.revision for event in await take(events, 1)]
    except Compacted:
        pass
    assert seen == made[: len(seen)]


async def test_a_slow_watch_hinders_nobody(store: Compactable) -> None:
    since = await now(store)
    slow, quick = store.watch(WEB, since), store.watch(WEB, since)
    made = [await put(store, A, b"x" * 25_000) for _ in range(100)]
    assert [event.revision for event in await take(quick, 100)] == made
    assert [event.revision for event in await take(slow, 100)] == made


# Leases


async def test_keys_die_with_a_lease_that_is_not_renewed(store: Compactable) -> None:
    lease = await store.lease(1)
    granted = time.monotonic()
    revision = await store.commit(Txn(put={A: b"", B: b""}, lease=lease.id))
    await put(store, C)
    events = store.watch(WEB, await now(store))
    died = await take(events, 2)
    assert {event.key: event.entry for event in died} == {A: None, B: None}
    assert died[0].revision == died[1].revision > revision
    assert await gone(store, A) >= granted + lease.ttl - 0.05
    with pytest.raises(Absent):
        await lease.renew()
    with pytest.raises(Absent):
        await put(store, A, lease=lease.id)
    assert list((await store.read(WEB)).entries) == [C]
    await lease.revoke()


async def test_renewing_keeps_a_lease(store: Compactable) -> None:
    lease = await store.lease(1)
    await put(store, A, lease=lease.id)
    end = time.monotonic() + 2.5 * lease.ttl
    while time.monotonic() < end:
        await asyncio.sleep(lease.ttl / 5)
        await lease.renew()
    assert await store.get(A) is not None
    await gone(store, A)


async def test_revoking_deletes_at_once(store: Compactable) -> None:
    lease, other = await store.lease(60), await store.lease(60)
    assert lease.id != other.id
    await put(store, A, lease=lease.id)
    await put(store, B, lease=other.id)
    await lease.revoke()
    assert list((await store.read(WEB)).entries) == [B]
    await lease.revoke()
    with pytest.raises(Absent):
        await lease.renew()
    await other.renew()


async def test_the_last_put_says_which_lease_a_key_has(store: Compactable) -> None:
    lease, other = await store.lease(60), await store.lease(60)
    await store.commit(Txn(put={A: b"", B: b"", C: b""}, lease=lease.id))
    await put(store, A)
    await put(store, B, lease=other.id)
    await lease.revoke()
    assert list((await store.read(WEB)).entries) == [A, B]
    await other.revoke()
    assert list((await store.read(WEB)).entries) == [A]


async def test_a_lost_lease_changes_nothing(store: Compactable) -> None:
    lease = await store.lease(60)
    await lease.revoke()
    first = await put(store, A)
    with pytest.raises(Absent):
        await store.commit(Txn(put={B: b""}, delete=frozenset({A}), lease=lease.id))
    with pytest.raises(Conflict):  # who lost the race hears so first
        await store.commit(Txn(expect={A: ABSENT}, put={A: b""}, lease=lease.id))
    assert await now(store) == first
    with pytest.raises(Invalid):
        await store.lease(0)


# Closing


async def test_a_closed_store_refuses(store: Compactable) -> None:
    lease, since = await store.lease(60), await now(store)
    watches = [asyncio.create_task(take(store.watch(WEB, since), 1)) for _ in range(3)]
    await asyncio.sleep(0.2)
    await store.close()
    waited = await asyncio.gather(*watches, return_exceptions=True)
    assert [type(error) for error in waited] == [Refused] * 3
    calls: list[Coroutine[None, None, object]] = [
        store.get(A),
        store.read(WEB),
        put(store, A),
        store.lease(1),
        lease.renew(),
    ]
    for call in calls:
        with pytest.raises(Refused):
            await call
    with pytest.raises(Refused):
        await take(store.watch(WEB, since), 1)
    await store.close()
