"""Operations, history and the stream of events."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from atoll.api.access import closing
from atoll.api.route import SSE, Call, Reply, Routes, accepted, answer, streamed
from atoll.base.errors import Absent, Compacted, Invalid
from atoll.base.ids import OperationId
from atoll.client.wire import MAX_WAIT
from atoll.operation.model import News, Operation, OperationStatus, Subject

routes = Routes()
Limit = Annotated[int, Meta(ge=1, le=1000, description="entries at most")]
Name = Annotated[str, Meta(max_length=63)]
OperationName = Annotated[str, Meta(pattern="^[0-9a-f]{20}$", description="an operation's id")]
EventId = Annotated[str, Meta(pattern="^[0-9]{1,16}$", description="an event's id; 0: all that are kept")]


class OperationsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`after`: the id of the last one of the former page."""

    status: OperationStatus | None = None
    project: Name = ""
    limit: Limit = 100
    after: OperationName | None = None


class WaitQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`wait`: answer once it ended, or as it stands after that many seconds."""

    wait: Annotated[float, Meta(ge=0, le=MAX_WAIT)] = 0.0


class HistoryQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one thing where `name` is given (of `kind`; an instance where that is not), else of the whole project."""

    kind: Name = ""
    name: Name = ""
    limit: Limit = 100


class EventsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`kind`: whole (`instance.started`) or a noun with its dot (`instance.`). `since`: resume after."""

    since: EventId | None = None
    kind: tuple[Annotated[str, Meta(max_length=63)], ...] = ()
    project: Name | None = None


@routes.add("GET", "/operations", action="operation.list", answer=list[Operation])
async def list_operations(call: Call, query: OperationsQuery) -> Reply:
    """Operations, the latest first."""
    found = await call.services.operations.book.latest(
        limit=query.limit, after=query.after or "", status=query.status, project=query.project
    )
    return answer(found)


@routes.add("GET", "/operations/{id}", action="operation.read", answer=Operation)
async def get_operation(call: Call, query: WaitQuery) -> Reply:
    """One operation, or its outcome within `wait` seconds."""
    return answer(await call.services.operations.wait(OperationId(_id(call)), timeout=query.wait))


@routes.add("POST", "/operations/{id}/cancel", action="operation.cancel", answer=Operation, status=202)
async def cancel_operation(call: Call) -> Reply:
    """Ask an operation to stop and take back what it began. One that has ended stays as it is."""
    return accepted(await call.services.operations.cancel(OperationId(_id(call))))


@routes.add("GET", "/projects/{project}/history", action="operation.history", answer=list[Operation])
async def history(call: Call, query: HistoryQuery) -> Reply:
    """What was done, the latest first: the audit of one thing or of a project."""
    book = call.services.operations.book
    if query.name:
        subject = Subject(query.kind or "instance", call.project, query.name)
        return answer(await book.of(subject, limit=query.limit))
    found: list[Operation] = []
    after = ""
    while page := await book.latest(limit=query.limit, project=call.project, after=after):
        found += [each for each in page if query.kind in ("", each.subject.kind)]
        after = page[-1].id
        if len(found) >= query.limit:
            break
    return answer(found[: query.limit])


def _id(call: Call) -> str:
    id = call.names["id"]
    if len(id) != 20 or not id.isalnum():
        raise Absent(f"there is no operation {id}", hint="GET /v1/operations lists them")
    return id


@routes.add(
    "GET",
    "/events",
    action="event.follow",
    answer=News,
    media=SSE,
    headers={"Last-Event-ID": "resume after the event with this id"},
)
async def follow_events(call: Call, query: EventsQuery) -> Reply:
    """What happens, as it happens (Server-Sent Events). `event: compacted` ends a stream that fell behind."""
    last = call.request.headers.get("last-event-id", "")
    if last and not (last.isascii() and last.isdigit() and len(last) <= 16):
        raise Invalid("this is not the id of an event", field="Last-Event-ID")
    since = last or query.since  # a browser resumes by the header, at the address it began with

    def wanted(news: News) -> bool:
        if query.project is not None and news.project != query.project:
            return False
        return not query.kind or any(
            news.kind == kind or (kind.endswith(".") and news.kind.startswith(kind)) for kind in query.kind
        )

    source = aiter(call.services.events.follow(since, wanted))
    first = asyncio.ensure_future(anext(source))
    await asyncio.sleep(0)  # whether `since` is still kept is decided before the first wait
    await asyncio.sleep(0)
    if first.done() and (error := first.exception()) is not None:
        raise error
    begin = b": atoll\n\n" if since else f"id: {call.services.events.latest}\n\n".encode()
    stream = _sse(begin, source, first, closing(call.request.scope), call.services.limits.heartbeat)
    return streamed(stream, media_type=SSE)


async def _sse(
    begin: bytes, source: AsyncIterator[News], first: asyncio.Future[News], closing: asyncio.Event, heartbeat: float
) -> AsyncIterator[bytes]:
    """Until the client goes, the reader falls behind or the daemon ends. `begin`: an id to resume from."""
    coming = first
    ending = asyncio.ensure_future(closing.wait())
    try:
        yield begin
        while not closing.is_set():
            both: set[asyncio.Future[Any]] = {coming, ending}
            await asyncio.wait(both, timeout=heartbeat, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                yield encode_news(coming.result())
                coming = asyncio.ensure_future(anext(source))
            else:
                yield b": still here\n\n"
    except Compacted as error:
        yield b"event: compacted\ndata: " + msgspec.json.encode({"detail": error.message}) + b"\n\n"
    finally:
        coming.cancel()
        ending.cancel()
        await asyncio.gather(coming, ending, return_exceptions=True)
        async with aclosing(source):  # type: ignore[type-var]
            pass


def encode_news(news: News) -> bytes:
    id = b"id: " + news.id.encode() + b"\n" if news.id else b""
    return id + b"event: " + news.kind.encode() + b"\ndata: " + msgspec.json.encode(news) + b"\n\n"
