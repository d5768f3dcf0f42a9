"""The one thread that writes an SqliteStore's file."""

import contextlib
import sqlite3
from asyncio import Future
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

from atoll.base.errors import AtollError
from atoll.store import rules, sqlite_file
from atoll.store.api import Entry, Key, LeaseId, Revision, Txn
from atoll.store.rules import Change

GROUP = 64
"""Transactions that share one sync at most."""

GET = "SELECT value, revision FROM entry WHERE key = ?"
_PUT = """INSERT INTO entry (key, value, revision, lease) VALUES (?, ?, ?, ?) ON CONFLICT (key)
    DO UPDATE SET value = excluded.value, revision = excluded.revision, lease = excluded.lease"""
_DELETE = "DELETE FROM entry WHERE key = ?"
_KEYS_OF_LEASE = "SELECT key FROM entry WHERE lease = ?"
_ADVANCE = "UPDATE latest SET revision = ?"


class Job(NamedTuple):
    ask: Txn | LeaseId
    """A transaction, or the dead lease whose keys are to be deleted."""
    done: "Future[Revision]"


class Outcome(NamedTuple):
    """What became of some jobs: all of it is on disk, and `changes` is what changed."""

    changes: Sequence[Change]
    answers: Sequence[tuple[Job, Revision | Exception]]


class Writer:
    """`deliver` is called on this thread, once for every group of jobs; it must not fail."""

    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path,
        alive: Container[LeaseId],
        deliver: Callable[[Outcome], None],
    ) -> None:
        self._db, self._path, self._alive, self._deliver = db, path, alive, deliver
        self._revision = sqlite_file.latest(db)
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="store-write", daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        self._jobs.put(job)

    def close(self) -> None:
        """Blocks until what was put before is done."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            group = [job for job in (job, *self._waiting()) if not job.done.cancelled()]
            for outcome in self._commit(group):
                self._deliver(outcome)

    def _waiting(self) -> list[Job]:
        jobs: list[Job] = []
        with contextlib.suppress(Empty):
            while len(jobs) < GROUP - 1:
                if (job := self._jobs.get_nowait()) is None:
                    self._jobs.put(None)  # the end, for `_run` to see
                    break
                jobs.append(job)
        return jobs

    def _commit(self, jobs: Sequence[Job]) -> list[Outcome]:
        """One outcome where all went to disk together; where that failed each is tried alone.

        So that a big transaction without room for it takes no small one along.
        """
        try:
            with sqlite_file.translated(self._path), sqlite_file.transaction(self._db):
                outcome, revision = self._judge(jobs)
        except Exception as error:
            if len(jobs) > 1:
                return [outcome for job in jobs for outcome in self._commit([job])]
            return [Outcome([], [(job, error) for job in jobs])]
        self._revision = revision
        return [outcome]

    def _judge(self, jobs: Sequence[Job]) -> tuple[Outcome, Revision]:
        revision = self._revision
        changes: list[Change] = []
        answers: list[tuple[Job, Revision | Exception]] = []
        for job in jobs:
            try:
                made = self._changes(job.ask, Revision(revision + 1))
            except AtollError as error:
                answers.append((job, error))
                continue
            if made:
                revision = Revision(revision + 1)
                self._apply(made, job.ask.lease if isinstance(job.ask, Txn) else None)
                changes += made
            answers.append((job, revision))
        if changes:
            self._db.execute(_ADVANCE, (revision,))
        return Outcome(changes, answers), revision

    def _changes(self, ask: Txn | LeaseId, revision: Revision) -> list[Change]:
        if isinstance(ask, Txn):
            return rules.judge(ask, revision, self._find, self._alive)
        keys = [Key(key) for (key,) in self._db.execute(_KEYS_OF_LEASE, (ask,))]
        return rules.removals(keys, revision, self._find)

    def _apply(self, changes: Sequence[Change], lease: LeaseId | None) -> None:
        for change in changes:
            key, entry, revision = change.event.key, change.event.entry, change.event.revision
            if entry is None:
                self._db.execute(_DELETE, (key,))
            else:
                self._db.execute(_PUT, (key, entry.value, revision, lease))

    def _find(self, key: Key) -> Entry | None:
        return find(self._db, key)


def find(db: sqlite3.Connection, key: Key) -> Entry | None:
    row = db.execute(GET, (key,)).fetchone()
    return Entry(row[0], Revision(row[1])) if row else None
