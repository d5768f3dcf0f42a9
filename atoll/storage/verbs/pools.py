"""Pools in a directory of the host: create, delete."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from atoll.base import clock
from atoll.base.errors import Absent, AtollError, Invalid, Refused
from atoll.base.ids import PoolId, new_uuid
from atoll.base.names import check_label, did_you_mean
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery, Undoer, UndoStep
from atoll.storage.args import CreatePoolArgs, PoolArgs
from atoll.storage.book import DEFAULT, SHARED, PoolView, pool_key
from atoll.storage.model import Life, Pool, PoolPlace
from atoll.storage.registry import DRIVERS
from atoll.storage.verbs.yard import Yard, afresh

TAKE_BACK, FINISH = Recovery.TAKE_BACK, Recovery.FINISH
NAMED = 10
"""Users listed in a refusal at most."""


class CreatePool:
    name = "pool.create"
    args = CreatePoolArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"claim": TAKE_BACK, "lay-out": TAKE_BACK, "record": FINISH}

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    async def run(self, work: RunningWork, args: CreatePoolArgs) -> dict[str, str]:
        yard = self._yard
        if not work.resumed:
            await self._lay_out(work, args)
            await work.step("record", percent=90)
        view = await yard.pool(work, args.project, args.name)
        if view.pool.state is Life.CREATING:
            view = await yard.book.move_pool(view, Life.READY)
        work.changed(pool_key(args.project, view.pool.id), 0, view.revision)
        yard.tell_pool("created", view.pool)
        return {"id": view.pool.id, "name": view.pool.name}

    async def _lay_out(self, work: RunningWork, args: CreatePoolArgs) -> None:
        yard = self._yard
        check_label(args.name)
        if args.driver not in DRIVERS:
            hint = did_you_mean(args.driver, DRIVERS) or f"there are {', '.join(sorted(DRIVERS))}"
            raise Invalid(f"there is no pool driver {args.driver[:80]}", hint=hint, field="driver")
        path = await self._checked(args.path)
        id = PoolId(new_uuid())
        pool = Pool(
            id=id,
            project=args.project,
            name=args.name,
            driver=args.driver,
            description=args.description,
            created=clock.now(),
            state=Life.CREATING,
        )
        place = PoolPlace(pool=id, host=yard.pools.host, path=str(path), laid=False)
        work.about(id=id)
        await work.step("claim", UndoStep("pool.forget", {"pool": id}), percent=10)
        await yard.book.add_pool(pool, place)
        await work.step("lay-out", UndoStep("pool.take-out", {"pool": id}), percent=30)
        await yard.pools.driver(pool)

    async def _checked(self, path: str) -> Path:
        """The directory without links. Raises Invalid, Refused, Absent."""
        real = await asyncio.to_thread(_directory, path)
        home = self._yard.pools.home
        if real.is_relative_to(home) or home.is_relative_to(real):
            raise Refused(f"{real} is in use: Atoll's state is in {home}", hint="choose another", field="path")
        for place in await self._yard.book.places(self._yard.pools.host):
            other = Path(place.path)
            if place.path and (real.is_relative_to(other) or other.is_relative_to(real)):
                found = await self._yard.book.pool(place.pool)
                name = found.pool.name if found else place.pool
                raise Refused(f"pool {name} is in {other}", hint="pools cannot be in each other", field="path")
        return real


class DeletePool:
    """What has no volumes goes. Its directory stays, as empty as it was given."""

    name = "pool.delete"
    args = PoolArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"mark": TAKE_BACK, "remove": FINISH}

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    async def run(self, work: RunningWork, args: PoolArgs) -> None:
        yard = self._yard
        try:
            view = await yard.pool(work, args.project, args.name)
        except Absent:
            if work.resumed:
                return
            raise
        pool = view.pool
        if not work.resumed:
            await self._check(args, pool)
            if not args.force:
                await self._check_there(pool)
        before = view
        await work.step("mark", UndoStep("pool.settle", {"pool": pool.id}), percent=10)
        await afresh(lambda: self._mark(args, pool))
        await self._check(args, pool)  # once more: whoever claims a volume from now on finds the pool changed
        await work.step("remove", percent=50)
        try:
            await yard.pools.take_out(pool)
        except AtollError:
            if not args.force:
                raise
        await forget(yard, pool.id)
        work.changed(pool_key(pool.project, pool.id), before.revision, 0)
        yard.tell_pool("deleted", pool)

    async def _mark(self, args: PoolArgs, pool: Pool) -> PoolView | None:
        view = await self._yard.book.pool(pool.id)
        if view is None:
            return None
        await self._check(args, view.pool)
        return await self._yard.book.move_pool(view, Life.DELETING)

    async def _check(self, args: PoolArgs, pool: Pool) -> None:
        if pool.project != args.project:
            raise Refused(
                f"pool {pool.name} is shared: it belongs to project {pool.project}",
                hint=f"atoll -p {pool.project} pool delete {pool.name}",
            )
        if (pool.project, pool.name) == (SHARED, DEFAULT):
            raise Refused("the pool default is there for every project and cannot be deleted")
        if pool.state is Life.CREATING:
            raise Refused(f"pool {pool.name} is {pool.state}", hint=f"atoll pool show {pool.name}")
        users = [volume for volume in await self._yard.book.all_volumes() if volume.pool == pool.id]
        if users:
            named = ", ".join(sorted(_name(args.project, v.project, v.name) for v in users)[:NAMED])
            more = f" and {len(users) - NAMED} more" if len(users) > NAMED else ""
            raise Refused(
                f"pool {pool.name} has volumes: {named}{more}", hint="delete them, or the instances they are of"
            )

    async def _check_there(self, pool: Pool) -> None:
        try:
            await self._yard.pools.capacity(pool)
        except AtollError as error:
            raise Refused(
                error.message,
                hint=error.hint or f"atoll pool delete --force {pool.name} leaves its directory as it is",
            ) from error


def _directory(path: str) -> Path:
    """What `path` leads to: a directory, or a new one in a directory. Raises Invalid, Absent."""
    if not os.path.isabs(path) or os.path.normpath(path) == "/":
        raise Invalid(f"{path[:200]} cannot be a pool", hint="give the whole path of a directory", field="path")
    real = Path(os.path.realpath(path))
    if real.exists() and not real.is_dir():
        raise Invalid(f"{real} is not a directory", field="path")
    if not real.parent.is_dir():
        raise Absent(f"there is no directory {real.parent}", hint="is its disk mounted?", field="path")
    return real


def _name(project: str, of: str, name: str) -> str:
    return name if project == of else f"{of}/{name}"


async def forget(yard: Yard, id: str) -> None:
    """Its records. Absent is success."""

    async def act() -> None:
        view = await yard.book.pool(PoolId(id))
        if view is not None:
            await yard.book.remove_pool(view)

    await afresh(act)
    yard.pools.forget(PoolId(id))


def pool_undoers(yard: Yard) -> dict[str, Undoer]:
    async def forget_pool(args: Mapping[str, str]) -> None:
        await forget(yard, args["pool"])

    async def take_out(args: Mapping[str, str]) -> None:
        view = await yard.book.pool(PoolId(args["pool"]))
        if view is not None:
            await yard.pools.take_out(view.pool)

    async def settle(args: Mapping[str, str]) -> None:
        async def back() -> None:
            view = await yard.book.pool(PoolId(args["pool"]))
            if view is not None and view.pool.state is Life.DELETING:
                await yard.book.move_pool(view, Life.READY)

        await afresh(back)

    return {"pool.forget": forget_pool, "pool.take-out": take_out, "pool.settle": settle}
