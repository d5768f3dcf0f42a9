"""A watch-fed copy of a prefix in memory, each entry decoded once: lists without asking the store."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Generic, Self, TypeVar

from atoll.base.errors import Compacted, Refused, Unreachable
from atoll.store.api import Entry, Event, Key, Revision, Store, read_all

T = TypeVar("T")
GRACE = 0.25
"""Seconds that `caught_up` gives the watch before it reads for itself."""
RETRY = 1.0


class Mirror(Generic[T]):
    """Between `start` and `close` it holds every entry below `prefix`, as `decode` made it, a moment late.

    It is never seen halfway through a transaction, and reads afresh by itself when the store has compacted.
    Should `decode` fail or the store close, every later call raises that error: a mirror never grows stale
    in silence.
    """

    def __init__(self, store: Store, prefix: Key, decode: Callable[[Key, Entry], T]) -> None:
        self._store, self._prefix, self._decode = store, prefix, decode
        self._held: dict[Key, tuple[Revision, T]] = {}
        self._sorted: list[T] | None = None
        self._revision = self._read_at = Revision(0)
        self._news = asyncio.Event()
        self._failure: Exception | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once everything is in."""
        await self._read()
        self._task = asyncio.create_task(self._follow(), name=f"mirror of {self._prefix}")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._failure = self._failure or Refused("the mirror is closed")
        self._wake()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __len__(self) -> int:
        self._check()
        return len(self._held)

    @property
    def revision(self) -> Revision:
        """Everything up to it is in."""
        self._check()
        return self._revision

    def get(self, key: Key) -> T | None:
        self._check()
        held = self._held.get(key)
        return held[1] if held else None

    def values(self) -> Sequence[T]:
        """In key order. The same list until something changes: not the caller's to alter."""
        self._check()
        if self._sorted is None:
            self._sorted = [self._held[key][1] for key in sorted(self._held)]
        return self._sorted

    async def caught_up(self, revision: Revision) -> None:
        """Waits until everything up to `revision` is in, so that a client reads its own writes.

        At once after the watch told of it. A commit that changed nothing below the prefix is never told of: then
        the prefix is read afresh, after `GRACE` seconds.
        """
        self._check()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                while self._revision < revision:
                    await self._news.wait()
                    self._check()
        if self._revision < revision:
            await self._read()

    async def _follow(self) -> None:
        try:
            while True:
                try:
                    await self._watch()
                except Unreachable:
                    await asyncio.sleep(RETRY)
        except Exception as error:  # kept for those who ask: `_check`
            self._failure = error
            self._wake()

    async def _watch(self) -> None:
        try:
            async for event in self._store.watch(self._prefix, self._revision):
                self._take(event)
        except Compacted:
            await self._read()

    async def _read(self) -> None:
        view = await read_all(self._store, self._prefix)
        if view.revision < self._revision:
            return  # the watch was faster
        held = {}
        for key, entry in view.entries.items():
            known = self._held.get(key)
            if known is None or known[0] != entry.revision:
                known = (entry.revision, self._decode(key, entry))
            held[key] = known
        self._held = held
        self._revision = self._read_at = view.revision
        self._wake()

    def _take(self, event: Event) -> None:
        """Those who wait run only after the last event of its revision, as a watch hands them out together."""
        if event.revision <= self._read_at:
            return
        if event.entry is None:
            self._held.pop(event.key, None)
        else:
            self._held[event.key] = (event.revision, self._decode(event.key, event.entry))
        self._revision = event.revision
        self._wake()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        self._sorted = None
        self._news.set()
        self._news = asyncio.Event()
