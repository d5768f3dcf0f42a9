"""Measure the embedded store: `python bench/store.py [DIRECTORY]`, a directory on the disk in question."""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from atoll.store.api import Entry, Key, Txn, read_all
from atoll.store.mirror import Mirror
from atoll.store.sqlite import SqliteStore

ROUNDS = 9
ENTRIES = 10_000
VALUE = b"x" * 2000
"""About an instance's record."""
WEB = Key("/bench/")


def resident() -> float:
    """MiB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)


def row(what: str, unit: str, values: list[float]) -> None:
    low, high = min(values), max(values)
    print(f"{what:44} {statistics.median(values):10.1f} {unit:9} ({low:.1f} to {high:.1f}, {len(values)} rounds)")


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


async def measure(directory: str) -> None:
    begun = resident()
    store = await SqliteStore.open(Path(directory) / "store.db")
    row("memory: an open store", "MiB", [resident() - begun])
    row(
        "commits, one after the other",
        "/s",
        [200 / await timed(lambda: write(store, 1, 200)) for _ in range(ROUNDS)],
    )
    row("commits, 64 at a time", "/s", [1280 / await timed(lambda: write(store, 64, 20)) for _ in range(ROUNDS)])
    for n in range(0, ENTRIES, 100):
        await store.commit(Txn(put={Key(f"{WEB}{i:06}"): VALUE for i in range(n, n + 100)}))

    async def get() -> None:
        for n in range(0, ENTRIES, 10):
            await store.get(Key(f"{WEB}{n:06}"))

    row("get", "us", [await timed(get) / (ENTRIES // 10) * 1e6 for _ in range(ROUNDS)])
    row(
        "read of 10,000 entries of 2 kB",
        "ms",
        [await timed(lambda: read_all(store, WEB)) * 1e3 for _ in range(ROUNDS)],
    )
    row(
        "  the loop's longest pause meanwhile",
        "ms",
        [await longest_pause(lambda: read_all(store, WEB)) * 1e3 for _ in range(ROUNDS)],
    )
    row("memory: with the history of that", "MiB", [resident() - begun])

    def decode(_key: Key, entry: Entry) -> int:
        return len(entry.value)

    async with Mirror(store, WEB, decode) as mirror:

        async def change() -> None:
            await mirror.caught_up(await store.commit(Txn(put={Key(f"{WEB}000007"): VALUE})))

        async def listing() -> None:
            mirror.values()

        row("commit until the mirror has it", "us", [await timed(change) * 1e6 for _ in range(200)])
        await change()
        row("10,000 values of a mirror after a change", "us", [await timed(listing) * 1e6])
        row("  and again", "us", [await timed(listing) * 1e6 for _ in range(ROUNDS)])
    await store.close()
    again = time.perf_counter()
    await (await SqliteStore.open(Path(directory) / "store.db")).close()
    row("opening it again", "ms", [(time.perf_counter() - again) * 1e3])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as scratch:
        asyncio.run(measure(scratch))
