"""The last changes of an embedded store: what its watches are fed from and its older pages are made of."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from atoll.base.errors import Compacted, Invalid
from atoll.store import rules
from atoll.store.api import Entry, Event, Key, Revision
from atoll.store.rules import Change

FIRST = Revision(1)
"""The revision of a store in which nothing was changed yet."""
MAX_CHANGES = 8192
MAX_BYTES = 8 << 20


class History:
    """Bounded in count and in bytes of values; belongs to one event loop.

    A watch is a place in the history, not a queue of its own: however slow, it costs no memory, and one that
    falls behind what is kept hears so (`Compacted`).
    """

    def __init__(self, revision: Revision, *, max_changes: int = MAX_CHANGES, max_bytes: int = MAX_BYTES) -> None:
        self.latest = revision
        self.floor = revision
        """Every change after this revision is kept."""
        self._changes: deque[Change] = deque()
        self._bytes = 0
        self._max_changes, self._max_bytes = max_changes, max_bytes
        self._news = asyncio.Event()
        self._closed = False

    def append(self, changes: Sequence[Change], revision: Revision) -> None:
        """Whole revisions, in order, the last of them `revision`."""
        self._changes.extend(changes)
        self._bytes += sum(map(_weight, changes))
        self.latest = revision
        while len(self._changes) > self._max_changes or self._bytes > self._max_bytes:
            self._drop_first_revision()
        self._wake()

    def compact(self) -> None:
        """Keep nothing of what was."""
        self._changes.clear()
        self._bytes = 0
        self.floor = self.latest
        self._wake()

    def past(self, prefix: Key, after: Key | None, at: Revision, until: Revision) -> dict[Key, Entry | None]:
        """What the keys of a page that changed after `at`, up to `until`, held at `at`. Raises Compacted."""
        if at > until:
            raise Invalid(f"revision {at} is still to come: the store is at {until}")
        self._check_kept(at)
        start, end = rules.span(prefix, after)
        held: dict[Key, Entry | None] = {}
        for change in reversed(self._changes):
            if change.event.revision <= at:
                break
            if change.event.revision <= until and start < change.event.key < end:
                held[change.event.key] = change.before
        return held

    async def watch(self, prefix: Key, since: Revision) -> AsyncIterator[Event]:
        rules.check_prefix(prefix)
        while True:
            if self._closed:
                raise rules.closed()
            self._check_kept(since)
            # The changes of one revision come in one append, so they are handed out with no other task between.
            for event in self._after(since):
                since = event.revision
                if event.key.startswith(prefix):
                    yield event
            if since >= self.latest and not self._closed:
                await self._news.wait()

    async def reached(self, revision: Revision) -> None:
        """Waits until the changes up to `revision` are here."""
        while self.latest < revision and not self._closed:
            await self._news.wait()

    def close(self) -> None:
        self._closed = True
        self._wake()

    def _after(self, revision: Revision) -> list[Event]:
        events = []
        for change in reversed(self._changes):
            if change.event.revision <= revision:
                break
            events.append(change.event)
        events.reverse()
        return events

    def _check_kept(self, revision: Revision) -> None:
        if max(revision, FIRST) < self.floor:
            raise Compacted(f"changes since revision {revision} are no longer kept, only since {self.floor}")

    def _drop_first_revision(self) -> None:
        self.floor = self._changes[0].event.revision
        while self._changes and self._changes[0].event.revision == self.floor:
            self._bytes -= _weight(self._changes.popleft())

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _weight(change: Change) -> int:
    return sum(len(entry.value) for entry in (change.before, change.event.entry) if entry is not None)
