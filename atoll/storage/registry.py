"""Pool drivers by name, and the pools of this host."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from atoll.base.errors import AtollError, Invalid
from atoll.base.ids import HostId, PoolId
from atoll.base.names import did_you_mean
from atoll.storage.book import StorageBook
from atoll.storage.drivers.dir import DirPool
from atoll.storage.model import Capacity, Pool, PoolPlace, Volume
from atoll.storage.pool import PoolDriver

log = logging.getLogger(__name__)


class Site(msgspec.Struct, frozen=True):
    """Where a pool is on this host. `home`: the state directory; `fresh`: it was never laid out here."""

    home: Path
    path: Path
    fresh: bool


Make = Callable[[Pool, Site], PoolDriver]


def _dir(pool: Pool, site: Site) -> PoolDriver:
    return DirPool(pool.id, pool.name, site.path, home=site.home, fresh=site.fresh)


DRIVERS: Mapping[str, Make] = {"dir": _dir}


class Pools:
    """The pools as this host has them: records from the book, each driver opened at first use and kept."""

    def __init__(
        self, book: StorageBook, *, host: HostId, home: Path, drivers: Mapping[str, Make] = DRIVERS
    ) -> None:
        self.book = book
        self._host, self._home, self._drivers = host, home.absolute(), drivers
        self._open: dict[PoolId, PoolDriver] = {}
        self._opening = asyncio.Lock()

    async def open(self) -> Mapping[str, AtollError]:
        """Open every pool; those that cannot be, by name, with the reason. They are tried again at their use."""
        failed: dict[str, AtollError] = {}
        for pool in await self.book.all():
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

    async def volumes(self, project: str) -> Sequence[Volume]:
        return await self.book.volumes(project)

    async def capacity(self, pool: Pool) -> Capacity:
        """As this host sees it now. Raises what `driver` raises."""
        return await (await self.driver(pool)).capacity()

    async def _opened(self, pool: Pool) -> PoolDriver:
        if pool.driver not in self._drivers:
            hint = did_you_mean(pool.driver, self._drivers) or f"there are {', '.join(sorted(self._drivers))}"
            raise Invalid(f"there is no pool driver {pool.driver[:80]}", hint=hint, field="driver")
        place = await self.book.place(pool.id, self._host)
        path = Path(place.path) if place and place.path else self._home / "pools" / pool.id
        driver = self._drivers[pool.driver](pool, Site(self._home, path, fresh=place is None))
        await driver.open()
        if place is None:  # only now: a crash before this lays it out once more, which changes nothing
            await self.book.record_place(PoolPlace(pool=pool.id, host=self._host))
        return driver
