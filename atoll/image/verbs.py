"""build, delete, rename, prune: the image verbs as operations."""

from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar

from atoll.base.errors import Absent
from atoll.image.args import BuildArgs, ImageArgs, PruneArgs, RenameImageArgs
from atoll.image.library import Library
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery, Undoer, UndoStep

TAKE_BACK, FINISH = Recovery.TAKE_BACK, Recovery.FINISH


class Build:
    """Run a recipe and keep what it made under a name. `built` is called after that: there is a new kernel.

    Killed while it kept it, the next daemon builds once more: equal content is the same image.
    """

    name = "image.build"
    args = BuildArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"build": TAKE_BACK, "keep": FINISH}

    def __init__(self, library: Library, built: Callable[[], Awaitable[None]]) -> None:
        self._library, self._built = library, built

    async def run(self, work: RunningWork, args: BuildArgs) -> dict[str, str]:
        self._library.recipe(args.recipe)

        def progress(text: str, percent: int | None) -> None:
            work.tell(percent, text)

        if work.resumed:
            await self._library.clear(work.id)
        else:
            await work.step("build", UndoStep("image.clear", {"key": work.id}), percent=0)
        made = await self._library.build(args.recipe, work.id, progress, refresh=args.refresh)
        await work.step("keep", percent=95)
        image = await self._library.add_built(args.project, args.name, made)
        await self._library.clear(work.id)
        work.about(name=image.name, id=image.digest)
        await self._built()
        return {"name": image.name, "digest": image.digest}


class DeleteImage:
    name = "image.delete"
    args = ImageArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"delete": FINISH}

    def __init__(self, library: Library) -> None:
        self._library = library

    async def run(self, work: RunningWork, args: ImageArgs) -> dict[str, int]:
        await work.step("delete")
        try:
            pruned = await self._library.delete(args.project, args.name)
        except Absent:
            if not work.resumed:
                raise
            pruned = await self._library.prune()
        return {"freed": pruned.freed}


class RenameImage:
    name = "image.rename"
    args = RenameImageArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"rename": FINISH}

    def __init__(self, library: Library) -> None:
        self._library = library

    async def run(self, work: RunningWork, args: RenameImageArgs) -> None:
        await work.step("rename")
        try:
            await self._library.rename(args.project, args.name, args.to)
        except Absent:
            if not work.resumed:
                raise
            await self._library.get(args.project, args.to)


class PruneImages:
    name = "image.prune"
    args = PruneArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"prune": FINISH}

    def __init__(self, library: Library) -> None:
        self._library = library

    async def run(self, work: RunningWork, args: PruneArgs) -> dict[str, int]:  # noqa: ARG002 - content has no project
        await work.step("prune")
        pruned = await self._library.prune()
        return {"manifests": len(pruned.manifests), "blobs": len(pruned.blobs), "freed": pruned.freed}


def image_undoers(library: Library) -> dict[str, Undoer]:
    async def clear(args: Mapping[str, str]) -> None:
        await library.clear(args["key"])

    return {"image.clear": clear}
