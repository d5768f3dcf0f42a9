"""What is SqliteStore's own: its file, its lock, full disks, crashes, reopening."""

import asyncio
import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from atoll.base.errors import Absent, AtollError, Broken, Compacted, Conflict, Exhausted, Refused
from atoll.store import sqlite_file
from atoll.store.api import ABSENT, Entry, Key, Revision, Txn, read_all
from atoll.store.sqlite import SqliteStore

A, B, C = Key("/web/a"), Key("/web/b"), Key("/web/c")
WEB = Key("/web/")


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


# Reopening


async def test_reopened_it_holds_all_and_goes_on_counting(path: Path) -> None:
    async with opened(path) as store:
        await store.commit(Txn(put={A: b"1", B: b"1"}))
        await store.commit(Txn(delete=frozenset({B})))
        before = await store.read(WEB)
    async with opened(path) as store:
        assert await store.read(WEB) == before
        assert await store.commit(Txn(expect={B: ABSENT}, put={B: b"2"})) == before.revision + 1


async def test_history_does_not_outlive_it_and_says_so(path: Path) -> None:
    async with opened(path) as store:
        since = await store.commit(Txn(put={A: b"1"}))
        last = await store.commit(Txn(delete=frozenset({A})))
    async with opened(path) as store:
        with pytest.raises(Compacted):
            await anext(store.watch(WEB, since))
        with pytest.raises(Compacted):
            await store.read(WEB, at=since)
        events = store.watch(WEB, last)
        revision = await store.commit(Txn(put={A: b"2"}))
        assert (await anext(events)).revision == revision


async def test_leases_die_with_it_and_so_do_their_keys(path: Path) -> None:
    async with opened(path) as store:
        lease = await store.lease(3600)
        await store.commit(Txn(put={A: b"1"}))
        last = await store.commit(Txn(put={B: b"1", C: b"1"}, lease=lease.id))
    async with opened(path) as store:
        view = await store.read(WEB)
        assert list(view.entries) == [A]
        assert view.revision > last
        with pytest.raises(Compacted):
            await anext(store.watch(WEB, last))
        with pytest.raises(Absent):
            await store.commit(Txn(put={C: b"2"}, lease=lease.id))


async def test_closing_carries_out_what_was_asked(path: Path) -> None:
    store = await SqliteStore.open(path)
    asked = [asyncio.create_task(store.commit(Txn(put={Key(f"/web/{n:03}"): b""}))) for n in range(200)]
    await asyncio.sleep(0)
    await store.close()
    assert len(await asyncio.gather(*asked)) == 200
    async with opened(path) as store:
        assert len((await store.read(WEB)).entries) == 200


async def test_a_group_is_judged_one_by_one(path: Path) -> None:
    """Also where what one expects is made by another of the same group."""
    async with opened(path) as store:
        start = (await store.read(WEB)).revision
        results = await asyncio.gather(
            store.commit(Txn(expect={A: ABSENT}, put={A: b"1"})),
            store.commit(Txn(expect={A: ABSENT}, put={A: b"2"})),
            store.commit(Txn(expect={A: Revision(start + 1)}, put={A: b"3"})),
            store.commit(Txn(put={B: b"4"})),
            return_exceptions=True,
        )
        assert isinstance(results[1], Conflict)
        assert [results[0], *results[2:]] == [start + 1, start + 2, start + 3]
        assert await store.get(A) == Entry(b"3", Revision(start + 2))


async def test_the_history_is_bounded(path: Path) -> None:
    store = await SqliteStore.open(path, max_changes=10)
    since = [await store.commit(Txn(put={A: b"%d" % n})) for n in range(20)]
    events = store.watch(WEB, since[9])
    assert [(await anext(events)).revision for _ in range(10)] == since[10:]
    with pytest.raises(Compacted):
        await anext(store.watch(WEB, since[8]))
    await store.close()


async def test_the_history_is_bounded_in_bytes(path: Path) -> None:
    """What a key held before counts as what it holds now does."""
    store = await SqliteStore.open(path, max_bytes=10_000)
    since = [await store.commit(Txn(put={A: bytes(1000)})) for _ in range(20)]
    with pytest.raises(Compacted):
        await anext(store.watch(WEB, since[-7]))
    assert (await anext(store.watch(WEB, since[-6]))).revision == since[-5]
    await store.close()


# Whose file it is


async def test_a_second_opening_is_refused(path: Path) -> None:
    async with opened(path):
        with pytest.raises(Refused, match=f"another daemon .process {os.getpid()}. uses") as caught:
            await SqliteStore.open(path)
        assert caught.value.hint
    async with opened(path):
        pass


async def test_only_its_owner_may_read_it(path: Path) -> None:
    async with opened(path) as store:
        await store.commit(Txn(put={A: b"secret"}))
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(["store.db", "store.db-wal", "store.db-shm", "store.db.lock"], 0o600)


async def test_each_commit_is_synced(path: Path) -> None:
    file = sqlite_file.File.open(path)
    assert file.writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert file.writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    file.close()


async def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    async with opened(path) as store:
        await store.commit(Txn(put={A: b"1"}))
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {len(sqlite_file.MIGRATIONS) + 1}")
    before = path.read_bytes()
    with pytest.raises(Refused, match="newer Atoll") as caught:
        await SqliteStore.open(path)
    assert caught.value.hint
    assert path.read_bytes() == before


async def test_an_older_schema_is_led_to_the_newest_step_by_step(path: Path) -> None:
    async with opened(path) as store:
        await store.commit(Txn(put={A: b"1"}))
    further = (*sqlite_file.MIGRATIONS, ("CREATE TABLE extra (x)", "INSERT INTO extra VALUES (7)"))
    file = sqlite_file.File.open(path, further)
    assert file.writer.execute("SELECT x FROM extra").fetchone() == (7,)
    file.close()
    with pytest.raises(Refused, match="newer"):
        await SqliteStore.open(path)
    sqlite_file.File.open(path, further).close()


async def test_a_migration_that_fails_leaves_the_version_before(path: Path) -> None:
    async with opened(path) as store:
        await store.commit(Txn(put={A: b"1"}))
    with pytest.raises(Broken):
        sqlite_file.File.open(
            path, (*sqlite_file.MIGRATIONS, ("CREATE TABLE extra (x)", "INSERT INTO nothing VALUES (1)"))
        )
    async with opened(path) as store:
        entry = await store.get(A)
    assert entry is not None


async def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(Refused, match="not Atoll's"):
        await SqliteStore.open(path)
    assert path.read_bytes() == before


async def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot keep state") as caught:
        await SqliteStore.open(tmp_path / "nowhere" / "store.db")
    assert caught.value.hint


@pytest.mark.parametrize("damage", ["header", "not a database"])
async def test_a_damaged_file_is_named_at_opening(path: Path, damage: str) -> None:
    async with opened(path) as store:
        await store.commit(Txn(put={A: b"1"}))
    with path.open("r+b") as file:
        file.write(b"\xde\xad" * (8 if damage == "header" else 3000))
    with pytest.raises(Broken, match="is damaged") as caught:
        await SqliteStore.open(path)
    assert caught.value.hint
    path.unlink()
    async with opened(path):
        pass  # nothing holds the lock


async def test_damage_within_is_named_where_it_is_met(path: Path) -> None:
    async with opened(path) as store:
        for n in range(10):
            await store.commit(Txn(put={Key(f"/web/{n * 50 + i:03}"): b"x" * 500 for i in range(50)}))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 4 & ~0xFFF)
        file.write(b"\xde\xad" * (size // 4))
    async with opened(path) as store:
        with pytest.raises(Broken, match="is damaged"):
            await read_all(store, WEB)
        with pytest.raises(Broken, match="is damaged"):
            await asyncio.gather(*(store.commit(Txn(delete=frozenset({Key(f"/web/{n:03}")}))) for n in range(500)))


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("only root can mount a small disk; test_a_write_quota shows the same to anyone")
    mount = tmp_path / "disk"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mount], check=True)
    yield mount
    subprocess.run(["umount", mount], check=True)


async def fill(store: SqliteStore, acknowledged: dict[Key, bytes]) -> None:
    """Pairs of entries, four transactions at a time, until one is told that there is no space."""

    async def pair(n: int) -> None:
        value = os.urandom(8000)
        keys = Key(f"/web/{n:05}/a"), Key(f"/web/{n:05}/b")
        await store.commit(Txn(put=dict.fromkeys(keys, value)))
        acknowledged.update(dict.fromkeys(keys, value))

    for n in range(0, 4000, 4):
        results = await asyncio.gather(*(pair(n + i) for i in range(4)), return_exceptions=True)
        failed = [result for result in results if result is not None]
        assert all(isinstance(error, Exhausted) for error in failed), failed
        if failed:
            return
    raise AssertionError("the disk was never full")


async def held(store: SqliteStore) -> dict[Key, bytes]:
    return {key: entry.value for key, entry in (await read_all(store, WEB)).entries.items()}


async def test_a_full_disk_loses_nothing_acknowledged(small_disk: Path) -> None:
    path, ballast = small_disk / "store.db", small_disk / "ballast"
    ballast.write_bytes(bytes(512 << 10))
    acknowledged: dict[Key, bytes] = {}
    store = await SqliteStore.open(path)
    events = store.watch(WEB, (await store.read(WEB)).revision)
    await fill(store, acknowledged)
    assert await held(store) == acknowledged
    before = (await store.read(WEB)).revision
    with pytest.raises(Exhausted, match="no space left") as caught:
        await store.commit(Txn(put={Key(f"/web/{n}"): os.urandom(64 << 10) for n in range(10)}))
    assert caught.value.hint
    assert (await store.read(WEB)).revision == before
    ballast.unlink()
    await store.commit(Txn(put={Key("/web/later"): b"1"}))
    acknowledged[Key("/web/later")] = b"1"
    assert await held(store) == acknowledged
    told = [(await anext(events)).key for _ in acknowledged]
    assert set(told) == acknowledged.keys()
    await store.close()
    async with opened(path) as store:
        assert await held(store) == acknowledged


async def test_reopened_on_a_full_disk(small_disk: Path) -> None:
    """It opens, or says that there is no space; then everything acknowledged is there."""
    path, ballast = small_disk / "store.db", small_disk / "ballast"
    ballast.write_bytes(bytes(256 << 10))
    acknowledged: dict[Key, bytes] = {}
    store = await SqliteStore.open(path)
    await fill(store, acknowledged)
    await store.close()
    with contextlib.suppress(OSError), (small_disk / "rest").open("wb", buffering=0) as rest:
        while True:
            rest.write(bytes(4096))
    with contextlib.suppress(Exhausted):
        async with opened(path) as store:
            assert await held(store) == acknowledged
            with contextlib.suppress(Exhausted):
                await store.commit(Txn(put={Key("/other"): b""}))
    ballast.unlink()
    async with opened(path) as store:
        assert await held(store) == acknowledged


async def test_a_lease_that_ends_on_a_full_disk_ends_when_there_is_space(small_disk: Path) -> None:
    path, ballast = small_disk / "store.db", small_disk / "ballast"
    ballast.write_bytes(bytes(256 << 10))
    async with opened(path) as store:
        lease = await store.lease(60)
        await store.commit(Txn(put={Key("/lock/a"): b""}, lease=lease.id))
        await fill(store, {})
        with contextlib.suppress(OSError), (small_disk / "rest").open("wb", buffering=0) as rest:
            while True:
                rest.write(bytes(4096))
        revoking = asyncio.create_task(lease.revoke())
        await asyncio.sleep(0.2)
        ballast.unlink()
        await revoking
        assert await store.get(Key("/lock/a")) is None


async def test_a_write_quota(path: Path) -> None:
    """A limit on file size fails as a quota does: not ENOSPC but another error in mid-write."""
    acknowledged: dict[Key, bytes] = {}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = await SqliteStore.open(path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_001, hard))
        await fill(store, acknowledged)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert await held(store) == acknowledged
    await store.commit(Txn(put={A: b"1"}))
    acknowledged[A] = b"1"
    await store.close()
    async with opened(path) as store:
        assert await held(store) == acknowledged


# A crash

WRITER = """
import asyncio, sys
from atoll.store.api import Txn
from atoll.store.sqlite import SqliteStore

async def main(path, start):
    store = await SqliteStore.open(path)
    async def write(n):
        i = start
        while True:
            keys = f"/web/{n}/{i:06}/a", f"/web/{n}/{i:06}/b"
            revision = await store.commit(Txn(put=dict.fromkeys(keys, b"%d" % i * 200)))
            sys.stdout.write(f"{keys[0]} {revision}\\n")
            sys.stdout.flush()
            i += 1
    await asyncio.gather(*map(write, range(6)))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_killed_in_a_stream_of_commits_it_loses_nothing_acknowledged(path: Path) -> None:
    acknowledged: dict[str, int] = {}
    for generation in range(4):
        arguments = [sys.executable, "-c", WRITER, str(path), str(generation * 100_000)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(150 + 77 * generation)]
            child.send_signal(signal.SIGKILL)
            lines += child.stdout.readlines()
        acknowledged |= {
            key: int(revision) for key, revision in (line.split() for line in lines if line[-1:] == "\n")
        }
        async with opened(path) as store:
            view = await read_all(store, WEB)
        revisions = {key: entry.revision for key, entry in view.entries.items()}
        assert {key: revisions.get(Key(key)) for key in acknowledged} == acknowledged
        for key, revision in revisions.items():
            assert revisions[Key(f"{key[:-1]}{'b' if key[-1] == 'a' else 'a'}")] == revision
    assert len(acknowledged) > 1000


async def test_errors_are_atolls(path: Path) -> None:
    """Whatever SQLite raises has its word here."""
    for code in (value for name, value in vars(sqlite3).items() if name.startswith("SQLITE_IOERR")):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = code
        assert isinstance(sqlite_file.translate(error, path), AtollError)
