"""Directories of the host in containers."""

from typing import Annotated

import msgspec
from msgspec import Meta

from atoll.api.access import MOUNT
from atoll.api.route import Call, Reply, Routes
from atoll.api.routes.guests import ONE
from atoll.instance.model import MountSpec
from atoll.instance.verbs.args import AddMountArgs, RemoveMountArgs
from atoll.operation.model import Operation

routes = Routes()
PathIn = Annotated[str, Meta(pattern="^/[^\\x00]*$", max_length=4096, description="an absolute path in the guest")]


class RemoveMountQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: PathIn


@routes.add("POST", ONE + "/mounts", action=MOUNT, answer=Operation, status=202)
async def add(call: Call, body: MountSpec) -> Reply:
    """Bring a directory of the host into a container, at once where it runs."""
    args = AddMountArgs(project=call.project, name=call.name, mount=body)
    return await call.submit(MOUNT, args)


@routes.add("DELETE", ONE + "/mounts", action="instance.mount-remove", answer=Operation, status=202)
async def remove(call: Call, query: RemoveMountQuery) -> Reply:
    """Take it out again."""
    args = RemoveMountArgs(project=call.project, name=call.name, path=query.path)
    return await call.submit("instance.mount-remove", args)
