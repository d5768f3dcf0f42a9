"""The acts that take instance verbs back, by the names the journal knows them under. Absent is success."""

from collections.abc import Mapping

from atoll.base.errors import AtollError
from atoll.base.ids import VolumeId
from atoll.instance.here import Here
from atoll.instance.model import State
from atoll.instance.verbs import disks
from atoll.instance.verbs.mount import mount_undoers
from atoll.instance.verbs.nic import nic_undoers
from atoll.operation.verb import Undoer


def undoers(here: Here) -> dict[str, Undoer]:
    async def settle(args: Mapping[str, str]) -> None:
        await here.settle(args["id"], args["operation"])

    async def forget(args: Mapping[str, str]) -> None:
        view = await here.book.by_id(args["id"])
        if view is None:
            return
        try:
            await here.remove(view)  # whatever an undo before this one could not
        except AtollError as error:
            await here.seen(view.id, State.BROKEN, reason=f"its launch could not be taken back: {error.message}")
            raise

    async def forget_own(args: Mapping[str, str]) -> None:
        """Of an id that another operation may have been faster to take."""
        view = await here.book.by_id(args["id"])
        if view is not None and view.status.operation == args["operation"]:
            await forget(args)

    async def end_guest(args: Mapping[str, str]) -> None:
        view = await here.book.by_id(args["id"])
        if view is None:
            return
        seen = (await here.engine(view).observe()).get(view.id)
        if seen is not None and str(seen.generation) == args["generation"]:
            await here.engine(view).stop(view.id, grace=0)
            await here.engine(view).forget(view.id)

    async def unplug(args: Mapping[str, str]) -> None:
        await here.supplies.unplug_port(args["network"], args["port"])

    async def delete_volume(args: Mapping[str, str]) -> None:
        await here.supplies.delete_volume(args["project"], args["pool"], args["volume"])

    async def forget_seed(args: Mapping[str, str]) -> None:
        await here.supplies.boots.seeds.forget(args["id"])

    async def let_go(args: Mapping[str, str]) -> None:
        await disks.let_go(here, args["instance"], VolumeId(args["volume"]))

    return {
        "seed.forget": forget_seed,
        "volume.let-go": let_go,
        "instance.settle": settle,
        "instance.forget": forget,
        "instance.forget-own": forget_own,
        "guest.end": end_guest,
        "port.unplug": unplug,
        "volume.delete": delete_volume,
        **nic_undoers(here),
        **mount_undoers(here),
    }
