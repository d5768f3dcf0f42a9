"""The host's stream of news: durable and resumable by id, except progress, which is neither."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable

import msgspec

from atoll.base import clock
from atoll.base.errors import AtollError, Compacted
from atoll.operation.model import News, Subject
from atoll.store.api import Key, Store, Txn, read_all

log = logging.getLogger(__name__)

PREFIX = Key("/events/")
KEPT = 5000
QUEUE = 1000
BATCH = 50
AGAIN = 1.0
"""Seconds until what could not be made durable is tried again."""

Wanted = Callable[[News], bool]


class _Listener:
    def __init__(self) -> None:
        self.queue: asyncio.Queue[News | None] = asyncio.Queue(QUEUE)

    def offer(self, news: News) -> bool:
        """False where the listener is too slow: it is cut off and may resume by its last id."""
        try:
            self.queue.put_nowait(news)
        except asyncio.QueueFull:
            self.queue.get_nowait()
            self.queue.put_nowait(None)
            return False
        return True


class Events:
    """`publish` never waits; one task makes news durable in batches, then hands it out. The last KEPT stay."""

    def __init__(self, local: Store) -> None:
        self._local = local
        self._kept: deque[News] = deque()
        self._waiting: list[News] = []
        self._wake = asyncio.Event()
        self._listeners: set[_Listener] = set()
        self._sequence = 0
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        for entry in (await read_all(self._local, PREFIX)).entries.values():
            self._kept.append(msgspec.json.decode(entry.value, type=News))
        self._sequence = int(self._kept[-1].id) if self._kept else 0
        self._task = asyncio.create_task(self._write(), name="events")

    async def close(self) -> None:
        """Make what was published durable, then end; without space what was not yet durable is lost."""
        if self._task is not None:
            self._closing = True
            self._wake.set()
            await asyncio.gather(self._task, return_exceptions=True)

    def publish(self, kind: str, subject: Subject, body: object = None, *, keep: bool = True) -> None:
        news = News(
            kind=kind,
            project=subject.project,
            subject=subject,
            at=clock.now(),
            body=msgspec.Raw(msgspec.json.encode(body)),
        )
        if keep:
            self._waiting.append(news)
            self._wake.set()
        else:
            self._hand_out(news)

    async def _write(self) -> None:
        while self._waiting or not self._closing:
            await self._wake.wait()
            try:
                await self._write_batch()
            except AtollError as error:
                log.error("%d events wait to be kept: %s", len(self._waiting), error)
                if self._closing:
                    return
                del self._waiting[:-KEPT]
                await asyncio.sleep(AGAIN)
            if not self._waiting and not self._closing:
                self._wake.clear()

    async def _write_batch(self) -> None:
        first = self._sequence + 1
        batch = [_numbered(news, first + at) for at, news in enumerate(self._waiting[:BATCH])]
        stale = [self._kept[i] for i in range(min(len(self._kept), len(self._kept) + len(batch) - KEPT))]
        put = {Key(PREFIX + news.id): msgspec.json.encode(news) for news in batch}
        await self._local.commit(Txn(put=put, delete=frozenset(Key(PREFIX + news.id) for news in stale)))
        self._sequence += len(batch)
        del self._waiting[: len(batch)]
        for _ in stale:
            self._kept.popleft()
        for news in batch:
            self._kept.append(news)
            self._hand_out(news)

    def _hand_out(self, news: News) -> None:
        self._listeners = {listener for listener in self._listeners if listener.offer(news)}

    @property
    def latest(self) -> str:
        """The id of the last event handed out ("0": none yet): where a follower that has seen none resumes."""
        return self._kept[-1].id if self._kept else "0"

    async def follow(self, since: str | None = None, wanted: Wanted = lambda _: True) -> AsyncIterator[News]:
        """News after the one with id `since` ("0": all that is kept; None: from now on), without end.

        Raises Compacted where `since` is older than what is kept or the reader is too slow.
        """
        listener = _Listener()
        self._listeners.add(listener)
        try:
            for news in self._since(since):
                if wanted(news):
                    yield news
            while (fresh := await listener.queue.get()) is not None:
                if wanted(fresh):
                    yield fresh
            raise Compacted("this reader of events fell too far behind", hint="resume from its last id")
        finally:
            self._listeners.discard(listener)

    def _since(self, since: str | None) -> list[News]:
        if since is None:
            return []
        first = self._kept[0].id if self._kept else f"{self._sequence + 1:016d}"
        wanted = since.zfill(16)
        if int(since or 0) and int(wanted) < int(first) - 1:
            raise Compacted(f"events after {since} are no longer kept", hint=f"resume from {first}, or read afresh")
        return [news for news in self._kept if news.id > wanted]


def _numbered(news: News, number: int) -> News:
    return msgspec.structs.replace(news, id=f"{number:016d}")
