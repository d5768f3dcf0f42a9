"""Whole instances leave and come: an export is fetched while its operation runs, an import is a request's body."""

import msgspec
from litestar.response import Stream

from atoll.api.bodies import fingerprinted, patient
from atoll.api.route import BYTES, Call, Reply, Routes, accepted
from atoll.client.wire import ExportBody
from atoll.instance.verbs.args import ExportArgs, Fitting, ImportInstanceArgs
from atoll.operation.model import Operation, Subject

routes = Routes()
ONE = "/projects/{project}/instances/{name}"


@routes.add("POST", ONE + "/export", action="instance.export", answer=Operation, status=202)
async def export(call: Call, body: ExportBody) -> Reply:
    """Make one file of an instance that stands still. The operation ends once the file was fetched."""
    args = ExportArgs(project=call.project, name=call.name, compress=body.compress, volumes=body.volumes)
    return await call.submit("instance.export", args)


@routes.add("GET", "/projects/{project}/exports/{id}", action="export.fetch", answer=bytes, media=BYTES)
async def fetch(call: Call) -> Reply:
    """The file that an export makes, once: `id` is its operation. The answer begins when all is copied."""
    sending = await call.services.parcels.fetch(call.project, call.names["id"])
    headers = {"Content-Length": str(sending.length), "Cache-Control": "no-store"}
    return Stream(sending.chunks, media_type=BYTES, headers=headers)


@routes.add(
    "POST", "/projects/{project}/imports", action="instance.import", answer=Operation, status=202, takes=BYTES
)
async def import_(call: Call, query: Fitting) -> Reply:
    """Make an instance of the file that the body is. The operation's subject has its name."""
    by, parcels = call.by, call.services.parcels
    received = await parcels.receive(call.project, patient(call), query)
    given = received.parcel.cloud_init
    seed = ""
    try:
        seed = await call.services.seeds.put(call.project, given) if given else ""
        name = query.name or received.parcel.name
        args = ImportInstanceArgs(project=call.project, name=name, upload=received.upload, fitting=query, seed=seed)
        by = fingerprinted(call, by, msgspec.json.encode(received.parcel).decode())
        subject = Subject("instance", call.project, name)
        operation = await call.services.operations.submit("instance.import", args, subject, by)
    except BaseException:
        parcels.drop(received)
        await call.services.seeds.forget(seed)
        raise
    if msgspec.json.decode(operation.request, type=ImportInstanceArgs).upload != received.upload:
        parcels.drop(received)  # sent twice: the first one is at work
        await call.services.seeds.forget(seed)
    return accepted(operation)
