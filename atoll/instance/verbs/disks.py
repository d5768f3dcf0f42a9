"""attach, detach and grow of volumes: for what runs at once, for what is at rest in its record."""

import contextlib
from collections.abc import Collection, Mapping
from typing import ClassVar

import msgspec

from atoll.base.errors import AtollError, Refused
from atoll.base.ids import VolumeId
from atoll.instance.book import InstanceView, definition
from atoll.instance.engine import Disks
from atoll.instance.here import ALIVE, Here
from atoll.instance.model import Disk, Instance, State
from atoll.instance.verbs.args import AttachVolumeArgs
from atoll.instance.verbs.launch import serial
from atoll.instance.verbs.power import refuse_unless
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery, UndoStep
from atoll.storage.args import GrowVolumeArgs, VolumeArgs
from atoll.storage.book import VolumeView, volume_key
from atoll.storage.model import VolumeAttachment
from atoll.storage.verbs.yard import Yard, afresh, check_ready
from atoll.store.txn import merge

TAKE_BACK, FINISH = Recovery.TAKE_BACK, Recovery.FINISH
AT_REST = frozenset({State.STOPPED, State.BROKEN})
SETTLED = AT_REST | ALIVE
"""States in which nobody else is at work on it."""
LETS_GO_IN = 20.0
"""Seconds that a guest has to let go of a disk: one under TCG that is busy needs some."""


def live(here: Here, view: InstanceView) -> Disks | None:
    """What brings disks to a guest that runs; None: it is at rest. Raises Refused."""
    refuse_unless(SETTLED, view)
    if view.status.state not in ALIVE:
        return None
    return able(here, view)


def able(here: Here, view: InstanceView) -> Disks:
    engine = here.engine(view)
    if not isinstance(engine, Disks):
        raise Refused(f"{view.name} is a {view.instance.spec.kind}, whose disks are those it was created with")
    return engine


def disk_of(view: InstanceView, volume: str) -> Disk | None:
    return next((disk for disk in view.instance.hardware.disks if disk.volume == volume), None)


def with_disks(view: InstanceView, disks: tuple[Disk, ...]) -> Instance:
    hardware = msgspec.structs.replace(view.instance.hardware, disks=disks)
    return msgspec.structs.replace(view.instance, hardware=hardware)


class AttachVolume:
    name = "volume.attach"
    args = AttachVolumeArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"claim": TAKE_BACK, "plug": FINISH}

    def __init__(self, here: Here, yard: Yard) -> None:
        self._here, self._yard = here, yard

    async def run(self, work: RunningWork, args: AttachVolumeArgs) -> dict[str, str]:
        here = self._here
        view = await self._yard.volume(work, args.project, args.name)
        if work.resumed:
            found = await here.book.by_id(view.held.instance) if view.held else None
            if found is None:  # detached, or deleted with its instance, since
                return {}
        else:
            await here.supplies.free(view)
            found = await here.book.get(args.project, args.instance)
            await self._yard.pools.capacity(await self._yard.pools.by_id(view.volume.pool))
            live(here, found)
            undo = UndoStep("volume.let-go", {"instance": found.id, "volume": view.volume.id})
            await work.step("claim", undo, percent=10)
            before, id = found, found.id
            found = await afresh(lambda: self._claim(args, view.volume.id, id))
            work.changed(definition(found.id), before.revision, found.revision)
        await work.step("plug", percent=50)
        await self._plug(found, view.volume.id)
        self._yard.tell("attached", view.volume, {"instance": found.name})
        return {"instance": found.name, "serial": serial(view.volume.id)}

    async def _claim(self, args: AttachVolumeArgs, volume: VolumeId, instance: str) -> InstanceView:
        """One commit that makes the volume the instance's, and gives it its place."""
        here = self._here
        found = await here.present(instance)
        view = await here.supplies.free(await self._yard.book.find_volume(args.project, volume))
        live(here, found)
        disk = Disk(volume, serial(volume), 0, args.bus, args.cache, named=True)
        hardware = able(here, found).seat(found.instance.hardware, disk)
        now = msgspec.structs.replace(found.instance, hardware=hardware)
        held = VolumeAttachment(
            volume=volume, instance=found.id, host=here.host, generation=found.status.generation
        )
        parts = here.book.redefining(found, now), self._yard.book.attaching(view, held)
        revision = await self._yard.book.store.commit(merge(*parts))
        return msgspec.structs.replace(found, instance=now, revision=revision)

    async def _plug(self, view: InstanceView, volume: VolumeId) -> None:
        """Into the guest, where one runs now: what was started since has it from its start."""
        now = await self._here.present(view.id)
        disk = disk_of(now, volume)
        if disk is None or now.status.state not in ALIVE:
            return
        try:
            await able(self._here, now).add_disk(now.id, await self._here.supplies.attach_disk(now, disk))
        except AtollError:
            if await self._here.alive(await self._here.present(view.id)):
                raise  # otherwise it ended meanwhile, and has the disk at its next start


class DetachVolume:
    """The guest lets go first, then the record. Says no where the guest has it mounted, unless forced."""

    name = "volume.detach"
    args = VolumeArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"release": FINISH}

    def __init__(self, here: Here, yard: Yard) -> None:
        self._here, self._yard = here, yard

    async def run(self, work: RunningWork, args: VolumeArgs) -> dict[str, object]:
        view = await self._yard.volume(work, args.project, args.name)
        volume = view.volume
        if view.held is None:
            if work.resumed:
                return {}
            raise Refused(f"volume {volume.name} is attached to nothing", hint="atoll volume list")
        found = await self._here.book.by_id(view.held.instance)
        mounted: tuple[str, ...] = ()
        if found is not None:
            if not volume.named:
                raise Refused(
                    f"{volume.name} is the disk that {found.name} was created with",
                    hint=f"atoll delete {found.name}",
                )
            mounted = await self._mounts(found, volume.id)
            if mounted and not args.force and not work.resumed:
                where = ", ".join(mounted)
                raise Refused(
                    f"{found.name} has volume {volume.name} mounted at {where}",
                    hint="unmount it in the guest; --force takes it away all the same, as pulling the plug does",
                )
        await work.step("release", percent=20, text="the guest is asked to let go")
        instance = view.held.instance
        await release(self._here, instance, volume.id, timeout=LETS_GO_IN)
        with contextlib.suppress(AtollError):  # a pool out of reach holds nothing open
            await (await self._yard.pools.of(volume)).detach(volume.id)
        self._yard.tell("detached", volume, {"instance": found.name if found else instance})
        return {"instance": found.name if found else "", "mounted": list(mounted)}

    async def _mounts(self, view: InstanceView, volume: VolumeId) -> tuple[str, ...]:
        engine, disk = live(self._here, view), disk_of(view, volume)
        if engine is None or disk is None:
            return ()
        try:
            return await engine.mounts(view.id, disk.slot)
        except AtollError:  # it ended meanwhile, or says nothing
            return ()


async def release(
    here: Here, instance: str, volume: VolumeId, *, timeout: float, states: Collection[State] = SETTLED
) -> None:
    """The guest lets go, then both records say so; anew wherever somebody was faster. Absent is success."""

    async def act() -> None:
        view = await here.book.by_id(instance)
        disk = disk_of(view, volume) if view else None
        gone = await here.supplies.storage.detaching(volume, instance)
        if view is None or disk is None:
            await here.supplies.store.commit(gone)
            return
        refuse_unless(states, view)
        if await here.alive(view):
            await _unplug(here, view, disk, timeout)
        now = with_disks(view, tuple(each for each in view.instance.hardware.disks if each.volume != volume))
        await here.supplies.store.commit(merge(here.book.redefining(view, now), gone))

    await afresh(act)


async def _unplug(here: Here, view: InstanceView, disk: Disk, timeout: float) -> None:
    try:
        await able(here, view).remove_disk(view.id, disk.slot, timeout=timeout)
    except AtollError:
        if await here.alive(view):
            raise  # otherwise it ended meanwhile, which lets go of everything


async def let_go(here: Here, instance: str, volume: VolumeId) -> None:
    """Undo of an attachment. A guest that is just being started has read its disks: its record is not touched."""
    states = SETTLED | {State.STOPPING, State.GONE}
    await release(here, instance, volume, timeout=LETS_GO_IN, states=states)


class GrowVolume:
    """Larger at once, for a guest that runs too; never smaller."""

    name = "volume.grow"
    args = GrowVolumeArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"grow": FINISH}

    def __init__(self, here: Here, yard: Yard) -> None:
        self._here, self._yard = here, yard

    async def run(self, work: RunningWork, args: GrowVolumeArgs) -> dict[str, int]:
        view = await self._yard.volume(work, args.project, args.name)
        check_ready(view)
        driver = await self._yard.pools.of(view.volume)
        if not work.resumed:
            await driver.make_room(view.volume.id, args.size)
            await self._holder(view)
        await work.step("grow", percent=30)
        found = await self._holder(view)
        disk = disk_of(found, view.volume.id) if found else None
        if found is not None and disk is not None and found.status.state in ALIVE:
            await able(self._here, found).grow_disk(found.id, disk.slot, args.size)
        else:
            await driver.grow(view.volume.id, args.size)
        done = await afresh(lambda: self._record(args, view.volume.id))
        work.changed(volume_key(args.project, view.volume.id), view.revision, done.revision)
        self._yard.tell("grown", done.volume, {"size": done.volume.size})
        return {"size": done.volume.size}

    async def _holder(self, view: VolumeView) -> InstanceView | None:
        """Who has it attached. Raises Refused while somebody else is at work on that."""
        found = await self._here.book.by_id(view.held.instance) if view.held else None
        if found is not None:
            refuse_unless(SETTLED, found)
        return found

    async def _record(self, args: GrowVolumeArgs, id: VolumeId) -> VolumeView:
        view = await self._yard.book.find_volume(args.project, id)
        if args.size <= view.volume.size:
            return view
        return await self._yard.book.write_volume(view, msgspec.structs.replace(view.volume, size=args.size))
