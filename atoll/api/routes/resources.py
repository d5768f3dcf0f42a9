"""Images of a project."""

from typing import Literal

import msgspec

from atoll.api.route import Call, Reply, Routes, answer
from atoll.base.errors import Absent
from atoll.base.names import check_label, did_you_mean, image_name
from atoll.client.wire import BuildBody, RenameBody
from atoll.image.args import BuildArgs, ImageArgs, PruneArgs, RenameImageArgs
from atoll.image.model import Image
from atoll.operation.model import Operation

routes = Routes()
IMAGES = "/projects/{project}/images"


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
    recipe = body.recipe
    known = [each.name for each in call.services.recipes]
    if recipe not in known:
        hint = did_you_mean(recipe, known) or f"there are: {', '.join(known) or 'none'}"
        raise Absent(f"there is no recipe {recipe}", hint=hint, field="recipe")
    name = check_label(body.name) if body.name is not None else image_name(recipe)
    args = BuildArgs(project=call.project, name=name, recipe=recipe, refresh=body.refresh)
    return await call.submit("image.build", args, name)


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
