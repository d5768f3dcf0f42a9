"""The embedded store: one SQLite file, written ahead (WAL) and synced before a commit returns.

Only one process has it open, so watches, leases and the history live in that process and only entries are on
disk. Hence two things hold across a reopening: leases are dead and their keys deleted (whoever held them died
with the process), and a watch or page from a revision before it raises Compacted.

One thread writes; the transactions that wait while it syncs share the next sync, each judged alone. `get` is a
lookup on the event loop (some microseconds); pages are read on a thread of their own.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from atoll.store import rules, sqlite_file
from atoll.store.api import PAGE, Entry, Event, Key, Lease, LeaseId, Revision, Txn, View, check
from atoll.store.history import MAX_BYTES, MAX_CHANGES, History
from atoll.store.leases import Leases
from atoll.store.sqlite_writer import Job, Outcome, Writer, find

_PAGE = "SELECT key, value, revision FROM entry WHERE key > ? AND key < ? ORDER BY key LIMIT ?"


class SqliteStore:
    """Made by `open`; belongs to the event loop it was opened on.

    A cancelled `commit` happened wholly or not at all: read to know which.
    """

    def __init__(self, file: sqlite_file.File, *, max_changes: int, max_bytes: int) -> None:
        self._file = file
        self._reading = ThreadPoolExecutor(1, "store-read")
        self._loop = asyncio.get_running_loop()
        self._history = History(sqlite_file.latest(file.writer), max_changes=max_changes, max_bytes=max_bytes)
        self._leases = Leases(self._submit)
        self._writer = Writer(file.writer, file.path, self._leases, self._deliver_soon)
        self._closed = False

    @classmethod
    async def open(
        cls, path: Path | str, *, max_changes: int = MAX_CHANGES, max_bytes: int = MAX_BYTES
    ) -> "SqliteStore":
        """Makes the file when there is none; its directory must be there. The history's bounds are a choice.

        Raises Refused (another process has it open; a newer Atoll wrote it; it is not Atoll's), Broken (it is
        damaged), Exhausted (no space).
        """
        file = await asyncio.to_thread(sqlite_file.File.open, Path(path))
        return cls(file, max_changes=max_changes, max_bytes=max_bytes)

    async def get(self, key: Key) -> Entry | None:
        self._check_open()
        rules.check_key(key)
        try:
            return find(self._file.getter, key)
        except sqlite3.Error as error:
            raise sqlite_file.translate(error, self._file.path) from error

    async def read(
        self, prefix: Key, *, after: Key | None = None, limit: int = PAGE, at: Revision | None = None
    ) -> View:
        rules.check_page(prefix, limit)
        start, end = rules.span(prefix, after)
        room = 0
        while True:
            self._check_open()
            bounds = (start, end, limit + 1 + room)
            revision, rows = await self._loop.run_in_executor(self._reading, self._rows, bounds)
            if at is None:
                return rules.page(rows, {}, limit, revision)
            await self._history.reached(revision)
            past = self._history.past(prefix, after, at, revision)
            if len(past) <= room:
                return rules.page(rows, past, limit, at)
            room = 2 * len(past)

    async def commit(self, txn: Txn) -> Revision:
        check(txn)
        return await self._submit(txn)

    def watch(self, prefix: Key, since: Revision) -> AsyncIterator[Event]:
        return self._history.watch(prefix, since)

    async def lease(self, ttl: float) -> Lease:
        self._check_open()
        return self._leases.grant(ttl)

    async def compact(self) -> None:
        """Forget what was, now."""
        self._history.compact()

    async def close(self) -> None:
        """What was asked before is carried out first."""
        if self._closed:
            return
        self._closed = True
        self._history.close()
        await self._leases.close()
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._writer.close()
        self._reading.shutdown()
        self._file.close()

    def _check_open(self) -> None:
        if self._closed:
            raise rules.closed()

    async def _submit(self, ask: Txn | LeaseId) -> Revision:
        self._check_open()
        job = Job(ask, self._loop.create_future())
        self._writer.put(job)
        try:
            return await asyncio.shield(job.done)
        except asyncio.CancelledError:
            await asyncio.wait([job.done])
            if not job.done.cancelled():
                job.done.exception()  # it is told to nobody
            raise

    def _deliver_soon(self, outcome: Outcome) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended without `close`: nobody waits
            self._loop.call_soon_threadsafe(self._deliver, outcome)

    def _deliver(self, outcome: Outcome) -> None:
        if outcome.changes:
            self._history.append(outcome.changes, outcome.changes[-1].event.revision)
        for job, answer in outcome.answers:
            if job.done.done():
                continue
            if isinstance(answer, Exception):
                job.done.set_exception(answer)
            else:
                job.done.set_result(answer)

    def _rows(self, bounds: tuple[str, str, int]) -> tuple[Revision, list[tuple[Key, Entry]]]:
        pager = self._file.pager
        with sqlite_file.translated(self._file.path):
            pager.execute("BEGIN")
            try:
                revision = sqlite_file.latest(pager)
                rows = pager.execute(_PAGE, bounds).fetchall()
            finally:
                pager.execute("ROLLBACK")
        return revision, [(Key(key), Entry(value, Revision(at))) for key, value, at in rows]
