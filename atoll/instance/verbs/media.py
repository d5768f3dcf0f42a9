"""eject: the CD leaves the drive, at once where the guest runs, and its image is free again."""

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from atoll.base.errors import Refused
from atoll.base.ids import Digest, VolumeId
from atoll.instance.book import definition
from atoll.instance.engine import Ejects
from atoll.instance.here import ALIVE, Here
from atoll.instance.model import State
from atoll.instance.verbs.args import NamedArgs
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery
from atoll.store.api import Txn
from atoll.store.txn import commit_afresh, merge


class Eject:
    name = "instance.eject"
    args = NamedArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"eject": Recovery.FINISH}

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: NamedArgs) -> None:
        view = await self._here.named(work, args.project, args.name)
        if view.status.state is State.GONE:
            raise Refused(f"{view.name} is being deleted")
        if not view.instance.hardware.cdrom:
            raise Refused(
                f"{view.name} has no CD-ROM drive", hint="it is born with one: atoll launch --cdrom IMAGE"
            )
        if not view.instance.cdrom:
            return
        await work.step("eject", percent=20)
        engine = self._here.engine(view)
        if view.status.state in ALIVE and isinstance(engine, Ejects):
            await engine.eject(view.id)
        before, digest = view.revision, view.instance.cdrom

        async def make() -> tuple[None, Txn]:
            now = await self._here.present(view.id)
            spec = msgspec.structs.replace(now.instance.spec, cdrom="", boot_cdrom=False)
            empty = msgspec.structs.replace(now.instance, spec=spec, cdrom=Digest(""))
            key = definition(view.id)
            own = Txn(expect={key: now.revision}, put={key: msgspec.json.encode(empty)})
            return None, merge(own, self._here.supplies.images.releasing(digest, VolumeId(view.id)))

        await commit_afresh(self._here.supplies.store, make)
        work.changed(definition(view.id), before, (await self._here.present(view.id)).revision)
