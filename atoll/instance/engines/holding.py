"""Which guests an engine holds, which ended, who hears of it: the part of the contract that every engine shares."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

from atoll.base.errors import Absent, Exists, Refused
from atoll.base.ids import Generation, InstanceId
from atoll.host.process import Process
from atoll.instance.engine import GuestEvent, Observed
from atoll.instance.engines.feed import Feed
from atoll.instance.engines.kept import Kept
from atoll.instance.model import BootPlan, State


class Held(Protocol):
    """A guest that runs. `process`: whose end is its end."""

    @property
    def plan(self) -> BootPlan: ...
    @property
    def run(self) -> Kept[Any]: ...
    @property
    def process(self) -> Process: ...
    @property
    def seen(self) -> Observed: ...
    def hold(self) -> None: ...
    async def stop(self, *, grace: float) -> None: ...
    async def close(self) -> None: ...


Guest = TypeVar("Guest", bound=Held)


class Holding(ABC, Generic[Guest]):
    def __init__(self) -> None:
        self._guests: dict[InstanceId, Guest] = {}
        self._ended: dict[InstanceId, Observed] = {}
        self._starting: set[InstanceId] = set()
        self._feed: Feed[GuestEvent] = Feed()

    @abstractmethod
    async def _launch(self, plan: BootPlan) -> Guest:
        """Raises what keeps it from running; nothing of it is left then."""

    @abstractmethod
    async def _remove(self, id: InstanceId, generation: Generation) -> None:
        """What this host keeps of one that does not run."""

    def guest(self, id: InstanceId) -> Guest:
        try:
            return self._guests[id]
        except KeyError as error:
            raise Absent("it is not running on this host") from error

    def _changed(self, guest: Guest) -> None:
        seen = guest.seen
        if seen.state is State.STOPPED and self._guests.get(guest.plan.id) is guest:
            del self._guests[guest.plan.id]
            self._ended[guest.plan.id] = seen
            guest.process.close()
        self._feed.tell(GuestEvent(guest.plan.id, seen))

    async def start(self, plan: BootPlan) -> None:
        if plan.id in self._guests or plan.id in self._starting:
            raise Exists(f"{plan.name} is running already")
        self._starting.add(plan.id)
        try:
            await self._forget_ended(plan.id)
            guest = await self._launch(plan)
        finally:
            self._starting.discard(plan.id)
        self._guests[plan.id] = guest
        guest.hold()
        self._changed(guest)

    async def stop(self, guest: InstanceId, *, grace: float) -> None:
        if held := self._guests.get(guest):
            await held.stop(grace=grace)

    async def forget(self, guest: InstanceId) -> None:
        if guest in self._guests:
            raise Refused("it is running", hint="stop it first")
        await self._forget_ended(guest)

    async def _forget_ended(self, guest: InstanceId) -> None:
        if seen := self._ended.pop(guest, None):
            await self._remove(guest, seen.generation)

    async def observe(self) -> Mapping[InstanceId, Observed]:
        return {**self._ended, **{id: guest.seen for id, guest in self._guests.items()}}

    async def _last(self, guest: InstanceId) -> Generation:
        """The generation that ran last here. Raises Absent."""
        seen = (await self.observe()).get(guest)
        if seen is None:
            raise Absent("there is no log of it on this host", hint="it was never started here")
        return seen.generation

    def events(self) -> AsyncIterator[GuestEvent]:
        return self._feed.listen()

    async def close(self) -> None:
        guests, self._guests = list(self._guests.values()), {}
        await asyncio.gather(*(guest.close() for guest in guests))

    def trim_logs(self) -> None:
        """Keep every guest's logs bounded. Cheap: call it every few minutes."""
        for guest in self._guests.values():
            guest.run.trim_logs()
