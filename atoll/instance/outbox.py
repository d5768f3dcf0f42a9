"""Parcels that wait for whoever fetches them. An export ends when its file has been fetched, and not before."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from atoll.base.errors import AtollError, Cancelled, Refused, Unreachable

FETCHED_IN = 300.0
"""Seconds that a parcel waits for whoever fetches it, and for each next chunk to be taken."""


class Sending(msgspec.Struct, frozen=True):
    """A file of `length` bytes as it is made."""

    length: int
    chunks: AsyncIterator[bytes]


class Offer:
    """One operation's parcel, from its first step on."""

    def __init__(self) -> None:
        self.taken = False
        self._ready: asyncio.Future[Sending] = asyncio.get_running_loop().create_future()
        self._sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._moved = asyncio.Event()

    async def send(self, sending: Sending) -> None:
        """Returns once somebody has it whole. Raises Unreachable where nobody comes, or whoever came is gone."""
        self._ready.set_result(sending)
        while not self._sent.done():
            self._moved.clear()
            moving: asyncio.Future[bool] = asyncio.ensure_future(self._moved.wait())
            both: set[asyncio.Future[Any]] = {moving, self._sent}
            try:
                await asyncio.wait(both, timeout=FETCHED_IN, return_when=asyncio.FIRST_COMPLETED)
            finally:
                moving.cancel()
            if not self._moved.is_set() and not self._sent.done():
                what = "the receiver takes no more" if self.taken else "nobody fetched it"
                raise Unreachable(f"{what} within {FETCHED_IN:.0f} s", hint="export it again")
        self._sent.result()

    async def fetch(self) -> Sending:
        """As it comes to be ready. Raises Refused (another has it), and what the export fails with."""
        if self.taken:
            raise Refused("somebody fetches it already", hint="export it again")
        self.taken = True
        try:
            sending = await asyncio.shield(self._ready)
        except asyncio.CancelledError:
            self._end(_gone())
            raise
        return msgspec.structs.replace(sending, chunks=self._through(sending.chunks))

    def fail(self, error: AtollError) -> None:
        for future in (self._ready, self._sent):
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody may be there to hear it
        self._moved.set()

    async def _through(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        whole = False
        try:
            async for chunk in chunks:
                if self._sent.done():  # the operation has ended: it was cancelled
                    self._sent.result()
                self._moved.set()
                yield chunk
            whole = True
        except AtollError as error:
            self._end(error)
            raise
        finally:
            self._end(None if whole else _gone())

    def _end(self, error: AtollError | None) -> None:
        if self._sent.done():
            return
        if error is None:
            self._sent.set_result(None)
        else:
            self._sent.set_exception(error)
            self._sent.exception()


class Outbox:
    def __init__(self) -> None:
        self._offers: dict[str, Offer] = {}

    @contextmanager
    def offering(self, key: str) -> Iterator[Offer]:
        """While operation `key` runs its file can be asked for; how it fails is told to whoever waits."""
        offer = self._offers.setdefault(key, Offer())
        try:
            yield offer
        except AtollError as error:
            offer.fail(error)
            raise
        except BaseException:
            offer.fail(Cancelled("the export was cancelled"))
            raise
        finally:
            self._offers.pop(key, None)

    async def fetch(self, key: str) -> Sending:
        """Of an operation that runs: it may not have begun. Raises Refused, and what the export fails with."""
        return await self._offers.setdefault(key, Offer()).fetch()


def _gone() -> Unreachable:
    return Unreachable("the receiver hung up before it had all", hint="export it again")
