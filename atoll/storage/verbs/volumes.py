"""Volumes with a name of their own: create, delete, rename. Attaching and growing also concern instances, above."""

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from atoll.base import clock
from atoll.base.errors import Absent, Refused
from atoll.base.ids import VolumeId, new_uuid
from atoll.base.names import check_label
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery, Undoer, UndoStep
from atoll.storage.args import CreateVolumeArgs, RenameVolumeArgs, VolumeArgs
from atoll.storage.book import VolumeView, volume_key
from atoll.storage.model import Life, Volume, VolumeSpec
from atoll.storage.registry import check_ready as check_pool
from atoll.storage.verbs.yard import Yard, afresh, check_ready
from atoll.store.txn import commit_afresh

TAKE_BACK, FINISH = Recovery.TAKE_BACK, Recovery.FINISH


class CreateVolume:
    name = "volume.create"
    args = CreateVolumeArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"claim": TAKE_BACK, "make": TAKE_BACK, "record": FINISH}

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    async def run(self, work: RunningWork, args: CreateVolumeArgs) -> dict[str, str]:
        yard = self._yard
        if work.resumed:
            volume = (await yard.volume(work, args.project, args.name)).volume
        else:
            volume = await self._make(work, args)
            await work.step("record", percent=95)
        view = await afresh(lambda: self._ready(args.project, volume.id))
        work.changed(volume_key(args.project, volume.id), 0, view.revision)
        yard.tell("created", view.volume)
        return {"id": volume.id, "name": volume.name}

    async def _make(self, work: RunningWork, args: CreateVolumeArgs) -> Volume:
        check_label(args.name)
        yard, id = self._yard, VolumeId(new_uuid())
        pool = (await yard.book.find(args.project, args.pool)).pool
        check_pool(pool)
        await yard.pools.capacity(pool)  # one out of reach is found out before anything is claimed
        work.about(id=id)
        volume = Volume(
            id=id,
            project=args.project,
            name=args.name,
            pool=pool.id,
            size=args.size,
            created=clock.now(),
            format=args.format,
            named=True,
            state=Life.CREATING,
        )
        await work.step("claim", UndoStep("volume.forget", {"project": args.project, "volume": id}), percent=10)
        await afresh(lambda: self._claim(args, volume))
        where = {"pool": str(pool.id), "volume": str(id)}
        await work.step("make", UndoStep("volume.unmake", where), percent=30)
        await (await yard.pools.driver(pool)).create(VolumeSpec(id, args.size, format=args.format))
        return volume

    async def _claim(self, args: CreateVolumeArgs, volume: Volume) -> None:
        pool = await self._yard.book.find(args.project, args.pool)
        check_pool(pool.pool)
        if pool.pool.id != volume.pool:
            raise Refused(f"pool {args.pool} is another one meanwhile", hint="try again", field="pool")
        await self._yard.book.add_volume(pool, volume)

    async def _ready(self, project: str, id: VolumeId) -> VolumeView:
        return await self._yard.move(await self._yard.book.find_volume(project, id), Life.READY)


class DeleteVolume:
    """What nobody has attached goes with all that is on it."""

    name = "volume.delete"
    args = VolumeArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"mark": TAKE_BACK, "remove": FINISH}

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    async def run(self, work: RunningWork, args: VolumeArgs) -> None:
        yard = self._yard
        try:
            view = await yard.volume(work, args.project, args.name)
        except Absent:
            if work.resumed:
                return
            raise
        if not work.resumed:
            await self._check(view)
            await yard.pools.capacity(await yard.pools.by_id(view.volume.pool))  # out of reach: nothing is begun
        before = view
        await work.step(
            "mark", UndoStep("volume.settle", {"project": args.project, "volume": view.volume.id}), percent=10
        )
        view = await afresh(lambda: self._mark(args.project, view.volume.id))
        await work.step("remove", percent=40)
        await (await yard.pools.of(view.volume)).delete(view.volume.id)
        await forget(yard, args.project, view.volume.id)
        work.changed(volume_key(args.project, view.volume.id), before.revision, 0)
        yard.tell("deleted", view.volume)

    async def _mark(self, project: str, id: VolumeId) -> VolumeView:
        view = await self._yard.book.find_volume(project, id)
        await self._check(view)
        return await self._yard.move(view, Life.DELETING)

    async def _check(self, view: VolumeView) -> None:
        volume, user = view.volume, await self._yard.user(view)
        if not volume.named:
            raise Refused(f"{volume.name} is the disk of instance {user}", hint=f"atoll delete {user}")
        if view.held:
            raise Refused(
                f"volume {volume.name} is attached to instance {user}", hint=f"atoll volume detach {volume.name}"
            )
        if volume.state is Life.CREATING:
            check_ready(view)


class RenameVolume:
    name = "volume.rename"
    args = RenameVolumeArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"rename": FINISH}

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    async def run(self, work: RunningWork, args: RenameVolumeArgs) -> None:
        check_label(args.to, field="to")
        view = await self._yard.volume(work, args.project, args.name)
        if not view.volume.named:
            user = await self._yard.user(view)
            raise Refused(f"{args.name} is the disk of instance {user}", hint=f"atoll rename {user} NEW")
        check_ready(view)
        await work.step("rename")
        done = await afresh(lambda: self._rename(args, view.volume.id))
        work.changed(volume_key(args.project, view.volume.id), view.revision, done.revision)
        self._yard.tell("renamed", done.volume)

    async def _rename(self, args: RenameVolumeArgs, id: VolumeId) -> VolumeView:
        view = await self._yard.book.find_volume(args.project, id)
        if view.volume.name == args.to:
            return view
        check_ready(view)
        return await self._yard.book.write_volume(view, msgspec.structs.replace(view.volume, name=args.to))


async def forget(yard: Yard, project: str, id: VolumeId) -> None:
    """Its records. Absent is success."""

    async def make() -> tuple[None, object]:
        return None, await yard.book.releasing(project, [id])

    await commit_afresh(yard.book.store, make)  # type: ignore[arg-type]


def volume_undoers(yard: Yard) -> dict[str, Undoer]:
    async def forget_volume(args: Mapping[str, str]) -> None:
        await forget(yard, args["project"], VolumeId(args["volume"]))

    async def unmake(args: Mapping[str, str]) -> None:
        found = await yard.book.pool(args["pool"])  # type: ignore[arg-type]
        if found is not None:
            await (await yard.pools.driver(found.pool)).delete(VolumeId(args["volume"]))

    async def settle(args: Mapping[str, str]) -> None:
        async def back() -> None:
            view = await yard.book.volume_view(args["project"], args["volume"])
            if view is not None and view.volume.state is Life.DELETING:
                await yard.move(view, Life.READY)

        await afresh(back)

    return {"volume.forget": forget_volume, "volume.unmake": unmake, "volume.settle": settle}
