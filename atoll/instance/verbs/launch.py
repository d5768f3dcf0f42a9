"""Launch: make a wanted instance real, or leave nothing behind."""

from collections.abc import Iterable, Mapping
from typing import ClassVar

import msgspec

from atoll.base import clock
from atoll.base.errors import Conflict, Exists, Invalid
from atoll.base.ids import Digest, Generation, InstanceId, new_uuid
from atoll.base.names import check_label
from atoll.base.units import show_size
from atoll.host.firmware import uefi
from atoll.instance.book import InstanceView, definition
from atoll.instance.book import status as status_of
from atoll.instance.boots import choose, seeded
from atoll.instance.engine import Furnish
from atoll.instance.here import Here
from atoll.instance.kinds import check_kind, check_memory
from atoll.instance.model import Disk, DiskUse, Instance, InstanceSpec, InstanceStatus, Kind, Nic, Power, State
from atoll.instance.supplies import Plan, Sources
from atoll.instance.verbs.args import LaunchArgs
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery, UndoStep

TAKE_BACK = Recovery.TAKE_BACK
RETRIES = 50


class Launch:
    name = "instance.launch"
    args = LaunchArgs
    steps: ClassVar[Mapping[str, Recovery]] = {
        "claim": TAKE_BACK, "disk": TAKE_BACK, "network": TAKE_BACK, "start": TAKE_BACK, "record": Recovery.FINISH,
    }  # fmt: skip

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: LaunchArgs) -> dict[str, str]:
        if work.resumed:
            view = await self._here.named(work, args.project, args.name)
        else:
            check_label(args.name)
            view = await self._claim(work, args)
            pool = view.instance.spec.root.pool
            disk = UndoStep("volume.delete", {"project": args.project, "pool": pool, "volume": volume(view)})
            await work.step("disk", disk, percent=20)
            await self._here.supplies.make_disks(view)
            if args.start:
                await self._here.bring_up(work, view)
            await work.step("record", percent=95)
        if args.start:
            await self._here.record_running(work, view)
        else:
            stopped = await self._here.seen(view.id, State.STOPPED) or view
            work.changed(status_of(view.id), 0, stopped.status_revision)
        return {"id": view.id, "name": view.name}

    async def _claim(self, work: RunningWork, args: LaunchArgs) -> InstanceView:
        """One commit that makes the name, the disk, the addresses and the image's reference ours."""
        spec = msgspec.structs.replace(args.spec, power=Power.ON if args.start else Power.OFF)
        id = InstanceId(new_uuid())
        sources = await self._here.supplies.find(args.project, spec, args.volumes)
        check_kind(spec, seed=args.seed)
        check(spec, sources, self._here.host)
        self._here.check_limits(spec.kind, spec.limits)
        work.about(id=id)
        secret = (UndoStep("seed.forget", {"id": args.seed}),) if args.seed else ()
        await work.step("claim", *secret, UndoStep("instance.forget", {"id": id}), percent=5)
        async with self._here.admission:
            for _ in range(RETRIES):
                plan = await self._here.supplies.plan(args.project, id, args.name, spec.root.size, sources)
                view = await self._birth(work, id, args, spec, sources, plan)
                if args.start:
                    await self._here.admit(view)
                claim = self._here.book.claiming(view.instance, view.status)
                try:
                    revision = await self._here.supplies.claim(claim, plan)
                except Conflict:
                    if args.name in await self._here.book.names(args.project):
                        raise Exists(
                            f"instance {args.name} already exists", hint="choose another name", field="name"
                        ) from None
                    sources = await self._here.supplies.find(args.project, spec, args.volumes)
                    continue
                work.changed(definition(id), 0, revision)
                work.changed(status_of(id), 0, revision)
                self._here.tell_of(
                    view, "instance.created", {"privileged": True} if spec.container.privileged else None
                )
                return msgspec.structs.replace(view, revision=revision, status_revision=revision)
        raise Conflict(f"{args.name} could not be claimed: too much changes at the same time", hint="try again")

    async def _birth(
        self, work: RunningWork, id: InstanceId, args: LaunchArgs, spec: InstanceSpec, sources: Sources, plan: Plan
    ) -> InstanceView:
        manifest = sources.manifest
        way = choose(spec, manifest) if spec.kind is Kind.VM else "direct"
        furnish = Furnish(
            arch=manifest.arch if manifest else "x86_64",
            machine=manifest.machine if manifest and spec.machine == "auto" else spec.machine,
            accel=spec.accel,
            cpus=spec.cpus,
            memory=spec.memory,
            disks=(Disk(plan.volume.id, serial(plan.volume.id), 0), *disks_of(args.volumes, sources)),
            nics=tuple(Nic(port.id, port.network, port.mac, 0, port.addresses) for port in plan.ports),
            firmware=way,
            uefi=uefi().build if way == "uefi" else "",
            style=spec.hardware,
            cdrom=bool(spec.cdrom),
            seed=spec.kind is Kind.VM and seeded(spec, manifest, args.seed),
        )
        hardware = await self._here.engine_of(spec.kind).furnish(furnish)
        now = clock.now()
        instance = Instance(
            id=id,
            project=args.project,
            name=args.name,
            spec=spec,
            hardware=hardware,
            image=sources.image.digest if sources.image else Digest(""),
            created=now,
            seed=args.seed,
            cdrom=sources.cd.image.digest if sources.cd else Digest(""),
        )
        status = InstanceStatus(
            host=self._here.host,
            state=State.CREATING,
            generation=Generation(1 if args.start else 0),
            since=now,
            operation=work.id,
            memory=spec.memory,
        )
        return InstanceView(instance=instance, status=status, revision=0, status_revision=0)  # type: ignore[arg-type]


def volume(view: InstanceView) -> str:
    return view.instance.hardware.disks[0].volume


def serial(volume: str) -> str:
    """What the guest reads as the disk's serial number, wherever the volume is attached: 20 bytes at most."""
    return volume.replace("-", "")[:20]


def disks_of(uses: Iterable[DiskUse], sources: Sources) -> list[Disk]:
    found = [view.volume.id for view in sources.volumes]
    if len(set(found)) < len(found):
        raise Invalid("a volume is given twice", field="volumes")
    return [Disk(id, serial(id), 0, use.bus, use.cache, named=True) for id, use in zip(found, uses, strict=True)]


def check(spec: InstanceSpec, sources: Sources, host: str) -> None:
    """Raises Invalid for what this image or host can never be."""
    manifest = sources.manifest
    check_memory(spec, manifest)
    if spec.kind is Kind.VM:
        check_media(spec, sources)
        choose(spec, manifest)
    disk = manifest.files["disk"] if manifest and spec.kind is Kind.VM else None
    if disk and spec.root.size and spec.root.size < disk.virtual_size:
        raise Invalid(
            f"a disk of {show_size(spec.root.size)} is smaller than the image's {show_size(disk.virtual_size)}",
            hint=f"--disk {show_size(disk.virtual_size)} or more",
            field="spec.root.size",
        )
    if spec.host not in (None, host):
        raise Invalid(f"there is no host {spec.host}", hint="atoll host list", field="spec.host")


def check_media(spec: InstanceSpec, sources: Sources) -> None:
    """Raises Invalid where the drive would hold no disc, or an empty disk has no size."""
    manifest, cd = sources.manifest, sources.cd
    if cd is not None and "iso" not in cd.image.manifest.files:
        raise Invalid(f"image {spec.cdrom} holds no ISO", hint="atoll image list", field="spec.cdrom")
    if manifest is None and not spec.root.size:
        raise Invalid("an empty disk needs a size", hint="--disk 10GiB", field="spec.root.size")
    if spec.boot_cdrom and not spec.cdrom:
        raise Invalid("there is no CD to boot first", hint="--cdrom IMAGE", field="spec.boot_cdrom")
