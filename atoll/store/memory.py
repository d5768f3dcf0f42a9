"""The contract in one process and nothing on disk: for tests."""

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncIterator, Sequence

from atoll.store import rules
from atoll.store.api import PAGE, Entry, Event, Key, Lease, LeaseId, Revision, Txn, View, check
from atoll.store.history import FIRST, MAX_BYTES, MAX_CHANGES, History
from atoll.store.leases import Leases
from atoll.store.rules import Change


class MemoryStore:
    def __init__(self, *, max_changes: int = MAX_CHANGES, max_bytes: int = MAX_BYTES) -> None:
        self._entries: dict[Key, Entry] = {}
        self._keys: list[Key] = []
        self._lease_of: dict[Key, LeaseId] = {}
        self._history = History(FIRST, max_changes=max_changes, max_bytes=max_bytes)
        self._leases = Leases(self._end_lease)
        self._closed = False

    async def get(self, key: Key) -> Entry | None:
        self._check_open()
        rules.check_key(key)
        return self._entries.get(key)

    async def read(
        self, prefix: Key, *, after: Key | None = None, limit: int = PAGE, at: Revision | None = None
    ) -> View:
        self._check_open()
        rules.check_page(prefix, limit)
        latest = self._history.latest
        past = self._history.past(prefix, after, at, latest) if at is not None else {}
        start, end = rules.span(prefix, after)
        first, last = bisect_right(self._keys, start), bisect_left(self._keys, end)
        keys = self._keys[first : min(last, first + limit + 1 + len(past))]
        rows = [(key, self._entries[key]) for key in keys]
        return rules.page(rows, past, limit, latest if at is None else at)

    async def commit(self, txn: Txn) -> Revision:
        check(txn)
        await asyncio.sleep(0)  # as the others do, it lets somebody else go first
        self._check_open()
        changes = rules.judge(txn, self._next(), self._entries.get, self._leases)
        return self._apply(changes, txn.lease)

    def watch(self, prefix: Key, since: Revision) -> AsyncIterator[Event]:
        return self._history.watch(prefix, since)

    async def lease(self, ttl: float) -> Lease:
        self._check_open()
        return self._leases.grant(ttl)

    async def compact(self) -> None:
        """Forget what was, now."""
        self._history.compact()

    async def close(self) -> None:
        self._closed = True
        self._history.close()
        await self._leases.close()

    async def _end_lease(self, lease: LeaseId) -> None:
        keys = [key for key, holder in self._lease_of.items() if holder == lease]
        self._apply(rules.removals(keys, self._next(), self._entries.get), None)

    def _apply(self, changes: Sequence[Change], lease: LeaseId | None) -> Revision:
        if not changes:
            return self._history.latest
        for change in changes:
            key, entry = change.event.key, change.event.entry
            self._lease_of.pop(key, None)
            if entry is None:
                del self._entries[key]
                del self._keys[bisect_left(self._keys, key)]
                continue
            if key not in self._entries:
                insort(self._keys, key)
            self._entries[key] = entry
            if lease is not None:
                self._lease_of[key] = lease
        self._history.append(changes, changes[0].event.revision)
        return self._history.latest

    def _next(self) -> Revision:
        return Revision(self._history.latest + 1)

    def _check_open(self) -> None:
        if self._closed:
            raise rules.closed()
