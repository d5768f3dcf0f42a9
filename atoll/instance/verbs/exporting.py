"""export: a whole instance as one file, for whoever fetches it."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll.base.errors import Refused
from atoll.base.units import GiB, show_size
from atoll.host import files
from atoll.instance.book import InstanceView
from atoll.instance.dock import Dock
from atoll.instance.here import ALIVE, Here
from atoll.instance.model import Disk, Kind
from atoll.instance.outbox import Outbox, Sending
from atoll.instance.parcel import (
    FORMAT,
    BootPart,
    Content,
    DiskPart,
    Firmware,
    NicPart,
    Parcel,
    disk_name,
    travelling,
)
from atoll.instance.tarred import measure, total, write
from atoll.instance.verbs.args import ExportArgs
from atoll.instance.verbs.disks import AT_REST
from atoll.instance.verbs.power import refuse_unless
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery, Undoer, UndoStep
from atoll.storage.book import VolumeView
from atoll.storage.pool import Streams

TAKE_BACK = Recovery.TAKE_BACK
COPIED, SENT = 85, 99
"""Percent once all is copied, and once all is sent."""


class Export:
    """Its disks are copied, each flattened, while it stands still; then it may start again, and the file is sent.

    The copies lie on this host until they were fetched: room for them is needed there. A daemon that ends takes
    them back.
    """

    name = "instance.export"
    args = ExportArgs
    steps: ClassVar[Mapping[str, Recovery]] = {
        "claim": TAKE_BACK, "copy": TAKE_BACK, "send": TAKE_BACK, "clear": Recovery.FINISH,
    }  # fmt: skip

    def __init__(self, here: Here, dock: Dock, outbox: Outbox) -> None:
        self._here, self._dock, self._outbox = here, dock, outbox

    async def run(self, work: RunningWork, args: ExportArgs) -> dict[str, object]:
        if work.resumed:
            await self._dock.clear(work.id)
            return {}
        with self._outbox.offering(work.id) as offer:
            view = await self._here.named(work, args.project, args.name)
            if view.instance.spec.kind is not Kind.VM:
                raise Refused(
                    f"{view.name} is a container, and only virtual machines are exported",
                    hint=f"its files: atoll exec {view.name} -- tar -c / > FILE",
                )
            await work.step("claim", UndoStep("parcel.clear", {"key": work.id, "upload": ""}), percent=0)
            with self._standing_still(work, view):
                view = await self._here.present(view.id)
                refuse_unless_at_rest(view)
                parcel = await self._copy(work, view, args)
                await self._check_still(view)
            manifest = msgspec.json.format(msgspec.json.encode(parcel), indent=1)
            contents, folder = dict(parcel.members()), self._dock.folder(work.id)
            length = total(manifest, contents)
            await work.step("send", percent=COPIED, text=f"sending {show_size(length)}")
            await offer.send(Sending(length, _told(work, write(manifest, contents, folder), length)))
        await work.step("clear", percent=SENT)
        await self._dock.clear(work.id)
        return {"length": length, "disks": len(parcel.disks)}

    @contextmanager
    def _standing_still(self, work: RunningWork, view: InstanceView) -> Iterator[None]:
        self._here.refuse_copied(view)
        self._here.copied[view.id] = work.id
        try:
            yield
        finally:
            del self._here.copied[view.id]

    async def _check_still(self, view: InstanceView) -> None:
        """Raises Refused where it was started all the same: an operation may have been on its way."""
        now = await self._here.present(view.id)
        if now.status.state not in AT_REST or now.status.generation != view.status.generation:
            raise Refused(f"{view.name} was started while it was copied", hint="stop it, and export it again")

    async def _copy(self, work: RunningWork, view: InstanceView, args: ExportArgs) -> Parcel:
        hardware = view.instance.hardware
        chosen = [disk for disk in hardware.disks if args.volumes or not disk.named]
        views = [await self._here.supplies.storage.find_volume(view.project, disk.volume) for disk in chosen]
        self._dock.check_room(await self._room(views))
        folder = self._dock.make(work.id)
        await work.step("copy", percent=1)
        boot = await self._boot(view, folder)
        uefi = await self._variables(view, folder)
        disks = []
        for number, (disk, volume) in enumerate(zip(chosen, views, strict=True)):
            span = (COPIED - 1) / len(chosen)
            path = folder / disk_name(number)
            content = await self._disk(work, volume, path, args, (1 + number * span, span))
            disks.append(await self._part(disk, volume, content))
        return await self._parcel(view, tuple(disks), boot, uefi)

    async def _room(self, views: list[VolumeView]) -> int:
        """Bytes that the copies take at most, as far as can be told."""
        usages = [await self._here.supplies.pools.usage(view.volume) for view in views]
        return sum(usage.used for usage in usages if usage)

    async def _disk(
        self, work: RunningWork, view: VolumeView, path: Path, args: ExportArgs, span: tuple[float, float]
    ) -> Content:
        volume = view.volume
        driver = await self._here.supplies.pools.of(volume)
        if not isinstance(driver, Streams):
            raise Refused(
                f"pool {driver.name} cannot give whole volumes away", hint="move the volume to another pool first"
            )
        usage = await self._here.supplies.pools.usage(volume)
        base = await self._base(view)
        expected = max(1, (usage.used if usage else 0) + base)
        start, width = span

        def told(written: int) -> None:
            done = min(1.0, written / expected)
            work.tell(int(start + width * 0.8 * done), f"copying {volume.name}: {written / GiB:.1f} GiB")

        await driver.copy_out(volume.id, path, compress=args.compress, told=told)
        work.tell(int(start + width * 0.8), f"checksum of {volume.name}")
        return await files.in_thread(measure, path)

    async def _base(self, view: VolumeView) -> int:
        """Bytes of the image that a volume stands on."""
        if view.volume.base is None:
            return 0
        manifest = await self._here.supplies.images.manifest(view.volume.base)
        disk = manifest.files.get("disk")
        return disk.size if disk else 0

    async def _part(self, disk: Disk, view: VolumeView, content: Content) -> DiskPart:
        pool = await self._here.supplies.pools.by_id(view.volume.pool)
        volume = view.volume
        return DiskPart(
            content=content,
            size=volume.size,
            volume=volume.name if disk.named else "",
            format=volume.format,
            pool=pool.name,
            serial=disk.serial,
            bus=disk.bus,
            cache=disk.cache,
        )

    async def _boot(self, view: InstanceView, folder: Path) -> BootPart | None:
        if view.instance.hardware.firmware != "direct":
            return None
        image = await self._here.supplies.library.layers(view.instance.image)
        parts = []
        for name, source in (("kernel", image.kernel), ("initrd", image.initrd)):
            with files.translated(f"read the {name} of {view.name}"):
                await files.in_thread(files.copy_plain, Path(source), folder / name)
            parts.append(await files.in_thread(measure, folder / name))
        return BootPart(kernel=parts[0], initrd=parts[1], cmdline=image.manifest.cmdline)

    async def _variables(self, view: InstanceView, folder: Path) -> Firmware | None:
        source = self._here.supplies.boots.home(view.id) / "variables.fd"
        if not view.instance.hardware.uefi or not source.exists():
            return None
        with files.translated(f"read the UEFI variables of {view.name}"):
            await files.in_thread(files.copy_plain, source, folder / "variables.fd")
        content = await files.in_thread(measure, folder / "variables.fd")
        return Firmware(build=view.instance.hardware.uefi, variables=content)

    async def _parcel(
        self, view: InstanceView, disks: tuple[DiskPart, ...], boot: BootPart | None, uefi: Firmware | None
    ) -> Parcel:
        instance, hardware = view.instance, view.instance.hardware
        manifest = await self._here.supplies.images.manifest(instance.image) if instance.image else None
        return Parcel(
            format=FORMAT,
            version=1,
            id=view.id,
            name=view.name,
            image=instance.spec.image,
            spec=travelling(instance.spec),
            arch=hardware.arch,
            machine=hardware.machine,
            firmware=hardware.firmware,
            agent=manifest.agent or hardware.cdrom if manifest else True,
            min_memory=manifest.min_memory if manifest else 0,
            seed=hardware.seed,
            cdrom=hardware.cdrom,
            cloud_init=await self._here.supplies.boots.seeds.get(view.project, instance.seed),
            nics=tuple(
                NicPart(spec=spec, mac=nic.mac, address=next(iter(nic.addresses), ""))
                for spec, nic in zip(instance.spec.nics, hardware.nics, strict=True)
            ),
            disks=disks,
            boot=boot,
            uefi=uefi,
        )


async def _told(work: RunningWork, chunks: AsyncIterator[bytes], length: int) -> AsyncIterator[bytes]:
    """The same, with how much of it is on its way: each percent once."""
    sent, last = 0, 0
    async for chunk in chunks:
        yield chunk
        sent += len(chunk)
        percent = COPIED + sent * (SENT - COPIED) // length
        if percent != last:
            last = percent
            work.tell(percent, f"sending {show_size(length)}")


def refuse_unless_at_rest(view: InstanceView) -> None:
    """Raises Refused with the next step: the disks of a guest that runs change while they are read."""
    if view.status.state in ALIVE:
        raise Refused(
            f"{view.name} is {view.status.state}, and its disks must stand still to be exported",
            hint=f"atoll stop {view.name}; once it is copied it may run again",
        )
    refuse_unless(AT_REST, view)


def parcel_undoers(dock: Dock) -> dict[str, Undoer]:
    async def clear(args: Mapping[str, str]) -> None:
        dock.drop(args["upload"])
        await dock.clear(args["key"])

    return {"parcel.clear": clear}
