"""import: a whole instance that another Atoll exported becomes one of ours, stopped."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll.base import clock
from atoll.base.errors import Conflict, Exists, Lacking
from atoll.base.ids import Bytes, Digest, Generation, VolumeId, new_uuid
from atoll.host import files
from atoll.host.firmware import uefi
from atoll.image.digest import digest_of
from atoll.image.model import ImageUse, Manifest
from atoll.instance.book import InstanceView, definition
from atoll.instance.book import status as status_of
from atoll.instance.dock import Dock
from atoll.instance.engine import Furnish
from atoll.instance.fitting import Fitted, fit
from atoll.instance.here import Here
from atoll.instance.model import Disk, DiskUse, Hardware, Instance, InstanceStatus, Nic, State
from atoll.instance.parcel import DiskPart, Parcel, disk_name
from atoll.instance.supplies import Plan, Sources
from atoll.instance.verbs.args import ImportInstanceArgs
from atoll.instance.verbs.launch import RETRIES, serial
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery, UndoStep
from atoll.storage.model import Life, Pool, Volume, VolumeSpec
from atoll.storage.pool import Streams
from atoll.storage.verbs.yard import Yard, afresh
from atoll.store.txn import merge

TAKE_BACK = Recovery.TAKE_BACK


class ImportInstance:
    """Its volumes, then itself with its own disk: each disk is written anew from the file that was sent, so that
    nothing of how that was laid out stays. What a failure, a cancel or the daemon's end leaves is taken back.
    """

    name = "instance.import"
    args = ImportInstanceArgs
    steps: ClassVar[Mapping[str, Recovery]] = {
        "claim": TAKE_BACK, "volumes": TAKE_BACK, "disk": TAKE_BACK, "record": Recovery.FINISH,
    }  # fmt: skip

    def __init__(self, here: Here, dock: Dock, yard: Yard) -> None:
        self._here, self._dock, self._yard = here, dock, yard

    async def run(self, work: RunningWork, args: ImportInstanceArgs) -> dict[str, object]:
        notes: list[str] = []
        if not work.resumed:
            fitted, parcel = await self._claim(work, args)
            work.about(name=fitted.name)
            for number, name in enumerate(fitted.volumes, start=1):
                await self._volume(work, args, fitted, parcel.disks[number], (number, name))
            view = await self._instance(work, args, parcel, fitted)
            notes = fitted.notes
            await work.step("record", percent=98)
        else:
            view = await self._here.named(work, args.project, args.name)
        await self._dock.clear(work.id)
        stopped = await self._here.seen(view.id, State.STOPPED) or view
        work.changed(status_of(view.id), 0, stopped.status_revision)
        return {"id": view.id, "name": view.name, "notes": notes}

    async def _claim(self, work: RunningWork, args: ImportInstanceArgs) -> tuple[Fitted, Parcel]:
        """From here on what was sent is this operation's, and taken back with it."""
        sent = {"key": work.id, "upload": args.upload}
        secret = (UndoStep("seed.forget", {"id": args.seed}),) if args.seed else ()
        await work.step("claim", UndoStep("parcel.clear", sent), *secret, percent=0)
        self._dock.claim(args.upload, work.id)
        parcel = self._dock.parcel(work.id)
        return await fit(self._here, args.project, parcel, args.fitting), parcel

    async def _volume(
        self, work: RunningWork, args: ImportInstanceArgs, fitted: Fitted, part: DiskPart, at: tuple[int, str]
    ) -> None:
        number, name = at
        id, pool = VolumeId(new_uuid()), fitted.pools[number]
        volume = Volume(
            id=id,
            project=args.project,
            name=name,
            pool=pool.id,
            size=Bytes(part.size),
            created=clock.now(),
            format=part.format,
            named=True,
            state=Life.CREATING,
        )
        made = UndoStep("volume.unmake", {"pool": str(pool.id), "volume": id})
        known = UndoStep("volume.forget", {"project": args.project, "volume": id})
        await work.step("volumes", made, known, percent=5)

        async def add() -> None:
            await self._yard.book.add_volume(await self._yard.book.find(args.project, pool.name), volume)

        await afresh(add)
        await self._fill(work, volume, pool, number)

        async def ready() -> None:
            view = await self._yard.book.find_volume(args.project, id)
            await self._yard.move(view, Life.READY)

        await afresh(ready)
        self._yard.tell("created", volume)

    async def _fill(self, work: RunningWork, volume: Volume, pool: Pool, number: int) -> None:
        driver = await self._here.supplies.pools.driver(pool)
        if not isinstance(driver, Streams):
            raise Lacking(f"pool {pool.name} cannot take whole volumes in", hint="--pool NAME", field="pool")
        source = self._dock.folder(work.id) / disk_name(number)
        length = max(1, (await files.in_thread(source.stat)).st_size)

        def told(written: int) -> None:
            work.tell(None, f"writing {volume.name}: {min(100, written * 100 // length)}%")

        await driver.copy_in(VolumeSpec(volume.id, volume.size, (), volume.format), source, told=told)

    async def _instance(
        self, work: RunningWork, args: ImportInstanceArgs, parcel: Parcel, fitted: Fitted
    ) -> InstanceView:
        work.about(id=fitted.id)
        mine = UndoStep("instance.forget-own", {"id": fitted.id, "operation": work.id})
        await work.step("disk", mine, percent=60)
        folder = self._dock.folder(work.id)
        async with self._kernel(parcel, folder) as manifest:
            view, plan = await self._born(work, args, parcel, fitted, manifest)
        work.changed(definition(view.id), 0, view.revision)
        self._here.tell_of(view, "instance.created")
        await self._fill(work, plan.volume, fitted.pools[0], 0)
        if parcel.uefi is not None and view.instance.hardware.uefi == parcel.uefi.build:
            await files.in_thread(_remember, folder, self._here.supplies.boots.home(view.id))
        return view

    @contextlib.asynccontextmanager
    async def _kernel(self, parcel: Parcel, folder: Path) -> AsyncIterator[Manifest | None]:
        if parcel.boot is None:
            yield None
            return
        parts = {"kernel": folder / "kernel", "initrd": folder / "initrd"}
        told = {
            "arch": parcel.arch, "cmdline": parcel.boot.cmdline, "agent": parcel.agent,
            "min_memory": Bytes(parcel.min_memory),
        }  # fmt: skip
        async with self._here.supplies.library.kernel(parts, **told) as manifest:
            yield manifest

    async def _born(
        self, work: RunningWork, args: ImportInstanceArgs, parcel: Parcel, fitted: Fitted, kernel: Manifest | None
    ) -> tuple[InstanceView, Plan]:
        """One commit that makes the name, the disks, the addresses and the kernel's reference ours."""
        supplies = self._here.supplies
        uses = tuple(
            DiskUse(volume=name, bus=part.bus, cache=part.cache)
            for name, part in zip(fitted.volumes, parcel.disks[1:], strict=True)
        )
        for _ in range(RETRIES):
            sources = await supplies.find(args.project, fitted.spec, uses)
            plan = await supplies.plan(args.project, fitted.id, fitted.name, fitted.spec.root.size, sources)
            hardware = await self._hardware(parcel, fitted, sources, plan)
            view = self._view(work, args, fitted, hardware, kernel)
            claims = [self._here.book.claiming(view.instance, view.status)]
            if kernel is not None:
                use = ImageUse(volume=plan.volume.id, project=args.project, user=fitted.name)
                claims.append(supplies.images.holding(kernel, use))
            try:
                revision = await supplies.claim(merge(*claims), plan)
            except Conflict:
                if fitted.name in await self._here.book.names(args.project):
                    raise Exists(
                        f"instance {fitted.name} already exists", hint="another name: --name NAME", field="name"
                    ) from None
                if await self._here.book.by_id(fitted.id):
                    raise Conflict(
                        f"{parcel.name} came from two files at the same time", hint="try again"
                    ) from None
                continue
            return msgspec.structs.replace(view, revision=revision, status_revision=revision), plan
        raise Conflict(f"{fitted.name} could not be claimed: too much changes at the same time", hint="try again")

    async def _hardware(self, parcel: Parcel, fitted: Fitted, sources: Sources, plan: Plan) -> Hardware:
        """What it was born with, as far as this host has it."""
        spec, build = fitted.spec, _build(parcel, fitted)
        ids = (plan.volume.id, *(view.volume.id for view in sources.volumes))
        hardware = await self._here.engines[spec.kind].furnish(
            Furnish(
                arch=parcel.arch,
                machine=spec.machine,
                accel=spec.accel,
                cpus=spec.cpus,
                memory=spec.memory,
                disks=tuple(
                    Disk(id, part.serial or serial(id), 0, part.bus, part.cache, named=bool(part.volume))
                    for id, part in zip(ids, parcel.disks, strict=True)
                ),
                nics=tuple(Nic(port.id, port.network, port.mac, 0, port.addresses) for port in plan.ports),
                firmware=parcel.firmware,
                uefi=build,
                style=spec.hardware,
                cdrom=parcel.cdrom,
                seed=parcel.seed,
                versioned=parcel.machine,
            )
        )
        if hardware.machine != parcel.machine:
            _note(fitted, f"this host's QEMU has no machine type {parcel.machine}: it has {hardware.machine}")
        return hardware

    def _view(
        self,
        work: RunningWork,
        args: ImportInstanceArgs,
        fitted: Fitted,
        hardware: Hardware,
        kernel: Manifest | None,
    ) -> InstanceView:
        now = clock.now()
        instance = Instance(
            id=fitted.id,
            project=args.project,
            name=fitted.name,
            spec=msgspec.structs.replace(fitted.spec, nics=fitted.nics),
            hardware=hardware,
            image=digest_of(kernel) if kernel else Digest(""),
            created=now,
            seed=args.seed,
        )
        status = InstanceStatus(
            host=self._here.host,
            state=State.CREATING,
            generation=Generation(0),
            since=now,
            operation=work.id,
        )
        return InstanceView(instance=instance, status=status, revision=0, status_revision=0)  # type: ignore[arg-type]


def _build(parcel: Parcel, fitted: Fitted) -> str:
    """The UEFI build that it gets. Raises Lacking where this host has none."""
    if parcel.firmware != "uefi":
        return ""
    if parcel.uefi is None:
        return uefi().build
    try:
        return uefi(parcel.uefi.build).build
    except Lacking:
        _note(fitted, f"this host has no UEFI {parcel.uefi.build}: what that remembered (boot entries) is left out")
        return uefi().build


def _note(fitted: Fitted, text: str) -> None:
    """Once, however often its birth is tried."""
    if text not in fitted.notes:
        fitted.notes.append(text)


def _remember(folder: Path, home: Path) -> None:
    """The UEFI's variables, where they are of the size that its code expects. Blocks."""
    with files.translated("keep the UEFI variables"):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        raw = (folder / "variables.fd").read_bytes()
        if len(raw) == uefi().template.stat().st_size:
            files.write_whole(home / "variables.fd", raw)
