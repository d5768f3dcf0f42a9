"""Pool drivers by name, and the pools of this host."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from atoll.base.errors import Absent, AtollError, Invalid, Refused, Unreachable
from atoll.base.ids import HostId, PoolId
from atoll.base.names import did_you_mean
from atoll.storage.book import StorageBook, VolumeView
from atoll.storage.drivers.btrfs import BtrfsPool
from atoll.storage.drivers.dir import DirPool
from atoll.storage.model import Capacity, Life, Pool, PoolPlace, Usage, Volume, VolumeAttachment
from atoll.storage.pool import PoolDriver

log = logging.getLogger(__name__)

ANSWERS_IN = 5.0
"""Seconds that a pool's file system has to say how full it is. One on a server that is gone never does."""


WARN_AT = (80, 90)
"""Percent of a pool whose use is worth an event."""


class Health(msgspec.Struct, frozen=True):
    """How a pool is on this host. `capacity` None: it is out of reach, and `reason` says why."""

    capacity: Capacity | None = None
    reason: str = ""


def filled(health: Health, warn_at: Sequence[int]) -> int:
    """The highest threshold (percent) that a pool's use has reached; 0: none. What is kept from ordinary users
    counts as used: volumes cannot have it."""
    room = health.capacity
    if room is None or room.used + room.available <= 0:
        return 0
    used = 100 * room.used / (room.used + room.available)
    return max((threshold for threshold in warn_at if used >= threshold), default=0)


class Site(msgspec.Struct, frozen=True):
    """Where a pool is on this host. `home`: the state directory; `fresh`: it was never laid out here."""

    home: Path
    path: Path
    fresh: bool


Make = Callable[[Pool, Site], PoolDriver]


def _dir(pool: Pool, site: Site) -> PoolDriver:
    return DirPool(pool.id, pool.name, site.path, home=site.home, fresh=site.fresh)


def _btrfs(pool: Pool, site: Site) -> PoolDriver:
    return BtrfsPool(pool.id, pool.name, site.path, home=site.home, fresh=site.fresh)


DRIVERS: Mapping[str, Make] = {"dir": _dir, "btrfs": _btrfs}


class Pools:
    """The pools as this host has them: records from the book, each driver opened at first use and kept."""

    def __init__(
        self,
        book: StorageBook,
        *,
        host: HostId,
        home: Path,
        drivers: Mapping[str, Make] = DRIVERS,
        warn_at: Sequence[int] = WARN_AT,
    ) -> None:
        self._warn_at = warn_at
        self.book = book
        self._host, self._home, self._drivers = host, home.absolute(), drivers
        self._open: dict[PoolId, PoolDriver] = {}
        self._opening = asyncio.Lock()
        self._asking: dict[PoolId, asyncio.Task[Capacity]] = {}

    @property
    def host(self) -> HostId:
        return self._host

    @property
    def home(self) -> Path:
        return self._home

    async def open(self) -> Mapping[str, AtollError]:
        """Open every pool; those that cannot be, by name, with the reason. They are tried again at their use."""
        failed: dict[str, AtollError] = {}
        for pool in await self.book.all():
            if pool.state is not Life.READY:  # an operation is at it, which the next recovery settles
                continue
            try:
                await self.driver(pool)
            except AtollError as error:
                log.warning("pool %s cannot be used now: %s", pool.name, error)
                failed[pool.name] = error
        return failed

    async def driver(self, pool: Pool) -> PoolDriver:
        """Opened. Raises Invalid (no such driver), Lacking, Refused, Broken."""
        async with self._opening:
            if pool.id not in self._open:
                self._open[pool.id] = await self._opened(pool)
        return self._open[pool.id]

    async def list(self, project: str) -> Sequence[Pool]:
        return await self.book.visible(project)

    async def get(self, project: str, name: str) -> Pool:
        """Raises Absent."""
        return await self.book.get(project, name)

    async def by_id(self, id: PoolId) -> Pool:
        """Raises Absent."""
        found = await self.book.pool(id)
        if found is None:
            raise Absent(f"there is no pool {id}")
        return found.pool

    async def of(self, volume: Volume) -> PoolDriver:
        """The driver of the pool that a volume is in. Raises Absent, and what `driver` raises."""
        return await self.driver(await self.by_id(volume.pool))

    async def all(self) -> Sequence[Pool]:
        return await self.book.all()

    async def volumes(self, project: str) -> Sequence[Volume]:
        return await self.book.volumes(project)

    async def all_volumes(self) -> Sequence[Volume]:
        return await self.book.all_volumes()

    async def volume(self, project: str, ref: str) -> VolumeView:
        """By name or id. Raises Absent."""
        return await self.book.find_volume(project, ref)

    async def attachments(self) -> Mapping[str, VolumeAttachment]:
        return await self.book.attachments()

    def filled(self, health: Health) -> int:
        return filled(health, self._warn_at)

    async def usage(self, volume: Volume) -> Usage | None:
        """None: it cannot be told now."""
        try:
            return await (await self.of(volume)).usage(volume.id)
        except AtollError:
            return None

    async def capacity(self, pool: Pool) -> Capacity:
        """As this host sees it now. Raises what `driver` raises, Unreachable where its file system is silent."""
        asking = self._asking.get(pool.id)
        if asking is None or asking.done():
            asking = asyncio.create_task(self._ask(pool), name=f"capacity of pool {pool.name}")
            self._asking[pool.id] = asking
        await asyncio.wait({asking}, timeout=ANSWERS_IN)
        if not asking.done():  # the next who asks waits for the same answer: no more threads hang than pools
            raise Unreachable(
                f"pool {pool.name} does not answer within {ANSWERS_IN:g} s", hint="is its server there?"
            )
        return asking.result()

    async def _ask(self, pool: Pool) -> Capacity:
        return await (await self.driver(pool)).capacity()

    async def health(self, pool: Pool) -> Health:
        try:
            return Health(await self.capacity(pool))
        except AtollError as error:
            return Health(reason=error.message)

    async def place(self, pool: Pool) -> Path:
        """Its directory on this host."""
        return self._path(pool, await self.book.place(pool.id, self._host))

    async def take_out(self, pool: Pool) -> None:
        """Take away what was laid out of it, and forget its driver. Raises Refused, Broken."""
        place = await self.book.place(pool.id, self._host)
        driver = self._open.pop(pool.id, None)
        if driver is None and pool.driver in self._drivers:
            driver = self._made(pool, place)
        if driver is not None:
            await driver.withdraw()

    def forget(self, pool: PoolId) -> None:
        self._open.pop(pool, None)

    async def _opened(self, pool: Pool) -> PoolDriver:
        if pool.driver not in self._drivers:
            hint = did_you_mean(pool.driver, self._drivers) or f"there are {', '.join(sorted(self._drivers))}"
            raise Invalid(f"there is no pool driver {pool.driver[:80]}", hint=hint, field="driver")
        place = await self.book.place(pool.id, self._host)
        driver = self._made(pool, place)
        await driver.open()
        if place is None or not place.laid:  # only now: a crash before this lays it out anew, which changes nothing
            path = place.path if place else ""
            await self.book.record_place(PoolPlace(pool=pool.id, host=self._host, path=path))
        return driver

    def _made(self, pool: Pool, place: PoolPlace | None) -> PoolDriver:
        fresh = place is None or not place.laid
        return self._drivers[pool.driver](pool, Site(self._home, self._path(pool, place), fresh=fresh))

    def _path(self, pool: Pool, place: PoolPlace | None) -> Path:
        return Path(place.path) if place and place.path else self._home / "pools" / pool.id


def check_ready(pool: Pool) -> None:
    """Raises Refused where an operation makes or removes it."""
    if pool.state is not Life.READY:
        raise Refused(f"pool {pool.name} is {pool.state}", hint=f"atoll pool show {pool.name}", field="pool")
