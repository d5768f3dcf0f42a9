"""News for whoever listens, from the moment they begin to."""

import asyncio
import weakref
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

News = TypeVar("News")


class Listener(AsyncIterator[News], Generic[News]):
    def __init__(self) -> None:
        self._waiting: asyncio.Queue[News] = asyncio.Queue()

    def hear(self, news: News) -> None:
        self._waiting.put_nowait(news)

    async def __anext__(self) -> News:
        return await self._waiting.get()


class Feed(Generic[News]):
    """A listener that nobody holds any more is forgotten."""

    def __init__(self) -> None:
        self._listeners: weakref.WeakSet[Listener[News]] = weakref.WeakSet()

    def listen(self) -> Listener[News]:
        listener: Listener[News] = Listener()
        self._listeners.add(listener)
        return listener

    def tell(self, news: News) -> None:
        for listener in tuple(self._listeners):
            listener.hear(news)
