"""The acts that take instance verbs back, by the names the journal knows them under. Absent is success."""

from collections.abc import Mapping

from atoll.instance.here import Here
from atoll.operation.verb import Undoer


def undoers(here: Here) -> dict[str, Undoer]:
    async def settle(args: Mapping[str, str]) -> None:
        await here.settle(args["id"])

    async def forget(args: Mapping[str, str]) -> None:
        """Its records and what they hold: name, volumes, addresses, image reference, uid."""
        view = await here.book.by_id(args["id"])
        if view is not None:
            await here.supplies.release(view, here.book.releasing(view))
            if here.uids:
                await here.uids.release(view.id)
            here.tell_of(view, "instance.deleted")

    async def end_guest(args: Mapping[str, str]) -> None:
        view = await here.book.by_id(args["id"])
        if view is not None:
            await here.engine(view).stop(view.id, grace=0)
            await here.engine(view).forget(view.id)

    async def unplug(args: Mapping[str, str]) -> None:
        await here.supplies.unplug_port(args["network"], args["port"])

    async def delete_volume(args: Mapping[str, str]) -> None:
        await here.supplies.delete_volume(args["project"], args["pool"], args["volume"])

    return {
        "instance.settle": settle,
        "instance.forget": forget,
        "guest.end": end_guest,
        "port.unplug": unplug,
        "volume.delete": delete_volume,
    }
