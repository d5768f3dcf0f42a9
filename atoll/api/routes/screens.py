"""Beside the whole of an instance: its screen, its cloud-init, its CD-ROM drive, a login over the network."""

from contextlib import suppress
from typing import Annotated, Any, cast

import msgspec
from litestar import WebSocket
from litestar.exceptions import WebSocketDisconnect
from litestar.handlers import WebsocketRouteHandler
from msgspec import Meta

from atoll.api.access import closing, guard
from atoll.api.errors import status_of
from atoll.api.route import BYTES, Call, Reply, Routes, answer, check_path, litestar_path, raw, read_query
from atoll.api.routes.guests import ONE, agent, asking, both_ways, engine_of, lacks
from atoll.api.services import Services, Shell
from atoll.base.errors import AtollError
from atoll.client.wire import InsertBody, Screen
from atoll.instance.cloudstate import CloudState, cloud_state
from atoll.instance.engine import Displays, Opens, Session
from atoll.instance.verbs.args import InsertArgs, NamedArgs
from atoll.operation.model import Operation

routes = Routes()
SHELL = ONE + "/shell"
Side = Annotated[int, Meta(ge=1, le=1000)]


class ShellQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`columns`, `rows`: of the terminal. `user`: who logs in."""

    user: Annotated[str, Meta(pattern="^[a-z_][a-z0-9_.-]{0,31}$")] = "root"
    columns: Side = 80
    rows: Side = 24


class Resize(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text frame: the terminal has another size now."""

    columns: Side
    rows: Side


@routes.add("GET", ONE + "/screenshot", action="instance.screenshot", answer=bytes, media=BYTES)
async def screenshot(call: Call) -> Reply:
    """What is on its screen now, as PNG."""
    engine, view = await engine_of(call.services, call.names)
    if not isinstance(engine, Displays):
        raise lacks(view, "screen")
    with asking(view):
        return raw(await engine.screenshot(view.id), media_type=BYTES)


@routes.add("GET", ONE + "/display", action="instance.display", answer=Screen)
async def display(call: Call) -> Reply:
    """Where its screen is served as VNC on its host."""
    engine, view = await engine_of(call.services, call.names)
    if not isinstance(engine, Displays):
        raise lacks(view, "screen")
    with asking(view):
        return answer(Screen(vnc=await engine.display(view.id)))


@routes.add("GET", ONE + "/cloud-init", action="instance.cloud-init", answer=CloudState)
async def cloud_init(call: Call) -> Reply:
    """How far cloud-init is in it, and what failed."""
    engine, view = await agent(call)
    with asking(view):
        return answer(await cloud_state(engine, view.id))


@routes.add("POST", ONE + "/eject", action="instance.eject", answer=Operation, status=202)
async def eject(call: Call) -> Reply:
    """Take out what is in its CD-ROM drive."""
    return await call.submit("instance.eject", NamedArgs(project=call.project, name=call.name))


@routes.add("POST", ONE + "/insert", action="instance.insert", answer=Operation, status=202)
async def insert(call: Call, body: InsertBody) -> Reply:
    """Put the disc of an image into its CD-ROM drive, in place of what is there."""
    args = InsertArgs(project=call.project, name=call.name, image=body.image)
    return await call.submit("instance.insert", args)


class Login:
    """A session on a terminal as a stream: there is no other output than the terminal's."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.write, self.resize, self.close = session.write, session.resize, session.close

    async def read(self) -> bytes:
        return (await self._session.read())[1]


def shell_handler(services: Services) -> WebsocketRouteHandler:
    """A login, of a VM over the network: binary frames both ways, a text frame tells a new size of the terminal."""

    async def shell(socket: WebSocket) -> None:  # type: ignore[type-arg]
        await socket.accept()
        session: Shell | None = None
        code, reason = 1000, "the session ended"
        try:
            check_path(socket.path_params)
            query = cast(ShellQuery, read_query(socket.scope["query_string"], ShellQuery))
            engine, view = await engine_of(services, socket.path_params)
            sized: dict[str, Any] = {"user": query.user, "columns": query.columns, "rows": query.rows}
            if isinstance(engine, Opens):
                with asking(view):
                    session = Login(await engine.login(view.id, **sized))
            else:
                session = await services.shells.open(view, **sized)
            opened = session

            def resize(text: str) -> None:
                with suppress(msgspec.MsgspecError):
                    size = msgspec.json.decode(text, type=Resize)
                    opened.resize(size.columns, size.rows)

            if await both_ways(socket, session, closing(socket.scope), resize):
                code, reason = 1001, "the daemon ends"
        except AtollError as error:
            code, reason = 4000 + status_of(error), f"{error.code}: {error.message}"
        except WebSocketDisconnect:
            return
        finally:
            if session is not None:
                await session.close()
        with suppress(WebSocketDisconnect, RuntimeError):
            await socket.close(code=code, reason=reason.encode()[:120].decode(errors="ignore"))

    return WebsocketRouteHandler(litestar_path(SHELL), guards=[guard], opt={"action": "instance.shell"})(shell)
