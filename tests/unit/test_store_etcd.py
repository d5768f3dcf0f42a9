"""What is EtcdStore's own: members that fall silent, die and come back."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from atoll.base.errors import Invalid, Unreachable
from atoll.store.api import Key, Txn
from atoll.store.etcd import EtcdStore
from tests.kit.etcd import Etcd, running_etcd

A, WEB = Key("/web/a"), Key("/web/")


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running_etcd(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture
async def store(etcd: Etcd) -> AsyncIterator[EtcdStore]:
    store = await EtcdStore.connect([etcd.endpoint], root="/unit", timeout=2)
    yield store
    await store.close()


async def test_roots_do_not_meet(etcd: Etcd, store: EtcdStore) -> None:
    other = await EtcdStore.connect([etcd.endpoint], root="/unit2")
    await other.commit(Txn(put={A: b"theirs"}))
    assert await store.get(A) is None
    assert list((await other.read(Key("/"))).entries) == [A]
    await other.close()


@pytest.mark.parametrize("root", ["web", "/web/", "/"])
async def test_a_bad_root(etcd: Etcd, root: str) -> None:
    with pytest.raises(Invalid):
        await EtcdStore.connect([etcd.endpoint], root=root)


async def test_nobody_there() -> None:
    begun = time.monotonic()
    with pytest.raises(Unreachable):
        await EtcdStore.connect(["127.0.0.1:1"], timeout=1)
    with pytest.raises(Unreachable, match="localhost:nonsense"):
        await EtcdStore.connect(["localhost:nonsense"], timeout=1)
    with pytest.raises(Invalid):
        await EtcdStore.connect([])
    assert time.monotonic() - begun < 5


async def test_a_dead_member_is_passed_over(etcd: Etcd) -> None:
    store = await EtcdStore.connect(["127.0.0.1:1", etcd.endpoint], root="/unit")
    await store.get(A)
    await store.close()


async def test_the_outcome_is_unknown_when_etcd_falls_silent(etcd: Etcd, store: EtcdStore) -> None:
    lease = await store.lease(60)
    before = await store.commit(Txn(put={A: b"1"}))
    with etcd.frozen():
        begun = time.monotonic()
        calls = (store.commit(Txn(put={A: b"2"})), store.get(A), store.read(WEB), lease.renew(), store.lease(5))
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in errors] == [Unreachable] * 5
        assert time.monotonic() - begun < 4
    await lease.renew()
    entry = await store.get(A)
    assert entry is not None
    assert (entry.value, entry.revision > before) in ((b"1", False), (b"2", True))
    await store.commit(Txn(expect={A: entry.revision}, put={A: b"3"}))


async def test_a_watch_outlives_a_crash_of_etcd(etcd: Etcd, store: EtcdStore) -> None:
    since = (await store.read(WEB)).revision
    seen: list[bytes] = []

    async def follow() -> None:
        async for event in store.watch(WEB, since):
            assert event.entry is not None
            seen.append(event.entry.value)

    following = asyncio.create_task(follow())
    made = []
    for n in range(30):
        if n in (10, 20):
            etcd.kill()
            await asyncio.sleep(0.3 if n == 10 else 0)
            await asyncio.to_thread(etcd.start)
            async with asyncio.timeout(30):
                while True:
                    try:
                        await store.get(A)
                        break
                    except Unreachable:
                        await asyncio.sleep(0.1)
        made.append(b"%d" % n)
        await store.commit(Txn(put={A: made[-1]}))
    async with asyncio.timeout(30):
        while len(seen) < len(made):
            await asyncio.sleep(0.05)
    following.cancel()
    assert seen == made


async def test_waiting_calls_can_be_cancelled(etcd: Etcd, store: EtcdStore) -> None:
    with etcd.frozen():
        calls = [asyncio.create_task(call) for call in (store.get(A), store.read(WEB), take_one(store))]
        await asyncio.sleep(0.2)
        for call in calls:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 3


async def take_one(store: EtcdStore) -> object:
    return await anext(store.watch(WEB, (await store.read(WEB)).revision))
