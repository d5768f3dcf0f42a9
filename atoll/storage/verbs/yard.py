"""What every verb of volumes and pools works with on this host."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from atoll.base.errors import Conflict, Refused
from atoll.operation.events import Events
from atoll.operation.model import Subject
from atoll.operation.runner import RunningWork
from atoll.storage.book import PoolView, StorageBook, VolumeView
from atoll.storage.model import Life, Pool, Volume
from atoll.storage.registry import Pools

RETRIES = 20
Result = TypeVar("Result")
Namer = Callable[[str], Awaitable[str]]
"""The name of an instance by its id, for people; "" where it is gone."""


@dataclass(frozen=True, slots=True)
class Yard:
    book: StorageBook
    pools: Pools
    events: Events
    namer: Namer

    def tell(self, kind: str, volume: Volume, body: object = None) -> None:
        self.events.publish(f"volume.{kind}", Subject("volume", volume.project, volume.name, volume.id), body)

    def tell_pool(self, kind: str, pool: Pool, body: object = None) -> None:
        self.events.publish(f"pool.{kind}", Subject("pool", pool.project, pool.name, pool.id), body)

    async def volume(self, work: RunningWork, project: str, name: str) -> VolumeView:
        """What an operation is about: by id where that is known (after a crash), for names move. Raises Absent."""
        view = await self.book.find_volume(project, work.operation.subject.id or name)
        work.about(id=view.volume.id)
        return view

    async def user(self, view: VolumeView) -> str:
        """The name of the instance that has it."""
        return (await self.namer(view.held.instance) or view.held.instance) if view.held else ""

    async def pool(self, work: RunningWork, project: str, name: str) -> PoolView:
        """As `volume`."""
        known = work.operation.subject.id
        view = (await self.book.pool(known) if known else None) or await self.book.find(project, name)  # type: ignore[arg-type]
        work.about(id=view.pool.id)
        return view

    async def move(self, view: VolumeView, state: Life) -> VolumeView:
        return await self.book.write_volume(view, msgspec.structs.replace(view.volume, state=state))


async def afresh(act: Callable[[], Awaitable[Result]]) -> Result:
    """`act` reads and commits: again wherever somebody was faster. Raises Conflict after RETRIES."""
    for attempt in range(RETRIES):
        try:
            return await act()
        except Conflict:
            if attempt == RETRIES - 1:
                raise
    raise AssertionError("unreachable")


def check_ready(view: VolumeView) -> None:
    """Raises Refused where an operation makes or removes it."""
    if view.volume.state is not Life.READY:
        name = view.volume.name
        raise Refused(f"volume {name} is {view.volume.state}", hint=f"atoll volume show {name}")
