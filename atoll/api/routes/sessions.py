"""Programs in an instance that somebody talks to while they run: a terminal, pipes, signals, over a WebSocket.

The client's first frame is text: a Command. Then its binary frames are typed, and text frames are a Word. The
server's binary frames begin with a byte, 1 for output and 2 for errors; its last frame is text: an Ended.
"""

import asyncio
from contextlib import suppress
from typing import Annotated, Any, cast

import msgspec
from litestar import WebSocket
from litestar.exceptions import WebSocketDisconnect
from litestar.handlers import WebsocketRouteHandler
from msgspec import Meta

from atoll.api.access import actor_of, caller, closing, guard
from atoll.api.errors import status_of
from atoll.api.held import Held
from atoll.api.route import Empty, check_path, litestar_path, read_query
from atoll.api.routes.guests import ONE, asking, engine_of, lacks
from atoll.api.services import Services
from atoll.base.errors import AtollError, Invalid, Unreachable
from atoll.instance.engine import Command, Opens, Session, Side
from atoll.instance.verbs.args import ExecArgs
from atoll.operation.model import Subject
from atoll.operation.runner import Request

SESSION = ONE + "/session"
_FIRST_IN = 30.0
"""Seconds for the client to say what it wants."""


class Word(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new size of the terminal, a signal to the program, or the end of its input."""

    columns: Side | None = None
    rows: Side | None = None
    signal: Annotated[int, Meta(ge=1, le=64)] | None = None
    eof: bool = False


def session_handler(services: Services) -> WebsocketRouteHandler:
    """An error closes it with 4000 + HTTP status."""
    held = Held(services)

    async def session(socket: WebSocket) -> None:  # type: ignore[type-arg]
        await socket.accept()
        code, reason = 1000, "the program ended"
        try:
            check_path(socket.path_params)
            read_query(socket.scope["query_string"], Empty)
            engine, view = await engine_of(services, socket.path_params)
            if not isinstance(engine, Opens):
                raise lacks(view, "sessions")
            command = await _command(socket)
            args = ExecArgs(project=view.project, name=view.name, program=command.argv[0])
            by = Request(actor=actor_of(socket), id=caller(socket.scope).request_id)
            subject = Subject("instance", view.project, view.name, view.id)
            async with held.by_session(view, by), services.operations.audited("instance.exec", args, subject, by):
                with asking(view):
                    opened = await engine.open(view.id, command)
                if await _both_ways(socket, opened, closing(socket.scope)):
                    code, reason = 1001, "the daemon ends"
        except AtollError as error:
            code, reason = 4000 + status_of(error), f"{error.code}: {error.message}"
        except WebSocketDisconnect:
            return
        with suppress(WebSocketDisconnect, RuntimeError):
            await socket.close(code=code, reason=reason.encode()[:120].decode(errors="ignore"))

    return WebsocketRouteHandler(litestar_path(SESSION), guards=[guard], opt={"action": "instance.exec"})(session)


async def _command(socket: "WebSocket[Any, Any, Any]") -> Command:
    try:
        async with asyncio.timeout(_FIRST_IN):
            message = await socket.receive()
    except TimeoutError as error:
        raise Invalid("what shall run was not said in time") from error
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(detail="", code=1000)
    try:
        return msgspec.json.decode(cast(str, message.get("text") or ""), type=Command)
    except msgspec.MsgspecError as error:
        raise Invalid(f"that is no command: {error}") from error


async def _both_ways(socket: "WebSocket[Any, Any, Any]", session: Session, closing: asyncio.Event) -> bool:
    """Until the program ends, its user leaves (it is ended then), or the daemon does (True)."""

    async def outward() -> None:
        while True:
            fd, data = await session.read()
            if not data:
                break
            await socket.send_bytes(bytes([fd]) + data)
        await socket.send_text(msgspec.json.encode(await session.ended()).decode())

    tasks = [asyncio.ensure_future(each) for each in (outward(), _inward(socket, session), closing.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks[:2]:
            if task.done():
                task.result()
        return closing.is_set()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await session.close()


async def _inward(socket: "WebSocket[Any, Any, Any]", session: Session) -> None:
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(detail="", code=1000)
        text = message.get("text")
        try:
            if isinstance(text, str):
                await _heed(session, msgspec.json.decode(text, type=Word))
            else:
                await session.write(cast(bytes, message.get("bytes") or b""))
        except Unreachable:  # it reads no more; what it says still counts
            continue
        except msgspec.MsgspecError as error:
            raise Invalid(f"that is no word: {error}") from error


async def _heed(session: Session, word: Word) -> None:
    if word.columns and word.rows:
        session.resize(word.columns, word.rows)
    if word.signal:
        session.signal(word.signal)
    if word.eof:
        await session.eof()
