"""Pools and volumes of a project."""

from collections.abc import Iterable, Mapping

import msgspec

from atoll.api.route import Call, Reply, Routes, answer
from atoll.base.names import check_label
from atoll.client.wire import (
    AttachBody,
    DetachBody,
    GrowBody,
    PoolBody,
    PoolView,
    RenameBody,
    VolumeBody,
    VolumeView,
)
from atoll.instance.book import InstanceView
from atoll.instance.verbs.args import AttachVolumeArgs
from atoll.operation.model import Operation
from atoll.storage.args import (
    CreatePoolArgs,
    CreateVolumeArgs,
    GrowVolumeArgs,
    PoolArgs,
    RenameVolumeArgs,
    VolumeArgs,
)
from atoll.storage.model import Pool, Volume, VolumeAttachment

routes = Routes()
POOLS = "/projects/{project}/pools"
POOL = POOLS + "/{name}"
VOLUMES = "/projects/{project}/volumes"
VOLUME = VOLUMES + "/{name}"


class ForceQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`force`: of a pool, also where this host cannot reach it."""

    force: bool = False


@routes.add("GET", POOLS, action="pool.list", answer=list[PoolView])
async def list_pools(call: Call) -> Reply:
    """Pools that a project may use, with their capacity."""
    volumes = await call.services.pools.all_volumes()
    return answer([await _pool(call, each, volumes) for each in await call.services.pools.list(call.project)])


@routes.add("GET", POOL, action="pool.read", answer=PoolView)
async def get_pool(call: Call) -> Reply:
    """One pool with its capacity."""
    pool = await call.services.pools.get(call.project, call.name)
    return answer(await _pool(call, pool, await call.services.pools.all_volumes()))


@routes.add("POST", POOLS, action="pool.create", answer=Operation, status=202)
async def create_pool(call: Call, body: PoolBody) -> Reply:
    """Make a directory of this host a pool. It needs the right to administer the host."""
    name = check_label(body.name)
    args = CreatePoolArgs(
        project=call.project, name=name, driver=body.driver, path=body.path, description=body.description
    )
    return await call.submit("pool.create", args, name)


@routes.add("DELETE", POOL, action="pool.delete", answer=Operation, status=202)
async def delete_pool(call: Call, query: ForceQuery) -> Reply:
    """Remove a pool without volumes; its directory stays."""
    return await call.submit("pool.delete", PoolArgs(project=call.project, name=call.name, force=query.force))


async def _pool(call: Call, pool: Pool, volumes: Iterable[Volume]) -> PoolView:
    """A pool out of reach is still listed."""
    health = await call.services.pools.health(pool)
    mine = [volume for volume in volumes if volume.pool == pool.id]
    return PoolView(
        pool=pool,
        capacity=health.capacity,
        state="unavailable" if health.capacity is None and pool.state == "ready" else str(pool.state),
        reason=health.reason,
        path=str(await call.services.pools.place(pool)),
        filled=call.services.pools.filled(health),
        volumes=len(mine),
        provisioned=sum(volume.size for volume in mine),
    )


@routes.add("GET", VOLUMES, action="volume.list", answer=list[VolumeView])
async def list_volumes(call: Call) -> Reply:
    """Volumes of a project, in whichever pool."""
    pools = {str(pool.id): pool.name for pool in await call.services.pools.all()}
    held, users = await call.services.pools.attachments(), await _users(call)
    found = [
        await _volume(call, volume, pools, held.get(volume.id), users)
        for volume in await call.services.pools.volumes(call.project)
    ]
    return answer(sorted(found, key=lambda view: view.volume.name))


@routes.add("GET", VOLUME, action="volume.read", answer=VolumeView)
async def get_volume(call: Call) -> Reply:
    """One volume, by name or id."""
    view = await call.services.pools.volume(call.project, call.name)
    pools = {str(pool.id): pool.name for pool in await call.services.pools.all()}
    return answer(await _volume(call, view.volume, pools, view.held, await _users(call)))


async def _users(call: Call) -> dict[str, InstanceView]:
    return {view.id: view for view in await call.services.instances.list(call.project)}


async def _volume(
    call: Call,
    volume: Volume,
    pools: Mapping[str, str],
    held: VolumeAttachment | None,
    users: Mapping[str, InstanceView],
) -> VolumeView:
    user = users.get(held.instance) if held else None
    disk = next((d for d in user.instance.hardware.disks if d.volume == volume.id), None) if user else None
    return VolumeView(
        volume=volume,
        pool=pools.get(volume.pool, ""),
        usage=await call.services.pools.usage(volume),
        instance=user.name if user else "",
        held=held,
        disk=disk,
    )


@routes.add("POST", VOLUMES, action="volume.create", answer=Operation, status=202)
async def create_volume(call: Call, body: VolumeBody) -> Reply:
    """Make an empty volume."""
    name = check_label(body.name)
    args = CreateVolumeArgs(project=call.project, name=name, size=body.size, pool=body.pool, format=body.format)
    return await call.submit("volume.create", args, name)


@routes.add("DELETE", VOLUME, action="volume.delete", answer=Operation, status=202)
async def delete_volume(call: Call) -> Reply:
    """Remove a volume that no instance has, with all that is on it."""
    return await call.submit("volume.delete", VolumeArgs(project=call.project, name=call.name))


@routes.add("POST", VOLUME + "/attach", action="volume.attach", answer=Operation, status=202)
async def attach_volume(call: Call, body: AttachBody) -> Reply:
    """Give a volume to an instance: at once where it runs."""
    args = AttachVolumeArgs(
        project=call.project, name=call.name, instance=body.instance, bus=body.bus, cache=body.cache
    )
    return await call.submit("volume.attach", args)


@routes.add("POST", VOLUME + "/detach", action="volume.detach", answer=Operation, status=202)
async def detach_volume(call: Call, body: DetachBody) -> Reply:
    """Take a volume from its instance: a guest that runs lets go of it first."""
    return await call.submit("volume.detach", VolumeArgs(project=call.project, name=call.name, force=body.force))


@routes.add("POST", VOLUME + "/grow", action="volume.grow", answer=Operation, status=202)
async def grow_volume(call: Call, body: GrowBody) -> Reply:
    """Make a volume larger, also while a guest uses it."""
    return await call.submit("volume.grow", GrowVolumeArgs(project=call.project, name=call.name, size=body.size))


@routes.add("POST", VOLUME + "/rename", action="volume.rename", answer=Operation, status=202)
async def rename_volume(call: Call, body: RenameBody) -> Reply:
    """Give a volume another name."""
    to = check_label(body.to, field="to")
    return await call.submit("volume.rename", RenameVolumeArgs(project=call.project, name=call.name, to=to))
