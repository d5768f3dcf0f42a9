"""Directories of the host in a container, attached and detached while it runs: what a host administrator may."""

import posixpath
from collections.abc import Mapping
from typing import ClassVar

from msgspec.structs import replace

from atoll.base.errors import Absent, Exists, Refused
from atoll.instance.book import InstanceView
from atoll.instance.engine import Mounts
from atoll.instance.here import ALIVE, Here
from atoll.instance.kinds import check_kind
from atoll.instance.model import Instance, Kind, MountSpec, State
from atoll.instance.verbs.args import AddMountArgs, RemoveMountArgs
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery, Undoer, UndoStep

MOST = 32


def able(here: Here, view: InstanceView) -> Mounts:
    engine = here.engine(view)
    if not isinstance(engine, Mounts) or view.instance.spec.kind is not Kind.CONTAINER:
        raise Refused(
            f"{view.name} is a {view.instance.spec.kind}, which takes no directory of its host",
            hint="volumes do that",
        )
    if view.status.state is State.GONE:
        raise Refused(f"{view.name} is being deleted")
    return engine


def mounts_of(instance: Instance) -> tuple[MountSpec, ...]:
    return instance.spec.container.mounts


def with_mounts(instance: Instance, mounts: tuple[MountSpec, ...]) -> Instance:
    container = replace(instance.spec.container, mounts=mounts)
    return replace(instance, spec=replace(instance.spec, container=container))


def plain(mount: MountSpec) -> MountSpec:
    return replace(mount, source=posixpath.normpath(mount.source), path=posixpath.normpath(mount.path))


class AddMount:
    name = "instance.mount-add"
    args = AddMountArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"write": Recovery.TAKE_BACK, "attach": Recovery.TAKE_BACK}

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: AddMountArgs) -> None:
        here, mount = self._here, plain(args.mount)
        view = await here.named(work, args.project, args.name)
        engine = able(here, view)

        async def change(view: InstanceView) -> Instance:
            there = mounts_of(view.instance)
            if any(each.path == mount.path for each in there):
                raise Exists(f"{view.name} has something on {mount.path} already", field="path")
            if len(there) >= MOST:
                raise Refused(f"{view.name} has {MOST} mounts, which is the most")
            wanted = with_mounts(view.instance, (*there, mount))
            check_kind(wanted.spec)
            return wanted

        await change(view)
        await work.step("write", UndoStep("mount.remove", {"id": view.id, "path": mount.path}), percent=20)
        view = await here.define(work, view, change)
        await work.step("attach", percent=60)
        if view.status.state in ALIVE:
            await engine.add_mount(view.id, mount)


class RemoveMount:
    name = "instance.mount-remove"
    args = RemoveMountArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"detach": Recovery.FINISH}

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: RemoveMountArgs) -> None:
        view = await self._here.named(work, args.project, args.name)
        path = posixpath.normpath(args.path)
        able(self._here, view)
        if not work.resumed and all(each.path != path for each in mounts_of(view.instance)):
            known = ", ".join(each.path for each in mounts_of(view.instance)) or "none"
            raise Absent(f"{view.name} has nothing mounted on {path}", hint=f"its mounts: {known}", field="path")
        await work.step("detach", percent=20)
        await remove(self._here, view, path, work)


async def remove(here: Here, view: InstanceView, path: str, work: RunningWork | None) -> None:
    """Out of the container, then off the record. Absent is success. Raises Refused (it is in use)."""
    if view.status.state in ALIVE:
        await able(here, view).remove_mount(view.id, path)

    async def change(view: InstanceView) -> Instance:
        left = tuple(each for each in mounts_of(view.instance) if each.path != path)
        return with_mounts(view.instance, left)

    if work is not None:
        await here.define(work, view, change)
        return
    wanted = await change(view)
    if wanted != view.instance:
        await here.book.write_definition(view, wanted)


def mount_undoers(here: Here) -> dict[str, Undoer]:
    async def take_out(args: Mapping[str, str]) -> None:
        view = await here.book.by_id(args["id"])
        if view is not None and view.status.state is not State.GONE:
            await remove(here, view, args["path"], None)

    return {"mount.remove": take_out}
