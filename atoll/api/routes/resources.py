"""Images, pools and volumes of a project."""

from typing import Literal

import msgspec

from atoll.api.route import Call, Reply, Routes, answer
from atoll.base.errors import Absent, AtollError
from atoll.base.names import check_label, did_you_mean
from atoll.client.wire import BuildBody, PoolView, RenameBody
from atoll.image.args import BuildArgs, ImageArgs, PruneArgs, RenameImageArgs
from atoll.image.model import Image
from atoll.operation.model import Operation
from atoll.storage.model import Pool, Volume

routes = Routes()
IMAGES = "/projects/{project}/images"
POOLS = "/projects/{project}/pools"


class PruneQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`unused=true` must be said: there is no way to remove every image at once."""

    unused: Literal["true"]


@routes.add("GET", IMAGES, action="image.list", answer=list[Image])
async def list_images(call: Call) -> Reply:
    """Images of a project, by name."""
    return answer(list(await call.services.images.list(call.project)))


@routes.add("GET", IMAGES + "/{name}", action="image.read", answer=Image)
async def get_image(call: Call) -> Reply:
    """One image."""
    return answer(await call.services.images.get(call.project, call.name))


@routes.add("POST", IMAGES, action="image.build", answer=Operation, status=202)
async def build_image(call: Call, body: BuildBody) -> Reply:
    """Build an image from a recipe."""
    recipe = check_label(body.recipe, what="name of a recipe", field="recipe")
    known = [each.name for each in call.services.recipes]
    if recipe not in known:
        hint = did_you_mean(recipe, known) or f"there are: {', '.join(known) or 'none'}"
        raise Absent(f"there is no recipe {recipe}", hint=hint, field="recipe")
    name = check_label(body.name) if body.name is not None else recipe
    return await call.submit("image.build", BuildArgs(project=call.project, name=name, recipe=recipe), name)


@routes.add("DELETE", IMAGES, action="image.prune", answer=Operation, status=202)
async def prune_images(call: Call, query: PruneQuery) -> Reply:  # noqa: ARG001
    """Remove what no name and no instance uses."""
    return await call.submit("image.prune", PruneArgs(project=call.project), "")


@routes.add("DELETE", IMAGES + "/{name}", action="image.delete", answer=Operation, status=202)
async def delete_image(call: Call) -> Reply:
    """Remove an image's name, and its content with the last use of it."""
    return await call.submit("image.delete", ImageArgs(project=call.project, name=call.name))


@routes.add("POST", IMAGES + "/{name}/rename", action="image.rename", answer=Operation, status=202)
async def rename_image(call: Call, body: RenameBody) -> Reply:
    """Give an image another name."""
    to = check_label(body.to, field="to")
    return await call.submit("image.rename", RenameImageArgs(project=call.project, name=call.name, to=to))


@routes.add("GET", POOLS, action="pool.list", answer=list[PoolView])
async def list_pools(call: Call) -> Reply:
    """Pools of a project with their capacity."""
    return answer([await _pool(call, each) for each in await call.services.pools.list(call.project)])


@routes.add("GET", POOLS + "/{name}", action="pool.read", answer=PoolView)
async def get_pool(call: Call) -> Reply:
    """One pool with its capacity."""
    return answer(await _pool(call, await call.services.pools.get(call.project, call.name)))


async def _pool(call: Call, pool: Pool) -> PoolView:
    try:
        capacity = await call.services.pools.capacity(pool)
    except AtollError:  # a pool out of reach is still listed
        capacity = None
    return PoolView(pool=pool, capacity=capacity)


@routes.add("GET", "/projects/{project}/volumes", action="volume.list", answer=list[Volume])
async def list_volumes(call: Call) -> Reply:
    """Volumes of a project, in whichever pool."""
    return answer(list(await call.services.pools.volumes(call.project)))
