import pytest

from atoll.base.errors import Bug, Conflict
from atoll.store.api import ABSENT, Key, LeaseId, Revision, Txn
from atoll.store.memory import MemoryStore
from atoll.store.txn import commit_afresh, merge

A, B = Key("/a"), Key("/b")


def test_parts_become_one() -> None:
    one = merge(Txn({A: ABSENT}, {A: b"1"}), Txn({A: ABSENT, B: Revision(4)}, {}, frozenset({B})))
    assert one == Txn({A: ABSENT, B: Revision(4)}, {A: b"1"}, frozenset({B}))
    assert merge() == Txn()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Txn({A: ABSENT}), Txn({A: Revision(3)})),
        (Txn(put={A: b"1"}), Txn(put={A: b"2"})),
        (Txn(put={A: b"1"}), Txn(delete=frozenset({A}))),
        (Txn(put={A: b"1"}, lease=LeaseId(1)), Txn(put={B: b"1"}, lease=LeaseId(2))),
        (Txn(put={A: b"1"}, lease=LeaseId(1)), Txn(put={B: b"1"})),
    ],
)
def test_contradictions_are_bugs(one: Txn, other: Txn) -> None:
    with pytest.raises(Bug):
        merge(one, other)
    with pytest.raises(Bug):
        merge(other, one)


async def test_planned_anew_after_a_lost_race() -> None:
    store, planned = MemoryStore(), []

    async def make() -> tuple[int, Txn]:
        entry = await store.get(A)
        planned.append(entry)
        if len(planned) == 1:
            await store.commit(Txn(put={A: b"theirs"}))
        return len(planned), Txn({A: entry.revision if entry else ABSENT}, {A: b"ours"})

    attempt, revision = await commit_afresh(store, make)
    entry = await store.get(A)
    assert attempt == 2
    assert entry is not None
    assert (entry.value, entry.revision) == (b"ours", revision)


async def test_gives_up_with_the_conflict() -> None:
    store = MemoryStore()

    async def make() -> tuple[None, Txn]:
        return None, Txn({A: Revision(99)}, {A: b""})

    with pytest.raises(Conflict):
        await commit_afresh(store, make, attempts=3)
