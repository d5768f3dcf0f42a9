"""Inside an instance: programs, files, console, log, statistics, addresses. The engine does it; nothing is stored
but the audit of what changed something."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Annotated, Any, cast

import msgspec
from litestar import WebSocket
from litestar.exceptions import WebSocketDisconnect
from litestar.handlers import WebsocketRouteHandler
from msgspec import Meta

from atoll.api.access import actor_of, caller, closing, guard
from atoll.api.errors import TooLarge, status_of
from atoll.api.route import (
    BYTES,
    Call,
    Empty,
    Reply,
    Routes,
    answer,
    check_path,
    litestar_path,
    nothing,
    raw,
    read_query,
    streamed,
)
from atoll.api.services import Services
from atoll.base.errors import Absent, AtollError, Refused
from atoll.client.wire import ExecBody, Pushed
from atoll.instance.book import InstanceView
from atoll.instance.engine import Consoles, Engine, Executes, Measures, Outcome, Stats, Stream
from atoll.instance.model import State
from atoll.instance.verbs.args import ExecArgs, NamedArgs, PushArgs
from atoll.instance.verbs.power import next_step
from atoll.operation.model import Subject
from atoll.operation.runner import Request

routes = Routes()
ONE = "/projects/{project}/instances/{name}"
CONSOLE = ONE + "/console"
HOUR = 3600.0
FilePath = Annotated[
    str, Meta(pattern="^/[^\\x00]*$", max_length=4096, description="an absolute path in the guest")
]


class PullQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: FilePath


class PushQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`mode`: octal, as chmod takes it."""

    path: FilePath
    mode: Annotated[str, Meta(pattern="^[0-7]{1,4}$")] = "644"


class LogQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`limit`: the last so many bytes."""

    limit: Annotated[int, Meta(ge=1, le=1 << 20)] = 64 << 10


class ReadyQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`timeout`: seconds."""

    timeout: Annotated[float, Meta(ge=0, le=HOUR)] = 120.0


async def engine_of(services: Services, names: dict[str, str]) -> tuple[Engine | None, InstanceView]:
    """The instance and the engine that runs it here. Raises Absent."""
    view = await services.instances.get(names["project"], names["name"])
    return services.engines.get(view.instance.spec.kind), view


def lacks(view: InstanceView, what: str) -> Refused:
    return Refused(f"{view.name} is a {view.instance.spec.kind}, which has no {what} here")


@contextmanager
def asking(view: InstanceView) -> Iterator[None]:
    """An engine knows only guests that run: for others its Absent becomes Refused with the state on record."""
    try:
        yield
    except Absent as error:
        if view.status.state in (State.RUNNING, State.PAUSED):
            raise
        raise Refused(f"{view.name} is {view.status.state}", hint=next_step(view)) from error


async def agent(call: Call) -> tuple[Executes, InstanceView]:
    """What reaches into the guest, and the guest. Raises Absent, Refused."""
    engine, view = await engine_of(call.services, call.names)
    if not isinstance(engine, Executes):
        raise lacks(view, "agent")
    return engine, view


async def consoles(services: Services, names: dict[str, str]) -> tuple[Consoles, InstanceView]:
    engine, view = await engine_of(services, names)
    if not isinstance(engine, Consoles):
        raise lacks(view, "console")
    return engine, view


@routes.add("POST", ONE + "/exec", action="instance.exec", answer=Outcome)
async def execute(call: Call, body: ExecBody) -> Reply:
    """Run a program in the guest to its end. The audit keeps the program's name, not its arguments."""
    engine, guest = await agent(call)
    args = ExecArgs(project=call.project, name=call.name, program=body.argv[0])
    timeout = body.timeout or HOUR
    async with audited(call, "instance.exec", args, guest):
        return answer(await engine.execute(guest.id, body.argv, input=body.stdin, env=body.env, timeout=timeout))


@routes.add("GET", ONE + "/files", action="instance.pull", answer=bytes, media=BYTES)
async def pull(call: Call, query: PullQuery) -> Reply:
    """A file of the guest. A connection that breaks before the end says that it could not be read whole."""
    engine, guest = await agent(call)
    chunks = aiter(engine.pull(guest.id, query.path))
    with asking(guest):
        first = await anext(chunks, b"")  # what it refuses, it refuses before the answer begins

    async def whole() -> AsyncIterator[bytes]:
        yield first
        async for chunk in chunks:
            yield chunk

    return streamed(whole())


@routes.add("PUT", ONE + "/files", action="instance.push", answer=Pushed, takes=BYTES)
async def push(call: Call, query: PushQuery) -> Reply:
    """Write the body to a file in the guest."""
    engine, guest = await agent(call)
    mode = int(query.mode, 8)
    args = PushArgs(project=call.project, name=call.name, path=query.path, mode=mode)
    async with audited(call, "instance.push", args, guest):
        size = await engine.push(guest.id, query.path, _bounded(call), mode=mode)
    return answer(Pushed(path=query.path, size=size, mode=mode))


async def _bounded(call: Call) -> AsyncIterator[bytes]:
    limit, seen = call.services.limits.file, 0
    async for chunk in call.request.stream():
        seen += len(chunk)
        if seen > limit:
            raise TooLarge(
                f"the file is larger than {limit} bytes", hint="limits.file in the daemon's configuration"
            )
        if chunk:
            yield chunk


@asynccontextmanager
async def audited(call: Call, verb: str, args: msgspec.Struct, guest: InstanceView) -> AsyncIterator[None]:
    """What happens within is on record for the audit before it begins, and with its outcome after it."""
    subject = Subject("instance", call.project, call.name, guest.id)
    async with call.services.operations.audited(verb, args, subject, call.by):
        with asking(guest):
            yield


@routes.add("GET", ONE + "/log", action="instance.log", answer=bytes, media=BYTES)
async def log(call: Call, query: LogQuery) -> Reply:
    """The last bytes of the guest's serial console and its engine's log."""
    engine, guest = await consoles(call.services, call.names)
    return raw(await engine.log(guest.id, limit=query.limit), media_type=BYTES)


@routes.add("GET", ONE + "/stats", action="instance.stats", answer=Stats)
async def stats(call: Call) -> Reply:
    """Counters since the guest's start."""
    engine, view = await engine_of(call.services, call.names)
    if not isinstance(engine, Measures):
        raise lacks(view, "statistics")
    with asking(view):
        return answer(await engine.stats(view.id))


@routes.add("GET", ONE + "/addresses", action="instance.addresses", answer=dict[str, tuple[str, ...]])
async def addresses(call: Call) -> Reply:
    """The addresses that the guest itself has, by MAC."""
    engine, guest = await agent(call)
    with asking(guest):
        return answer(await engine.addresses(guest.id))


@routes.add("GET", ONE + "/ready", action="instance.ready", answer=None, status=204)
async def ready(call: Call, query: ReadyQuery) -> Reply:
    """Answers once the guest's agent does."""
    engine, guest = await agent(call)
    with asking(guest):
        await engine.ready(guest.id, timeout=query.timeout)
    return nothing()


def console_handler(services: Services) -> WebsocketRouteHandler:
    """The serial console: binary frames both ways. An error closes it with 4000 + HTTP status."""

    async def console(socket: WebSocket) -> None:  # type: ignore[type-arg]
        await socket.accept()
        stream: Stream | None = None
        code, reason = 1000, "the guest's console ended"
        try:
            check_path(socket.path_params)
            read_query(socket.scope["query_string"], Empty)
            engine, guest = await consoles(services, socket.path_params)
            async with _session(services, socket, guest):
                with asking(guest):
                    stream = await engine.console(guest.id)
                if await both_ways(socket, stream, closing(socket.scope)):
                    code, reason = 1001, "the daemon ends; the guest goes on"
        except AtollError as error:
            code, reason = 4000 + status_of(error), f"{error.code}: {error.message}"
        except WebSocketDisconnect:
            return
        finally:
            if stream is not None:
                await stream.close()
        with suppress(WebSocketDisconnect, RuntimeError):  # it may have gone meanwhile
            await socket.close(code=code, reason=reason.encode()[:120].decode(errors="ignore"))

    return WebsocketRouteHandler(litestar_path(CONSOLE), guards=[guard], opt={"action": "instance.console"})(
        console
    )


@asynccontextmanager
async def _session(
    services: Services, socket: "WebSocket[Any, Any, Any]", guest: InstanceView
) -> AsyncIterator[None]:
    """For the audit: who sat at the console, from when to when. That he leaves is how it ends."""
    subject = Subject("instance", guest.project, guest.name, guest.id)
    args = NamedArgs(project=guest.project, name=guest.name)
    by = Request(actor=actor_of(socket), id=caller(socket.scope).request_id)
    left: WebSocketDisconnect | None = None
    async with services.operations.audited("instance.console", args, subject, by):
        try:
            yield
        except WebSocketDisconnect as leaving:
            left = leaving
    if left is not None:
        raise left


async def both_ways(
    socket: "WebSocket[Any, Any, Any]",
    stream: Stream,
    closing: asyncio.Event,
    told: Callable[[str], None] | None = None,
) -> bool:
    """Until either side ends, or the daemon does (True). Raises what ended it. Text frames go to `told` where
    given, else they are typed as the others."""

    async def outward() -> None:
        while data := await stream.read():
            await socket.send_bytes(data)

    async def inward() -> None:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(detail="", code=1000)
            text = message.get("text")
            if told is not None and isinstance(text, str):
                told(text)
                continue
            data = message.get("bytes") or str(message.get("text") or "").encode()
            await stream.write(cast(bytes, data))

    tasks = [asyncio.ensure_future(each) for each in (outward(), inward(), closing.wait())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return closing.is_set()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
