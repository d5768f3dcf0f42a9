"""The file of an SqliteStore: its lock, its schema, and SQLite's errors in Atoll's words."""

import contextlib
import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from atoll.base.errors import AtollError, Broken, Exhausted, Refused, Unreachable
from atoll.store.api import Revision

APPLICATION_ID = 0x41746F6C  # "Atol": `file` and PRAGMA application_id tell whose database it is

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # A rowid table, as values of some KiB would make the rows of a WITHOUT ROWID one overflow.
        """CREATE TABLE entry (
            key TEXT NOT NULL PRIMARY KEY,
            value BLOB NOT NULL,
            revision INTEGER NOT NULL,
            lease INTEGER
        )""",
        "CREATE INDEX entry_of_lease ON entry (lease) WHERE lease IS NOT NULL",
        "CREATE TABLE latest (revision INTEGER NOT NULL)",
        "INSERT INTO latest VALUES (1)",
    ),
)
"""Statements that lead from schema version i to i + 1, for ever in this order: add, never change."""

_NO_ROOM = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMSIZE,
}
"""Writing failed before the commit mark was on disk, as a quota (IOERR_WRITE) or a full disk makes it."""


WAL_ROOM = 4 << 20


class File:
    """A store's file while this process has it: the lock, one connection that writes and two that read."""

    def __init__(self, path: Path, lock: int, writer: sqlite3.Connection) -> None:
        self.path, self._lock, self.writer = path, lock, writer
        self.getter = _connect(path, writable=False)
        self.pager = _connect(path, writable=False)

    @classmethod
    def open(cls, path: Path, steps: Sequence[Sequence[str]] = MIGRATIONS) -> "File":
        """Raises Refused (in use; a newer Atoll's; not Atoll's), Broken (damaged), Exhausted."""
        with contextlib.ExitStack() as undo, translated(path):
            lock = _lock(path)
            undo.callback(os.close, lock)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # it keeps secrets
            writer = _connect(path, writable=True)
            undo.callback(writer.close)
            _prepare(writer, path, steps)
            file = cls(path, lock, writer)
            undo.pop_all()
            return file

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # a full disk: what is not in the file yet stays in its WAL
            for db in (self.getter, self.pager, self.writer):
                db.close()
        os.close(self._lock)


def _lock(path: Path) -> int:
    """A descriptor that holds `path` for this process until it is closed. Raises Refused when another has it."""
    fd = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        if not isinstance(error, BlockingIOError):
            raise
        raise Refused(
            f"another daemon{f' (process {owner})' if owner else ''} uses this state directory: {path.parent}",
            hint="stop it, or give this one a state directory of its own",
        ) from error
    with contextlib.suppress(OSError):  # who holds it is only a help: a full disk does not stop us
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def _connect(path: Path, *, writable: bool) -> sqlite3.Connection:
    """A connection in autocommit mode; the caller sees to it that one thread at a time uses it."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    db.execute(f"PRAGMA query_only = {'OFF' if writable else 'ON'}")
    db.execute("PRAGMA cell_size_check = ON")
    return db


def _prepare(db: sqlite3.Connection, path: Path, steps: Sequence[Sequence[str]]) -> None:
    """Nothing is written to a file that is not ours."""
    _check_ours(db, path, len(steps))
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise Refused(f"the filesystem of {path} cannot keep a write-ahead log", hint="use a local disk")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA journal_size_limit = 16777216")
    _migrate(db, steps)
    _bury_leases(db)
    _keep_room(path)


def _keep_room(path: Path) -> None:
    """Room for the write-ahead log up to where SQLite folds it into the file (1000 pages of 4 KiB), so that
    commits go on when guests have filled the disk: to record just that. Zeros past its last frame mean nothing.
    """
    with contextlib.suppress(OSError):  # no room, or a file system that promises none: then so
        fd = os.open(path.with_name(path.name + "-wal"), os.O_RDWR | os.O_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, WAL_ROOM)
        finally:
            os.close(fd)


def _check_ours(db: sqlite3.Connection, path: Path, newest: int) -> None:
    version, owner = _number(db, "PRAGMA user_version"), _number(db, "PRAGMA application_id")
    empty = not _number(db, "SELECT count(*) FROM sqlite_schema")
    if owner != APPLICATION_ID and not (empty and owner == version == 0):
        raise Refused(f"{path} is a database, but not Atoll's", hint="give another state directory")
    if version > newest:
        raise Refused(
            f"{path} was written by a newer Atoll (schema {version}; this one knows up to {newest})",
            hint="upgrade Atoll, or restore the state from before the upgrade",
        )


def _migrate(db: sqlite3.Connection, steps: Sequence[Sequence[str]]) -> None:
    """Each step whole or not at all."""
    for version in range(_number(db, "PRAGMA user_version"), len(steps)):
        with transaction(db):
            for statement in steps[version]:
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {version + 1}")


def _bury_leases(db: sqlite3.Connection) -> None:
    """Those who held leases died with the process that had the store open."""
    if _number(db, "SELECT count(*) FROM entry WHERE lease IS NOT NULL"):
        with transaction(db):
            db.execute("DELETE FROM entry WHERE lease IS NOT NULL")
            db.execute("UPDATE latest SET revision = revision + 1")


def latest(db: sqlite3.Connection) -> Revision:
    return Revision(_number(db, "SELECT revision FROM latest"))


def _number(db: sqlite3.Connection, query: str) -> int:
    return int(db.execute(query).fetchone()[0])


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite takes back by itself after some errors
            db.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise translate(error, path) from error


def translate(error: sqlite3.Error | OSError, path: Path) -> AtollError:
    """Codes: https://sqlite.org/rescode.html"""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Exhausted(f"no space left for {path}", hint="make room on its disk")
        return Refused(f"cannot keep state in {path}: {error.strerror}", hint="is the directory there, and yours?")
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code in _NO_ROOM:
        return Exhausted(f"no space left to write {path}", hint="make room on its disk; nothing was changed")
    if code in (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC):
        return Unreachable(f"the disk did not confirm a write to {path}", hint="check the disk: dmesg")
    primary = code & 0xFF
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Broken(f"{path} is damaged: {error}", hint="restore it from a backup, or `sqlite3 FILE .recover`")
    if primary in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return Refused(f"cannot write {path}: {error}", hint="is the directory there, and yours?")
    return Broken(f"{path}: {error}")
