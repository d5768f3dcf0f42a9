"""Directories of the host, brought into a container that runs and taken out again by the helper."""

from msgspec.structs import replace

from atoll.instance.engines.container import hold
from atoll.instance.engines.container.guest import Guest
from atoll.instance.engines.container.helper import Attach, Detach
from atoll.instance.engines.container.launch import bind
from atoll.instance.engines.container.rundir import RunDir
from atoll.instance.engines.container.workshop import Workshop
from atoll.instance.model import BootPlan, ContainerPlan, MountSpec


def _own(guest: Guest) -> ContainerPlan:
    assert guest.plan.container is not None
    return guest.plan.container


def _remember(guest: Guest, mounts: tuple[MountSpec, ...]) -> None:
    own = _own(guest)
    container = replace(own, spec=replace(own.spec, mounts=mounts))
    guest.replan(replace(guest.plan, container=container))


async def begin(plan: BootPlan, run: RunDir, pid: int, workshop: Workshop) -> None:
    """What a container has from the beginning, into the process that is about to be its first program."""
    assert plan.container is not None
    if plan.container.spec.hold:
        mine = MountSpec(source=str(hold.place(run.path)), path=hold.FOLDER, read_only=True)
        await _attach(pid, mine, plan.container.ids, workshop)
    for mount in plan.container.spec.mounts:
        await _attach(pid, mount, plan.container.ids, workshop)


async def _attach(pid: int, mount: MountSpec, ids: int, workshop: Workshop) -> None:
    done = await workshop.do(Attach(pid=pid, owner=ids, bind=bind(mount, ids)))
    if done is not None:
        done.close()


async def add(guest: Guest, mount: MountSpec, workshop: Workshop) -> None:
    own = _own(guest)
    if any(each.path == mount.path for each in own.spec.mounts):
        return
    await _attach(guest.running(), mount, own.ids, workshop)
    _remember(guest, (*own.spec.mounts, mount))


async def remove(guest: Guest, path: str, workshop: Workshop) -> None:
    own = _own(guest)
    if all(each.path != path for each in own.spec.mounts):
        return
    done = await workshop.do(Detach(pid=guest.running(), path=path))
    if done is not None:
        done.close()
    _remember(guest, tuple(each for each in own.spec.mounts if each.path != path))
