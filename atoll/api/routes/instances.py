"""Instances: their records, and what is done with the whole of one."""

import re
from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from atoll.api.access import MOUNT, PRIVILEGE, actor_of, may
from atoll.api.encoding import Arrays, Pieces, list_tag
from atoll.api.errors import Stale
from atoll.api.route import Call, Reply, Routes, raw
from atoll.base.errors import Invalid
from atoll.base.names import check_label, make_up
from atoll.client.wire import LaunchBody, RenameBody, RestartBody, StopBody
from atoll.instance.book import InstanceView
from atoll.instance.model import ContainerSpec, State
from atoll.instance.verbs.args import Changes, DeleteArgs, LaunchArgs, NamedArgs, RenameArgs, SetArgs, StopArgs
from atoll.operation.model import Operation, Subject

routes = Routes()
BASE = "/projects/{project}/instances"
ONE = BASE + "/{name}"
IF_MATCH = {"If-Match": "the ETag of the definition as you read it: refused with 412 where it changed since"}
_TAG = re.compile(r'"?([0-9]{1,18})"?')
_arrays = Arrays()


class InstancesQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`label`: `key=value`, all of them; `state`: any of them. Both repeatable."""

    label: tuple[Annotated[str, Meta(pattern="^[^=]+=", max_length=400)], ...] = ()
    state: tuple[State, ...] = ()


class DeleteQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`force`: also while it runs."""

    force: bool = False


@routes.add("GET", BASE, action="instance.list", answer=list[InstanceView], headers={"If-None-Match": "an ETag"})
async def list_instances(call: Call, query: InstancesQuery) -> Reply:
    """Instances of a project, by name."""
    return await _listed(call, query, call.project)


@routes.add(
    "GET", "/instances", action="instance.list-all", answer=list[InstanceView], headers={"If-None-Match": "an ETag"}
)
async def list_all_instances(call: Call, query: InstancesQuery) -> Reply:
    """Instances of every project, by project and name."""
    return await _listed(call, query, None)


async def _listed(call: Call, query: InstancesQuery, project: str | None) -> Reply:
    views = await call.services.instances.list(project)
    if query.label:
        labels = [tuple(label.split("=", 1)) for label in query.label]
        views = [view for view in views if all(view.instance.spec.labels.get(k) == v for k, v in labels)]
    if query.state:
        views = [view for view in views if view.status.state in query.state]
    tag = list_tag(views)
    if call.request.headers.get("if-none-match") == tag:
        return raw(b"", status=304, headers={"ETag": tag})
    whole = not query.label and not query.state
    pieces = _arrays.encode(project or "", views) if whole else [msgspec.json.encode(views)]
    return Pieces(pieces, {"ETag": tag})


@routes.add("GET", ONE, action="instance.read", answer=InstanceView)
async def get_instance(call: Call) -> Reply:
    """One instance. ETag: the revision of its definition."""
    view = await call.services.instances.get(call.project, call.name)
    return raw(msgspec.json.encode(view), headers={"ETag": f'"{view.revision}"'})


@routes.add("POST", BASE, action="instance.launch", answer=Operation, status=202)
async def launch(call: Call, body: LaunchBody) -> Reply:
    """Create an instance and start it. The operation's subject has its name."""
    if body.name is None:
        taken = [view.name for view in await call.services.instances.list(call.project)]
        name = make_up(taken)
    else:
        name = check_label(body.name)
    for action in _rights(body.spec.container):
        may(actor_of(call.request), action, Subject("instance", call.project, name))
    seed = await call.services.seeds.put(call.project, body.cloud_init) if body.cloud_init else ""
    args = LaunchArgs(
        project=call.project, name=name, spec=body.spec, start=body.start, seed=seed, volumes=body.volumes
    )
    return await call.submit("instance.launch", args, name)


def _rights(container: ContainerSpec) -> Iterator[str]:
    """What a launch takes beside itself, for what is the host's own."""
    if container.mounts:
        yield MOUNT
    if container.privileged:
        yield PRIVILEGE


@routes.add("PATCH", ONE, action="instance.set", answer=Operation, status=202, headers=IF_MATCH)
async def change(call: Call, body: Changes) -> Reply:
    """Change settings: what is not given stays."""
    revision = 0
    if (tag := call.request.headers.get("if-match")) is not None and tag != "*":
        found = _TAG.fullmatch(tag)
        if found is None:
            raise Invalid("this is not the ETag of an instance", field="If-Match")
        revision = int(found.group(1))

    async def fresh() -> None:
        view = await call.services.instances.get(call.project, call.name)
        if revision and revision < view.revision:
            raise Stale(f"{call.name} was changed since you read it", hint="read it again, then change it")

    args = SetArgs(project=call.project, name=call.name, changes=body, revision=revision)
    return await call.submit("instance.set", args, first=fresh if revision else None)


@routes.add("DELETE", ONE, action="instance.delete", answer=Operation, status=202)
async def delete(call: Call, query: DeleteQuery) -> Reply:
    """Remove an instance with its disks."""
    args = DeleteArgs(project=call.project, name=call.name, force=query.force)
    return await call.submit("instance.delete", args)


@routes.add("POST", ONE + "/start", action="instance.start", answer=Operation, status=202)
async def start(call: Call) -> Reply:
    """Start an instance."""
    return await call.submit("instance.start", NamedArgs(project=call.project, name=call.name))


@routes.add("POST", ONE + "/stop", action="instance.stop", answer=Operation, status=202)
async def stop(call: Call, body: StopBody) -> Reply:
    """Shut an instance down, by force after `grace` seconds."""
    args = StopArgs(project=call.project, name=call.name, grace=body.grace, keep_wanted=body.keep_wanted)
    return await call.submit("instance.stop", args)


@routes.add("POST", ONE + "/restart", action="instance.restart", answer=Operation, status=202)
async def restart(call: Call, body: RestartBody) -> Reply:
    """Shut an instance down and start it again."""
    args = StopArgs(project=call.project, name=call.name, grace=body.grace)
    return await call.submit("instance.restart", args)


@routes.add("POST", ONE + "/pause", action="instance.pause", answer=Operation, status=202)
async def pause(call: Call) -> Reply:
    """Halt an instance's CPUs."""
    return await call.submit("instance.pause", NamedArgs(project=call.project, name=call.name))


@routes.add("POST", ONE + "/resume", action="instance.resume", answer=Operation, status=202)
async def resume(call: Call) -> Reply:
    """Let a paused instance go on."""
    return await call.submit("instance.resume", NamedArgs(project=call.project, name=call.name))


@routes.add("POST", ONE + "/rename", action="instance.rename", answer=Operation, status=202)
async def rename(call: Call, body: RenameBody) -> Reply:
    """Give an instance another name."""
    args = RenameArgs(project=call.project, name=call.name, to=check_label(body.to, field="to"))
    return await call.submit("instance.rename", args)
