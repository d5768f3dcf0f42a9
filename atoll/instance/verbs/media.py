"""insert and eject: a CD comes into the drive or leaves it, at once where the guest runs. Its image has it as a
user for as long as it is in there."""

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from atoll.base.errors import AtollError, Invalid, Refused
from atoll.base.ids import Digest, VolumeId
from atoll.image.book import ImageView
from atoll.image.model import ImageUse
from atoll.instance.book import InstanceView, definition
from atoll.instance.engine import Ejects
from atoll.instance.here import ALIVE, Here
from atoll.instance.model import State
from atoll.instance.verbs.args import InsertArgs, NamedArgs
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery
from atoll.store.api import Txn
from atoll.store.txn import commit_afresh, merge


class Insert:
    """The record first: what a crash leaves is a disc on record, which the next daemon puts in."""

    name = "instance.insert"
    args = InsertArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"insert": Recovery.FINISH}

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: InsertArgs) -> None:
        view = await self._here.named(work, args.project, args.name)
        _check_drive(view)
        images = self._here.supplies.images
        found = await images.find(args.project, args.image)
        if "iso" not in found.image.manifest.files:
            raise Invalid(f"image {found.image.name} holds no ISO", hint="atoll image list", field="image")
        realised = self._here.supplies.library.realise(found.image.digest, found.image.manifest)
        await work.step("insert", percent=20)
        before = view.revision
        await _record(self._here, view, found)
        engine = self._here.engine(view)
        try:
            if view.status.state in ALIVE and isinstance(engine, Ejects):
                await engine.insert(view.id, realised.iso)
        except AtollError:
            await _record(self._here, view, None)  # the drive is empty then
            raise
        work.changed(definition(view.id), before, (await self._here.present(view.id)).revision)


class Eject:
    name = "instance.eject"
    args = NamedArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"eject": Recovery.FINISH}

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: NamedArgs) -> None:
        view = await self._here.named(work, args.project, args.name)
        _check_drive(view)
        if not view.instance.cdrom:
            return
        await work.step("eject", percent=20)
        engine = self._here.engine(view)
        if view.status.state in ALIVE and isinstance(engine, Ejects):
            await engine.eject(view.id)
        before = view.revision
        await _record(self._here, view, None)
        work.changed(definition(view.id), before, (await self._here.present(view.id)).revision)


def _check_drive(view: InstanceView) -> None:
    if view.status.state in (State.GONE, State.CREATING):
        raise Refused(f"{view.name} is {view.status.state.value}")
    if not view.instance.hardware.cdrom:
        raise Refused(f"{view.name} has no CD-ROM drive", hint="it is born with one: atoll launch --cdrom IMAGE")


async def _record(here: Here, view: InstanceView, disc: ImageView | None) -> None:
    """What is in its drive: the instance's definition and the users of both images in one commit."""
    images, holder = here.supplies.images, VolumeId(view.id)

    async def make() -> tuple[None, Txn]:
        now = await here.present(view.id)
        old, new = now.instance.cdrom, disc.image.digest if disc else Digest("")
        spec = msgspec.structs.replace(
            now.instance.spec,
            cdrom=disc.image.name if disc else "",
            boot_cdrom=bool(disc) and now.instance.spec.boot_cdrom,
        )
        key = definition(view.id)
        changed = msgspec.structs.replace(now.instance, spec=spec, cdrom=new)
        txn = Txn(expect={key: now.revision}, put={key: msgspec.json.encode(changed)})
        if old and old != new:
            txn = merge(txn, images.releasing(old, holder))
        if disc and old != new:
            fresh = await images.find(view.project, str(new))
            use = ImageUse(volume=holder, project=view.project, user=now.instance.name)
            txn = merge(txn, images.claiming(fresh, use))
        return None, txn

    await commit_afresh(here.supplies.store, make)
