"""Transactions from parts: several books contribute to one commit."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from atoll.base.errors import Bug, Conflict
from atoll.store.api import Key, LeaseId, Revision, Store, Txn

Result = TypeVar("Result")


def merge(*parts: Txn) -> Txn:
    """All parts as one transaction. Raises Bug where two of them contradict each other."""
    expect: dict[Key, Revision] = {}
    put: dict[Key, bytes] = {}
    delete: set[Key] = set()
    leases: set[LeaseId] = set()
    for part in parts:
        for key, revision in part.expect.items():
            if expect.setdefault(key, revision) != revision:
                raise Bug(f"two parts of a transaction expect {key} at revisions {expect[key]} and {revision}")
        for key, value in part.put.items():
            if put.setdefault(key, value) != value:
                raise Bug(f"two parts of a transaction put different values to {key}")
        delete |= part.delete
        if part.lease is not None:
            leases.add(part.lease)
    if both := delete & put.keys():
        raise Bug(f"one part of a transaction puts {sorted(both)[0]} and another deletes it")
    if len(leases) > 1 or (leases and any(part.put and part.lease is None for part in parts)):
        raise Bug("parts of a transaction want their keys under different leases")
    return Txn(expect, put, frozenset(delete), leases.pop() if leases else None)


async def commit_afresh(
    store: Store, make: Callable[[], Awaitable[tuple[Result, Txn]]], *, attempts: int = 20
) -> tuple[Result, Revision]:
    """Commit what `make` plans, planned anew each time somebody else was faster.

    Raises Conflict after the last attempt, and whatever `make` and `commit` raise.
    """
    for attempt in range(1, attempts + 1):
        result, txn = await make()
        try:
            return result, await store.commit(txn)
        except Conflict:
            if attempt == attempts:
                raise
    raise Bug("commit_afresh needs at least one attempt")
