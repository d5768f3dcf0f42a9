"""Measure the embedded store: `python -m bench.store [DIRECTORY]`, a directory on the disk in question."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from atoll.store.api import Entry, Key, Txn, read_all
from atoll.store.mirror import Mirror
from atoll.store.sqlite import SqliteStore
from bench.report import Row, row, text

ROUNDS = 9
ENTRIES = 10_000
VALUE = b"x" * 2000
"""About an instance's record."""
WEB = Key("/bench/")


def resident() -> float:
    """MiB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    begun = time.perf_counter()
    await work()
    return time.perf_counter() - begun


async def longest_pause(work: Callable[[], Awaitable[object]]) -> float:
    """Seconds that the event loop was away at most while `work` ran."""
    task = asyncio.ensure_future(work())
    worst, last = 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(0)
        worst, last = max(worst, time.perf_counter() - last), time.perf_counter()
    await task
    return worst


async def write(store: SqliteStore, writers: int, times: int) -> None:
    async def one(writer: int) -> None:
        for n in range(times):
            await store.commit(Txn(put={Key(f"/write/{writer}/{n % 10}"): VALUE}))

    await asyncio.gather(*map(one, range(writers)))


async def measure(directory: str) -> list[Row]:
    found: list[Row] = []
    begun = resident()
    store = await SqliteStore.open(Path(directory) / "store.db")
    found.append(row("store: memory of an open one", "MiB", [resident() - begun]))
    found.append(
        row(
            "store: durable commits, one after the other",
            "1/s",
            [200 / await timed(lambda: write(store, 1, 200)) for _ in range(ROUNDS)],
        )
    )
    found.append(
        row(
            "store: durable commits, 64 at a time",
            "1/s",
            [1280 / await timed(lambda: write(store, 64, 20)) for _ in range(ROUNDS)],
        )
    )
    for n in range(0, ENTRIES, 100):
        await store.commit(Txn(put={Key(f"{WEB}{i:06}"): VALUE for i in range(n, n + 100)}))

    async def get() -> None:
        for n in range(0, ENTRIES, 10):
            await store.get(Key(f"{WEB}{n:06}"))

    found.append(row("store: get", "us", [await timed(get) / (ENTRIES // 10) * 1e6 for _ in range(ROUNDS)]))
    found.append(
        row(
            "store: read of 10,000 entries of 2 kB",
            "ms",
            [await timed(lambda: read_all(store, WEB)) * 1e3 for _ in range(ROUNDS)],
        )
    )
    found.append(
        row(
            "store: the loop's longest pause meanwhile",
            "ms",
            [await longest_pause(lambda: read_all(store, WEB)) * 1e3 for _ in range(ROUNDS)],
        )
    )
    found.append(row("store: memory with the history of that", "MiB", [resident() - begun]))

    found += await mirrored(store)
    await store.close()
    again = time.perf_counter()
    await (await SqliteStore.open(Path(directory) / "store.db")).close()
    found.append(row("store: opening it again", "ms", [(time.perf_counter() - again) * 1e3]))
    return found


async def mirrored(store: SqliteStore) -> list[Row]:
    """What a mirror of all those entries costs and saves."""

    def decode(_key: Key, entry: Entry) -> int:
        return len(entry.value)

    async with Mirror(store, WEB, decode) as mirror:

        async def change() -> None:
            await mirror.caught_up(await store.commit(Txn(put={Key(f"{WEB}000007"): VALUE})))

        async def listing() -> None:
            mirror.values()

        until = [await timed(change) * 1e6 for _ in range(200)]
        await change()
        return [
            row("store: commit until the mirror has it", "us", until),
            row("store: 10,000 values of a mirror after a change", "us", [await timed(listing) * 1e6]),
            row("store: and again, unchanged", "us", [await timed(listing) * 1e6 for _ in range(ROUNDS)]),
        ]


def rows(directory: str | None = None) -> list[Row]:
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        return asyncio.run(measure(scratch))


if __name__ == "__main__":
    print(text(rows(sys.argv[1] if sys.argv[1:] else None)))
