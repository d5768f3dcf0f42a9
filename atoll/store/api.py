"""What Atoll asks of a store: no more than etcd can give.

Two stores follow this one contract: *shared* (SQLite on one host, etcd in a cluster) for definitions and
placements, *local* (always SQLite) for a host's own journal and handles. tests/contract/test_store.py is the
contract as code; every driver passes it.

Guarantees: a commit is all or nothing and durable once it returns; a read sees one revision; a watch from a
read's revision misses nothing and repeats nothing, in revision order, or raises `Compacted`.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import NewType, Protocol

import msgspec

from atoll.base.errors import Compacted, Invalid

Key = NewType("Key", str)
"""`/` and printable ASCII segments; a prefix ends in `/` so that `web` never matches `web2`."""
Revision = NewType("Revision", int)
"""One counter for the whole store; a key's revision is that of its last change."""
LeaseId = NewType("LeaseId", int)

ABSENT = Revision(0)
"""Expecting this revision means: the key must not exist."""
MAX_OPERATIONS = 128
"""Of a transaction: expectations, puts and deletes together (etcd's default --max-txn-ops)."""
MAX_VALUE = 64 << 10
"""Bytes of one value."""
MAX_TXN = 1 << 20
"""Bytes of all keys and values of a transaction (etcd refuses requests over 1.5 MiB)."""
PAGE = 1000
"""Entries a read returns at most when not told otherwise."""


class Entry(msgspec.Struct, frozen=True):
    value: bytes
    revision: Revision


class View(msgspec.Struct, frozen=True):
    """Entries below a prefix in key order, all read at one revision. `more` says that the page ended early."""

    entries: Mapping[Key, Entry]
    revision: Revision
    more: bool = False


class Event(msgspec.Struct, frozen=True):
    """A key's change: its new entry, or None where it was deleted."""

    key: Key
    entry: Entry | None
    revision: Revision


class Txn(msgspec.Struct, frozen=True):
    """All of it or none of it, and only if every key in `expect` is still at the revision that was read.

    `lease`: the keys put here die with that lease.
    """

    expect: Mapping[Key, Revision] = {}
    put: Mapping[Key, bytes] = {}
    delete: frozenset[Key] = frozenset()
    lease: LeaseId | None = None


class Lease(Protocol):
    """Keys tied to a lease die with it: when it is revoked, or `ttl` seconds after its last renewal."""

    id: LeaseId
    ttl: float

    async def renew(self) -> None:
        """Raises Absent when the lease was lost: the keys are gone, whoever held them must stop."""

    async def revoke(self) -> None:
        """Deletes its keys; of a lost lease too."""


class Store(Protocol):
    async def get(self, key: Key) -> Entry | None: ...

    async def read(
        self, prefix: Key, *, after: Key | None = None, limit: int = PAGE, at: Revision | None = None
    ) -> View:
        """One page of the entries below `prefix` with keys greater than `after`, in key order.

        `at` is a former page's revision, so that all pages are one picture; raises Compacted when the store
        no longer has it.
        """

    async def commit(self, txn: Txn) -> Revision:
        """The revision of the change.

        Raises Conflict (an expectation failed: nothing changed), Exhausted (the disk is full: nothing
        changed), Invalid (over a limit), Absent (the lease is lost), Unreachable (the outcome is unknown).
        One that is cancelled is decided before the cancellation is seen: a read after it tells.
        """

    def watch(self, prefix: Key, since: Revision) -> AsyncIterator[Event]:
        """Changes below `prefix` after revision `since`, without end. Raises Compacted.

        The events of one revision come with no other task in between.
        """

    async def lease(self, ttl: float) -> Lease: ...

    async def close(self) -> None:
        """Every later call, and each watch, raises Refused."""


def check(txn: Txn) -> None:
    """Refuse what etcd would refuse, in every driver alike."""
    count = len(txn.expect) + len(txn.put) + len(txn.delete)
    if count > MAX_OPERATIONS:
        raise Invalid(f"a transaction of {count} operations is over the limit of {MAX_OPERATIONS}")
    if both := txn.delete & txn.put.keys():
        raise Invalid(f"a transaction both puts and deletes {sorted(both)[0]}")
    for key, value in txn.put.items():
        if len(value) > MAX_VALUE:
            raise Invalid(f"{key} would hold {len(value)} bytes, over the limit of {MAX_VALUE}")
    keys = (*txn.expect, *txn.put, *txn.delete)
    if (size := sum(map(len, keys)) + sum(map(len, txn.put.values()))) > MAX_TXN:
        raise Invalid(f"a transaction of {size} bytes is over the limit of {MAX_TXN}")
    for key in keys:
        if not key.startswith("/") or key.endswith("/") or not key.isascii() or not key.isprintable():
            raise Invalid(f"{key!r} is not a key")


async def read_all(store: Store, prefix: Key) -> View:
    """Every page of a prefix as one view at one revision; begins anew should the store compact on the way."""
    for _ in range(9):
        with contextlib.suppress(Compacted):
            return await _read_pages(store, prefix)
    return await _read_pages(store, prefix)


async def _read_pages(store: Store, prefix: Key) -> View:
    first = view = await store.read(prefix)
    entries = dict(first.entries)
    while view.more:
        last = next(reversed(entries))
        view = await store.read(prefix, after=last, at=first.revision)
        entries.update(view.entries)
    return View(entries, first.revision)
