"""The app: routes, one guard, one table of errors, the door in front."""

import logging
import re
from typing import Any

import msgspec
from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler, WebsocketRouteHandler

from atoll.api import errors
from atoll.api.access import caller, guard
from atoll.api.door import Door
from atoll.api.openapi import describe
from atoll.api.route import Call, Reply, Route, Routes, litestar_path, raw
from atoll.api.routes import (
    guests,
    imports,
    instances,
    mounts,
    networks,
    operations,
    parcels,
    resources,
    root,
    screens,
    sessions,
    storage,
)
from atoll.api.services import Services
from atoll.base.errors import AtollError, Bug
from atoll.client.wire import MAX_BODY

log = logging.getLogger(__name__)
WEBSOCKETS = {
    guests.CONSOLE: "The serial console: binary frames both ways; ends with a close reason",
    screens.SHELL: "A login over the network: binary frames both ways, text frames tell a new size",
    sessions.SESSION: "A program in a container: a command first, then frames both ways; ends with its exit code",
}


def sockets(services: Services) -> list[WebsocketRouteHandler]:
    return [
        guests.console_handler(services),
        screens.shell_handler(services),
        sessions.session_handler(services),
    ]


def all_routes(version: str) -> list[Route]:
    """Every HTTP route, with that of their description."""
    own = Routes()
    described: list[bytes] = []

    @own.add("GET", "/openapi.json", action="api.describe", answer=dict[str, Any])
    async def describe_api(call: Call) -> Reply:  # noqa: ARG001
        """This description."""
        if not described:
            described.append(msgspec.json.encode(describe(found, version=version, websockets=WEBSOCKETS)))
        return raw(described[0])

    found = [
        *root.routes,
        *own,
        *operations.routes,
        *instances.routes,
        *guests.routes,
        *screens.routes,
        *resources.routes,
        *storage.routes,
        *imports.routes,
        *parcels.routes,
        *networks.routes,
        *mounts.routes,
    ]
    return found


class Methods:
    """Which methods an address takes, for OPTIONS and the Allow header of a 405."""

    def __init__(self, routes: list[Route]) -> None:
        self.of: dict[str, set[str]] = {}
        for route in routes:
            self.of.setdefault(route.path, {"OPTIONS"}).add(route.method)
        self._patterns = [(re.compile("/v1" + re.sub(r"{\w+}", "[^/]+", path) + "/?"), path) for path in self.of]

    def allow(self, path: str) -> str:
        known = next((self.of[at] for pattern, at in self._patterns if pattern.fullmatch(path)), {"GET"})
        return ", ".join(sorted(known))

    def handlers(self) -> list[HTTPRouteHandler]:
        """Litestar's own would name the first method only."""
        return [self._handler(path, ", ".join(sorted(methods))) for path, methods in self.of.items()]

    def _handler(self, path: str, allow: str) -> HTTPRouteHandler:
        async def options(request: Request[Any, Any, Any]) -> Response[bytes]:  # noqa: ARG001
            return Response(b"", status_code=204, headers={"Allow": allow})

        return HTTPRouteHandler(
            litestar_path(path),
            http_method="OPTIONS",
            status_code=200,
            guards=[guard],
            opt={"action": "api.options"},
        )(options)


def build_litestar(services: Services) -> Litestar:
    """Without the door: only for looking at its routes."""
    routes = all_routes(services.version)
    methods = Methods(routes)

    def framework(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        return _framework(request, error, methods)

    handlers = [*methods.handlers(), *(route.bind(services) for route in routes)]
    return Litestar(
        route_handlers=[*handlers, *sockets(services)],
        exception_handlers={
            AtollError: _ours,
            HTTPException: framework,
            Exception: _bug,
        },
        openapi_config=None,
        request_max_body_size=MAX_BODY,
        logging_config=None,
        debug=False,
    )


def build(services: Services) -> Door:
    """The ASGI app."""
    return Door(build_litestar(services), services.tokens)  # type: ignore[arg-type]


def _ours(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    assert isinstance(error, AtollError)
    if isinstance(error, Bug):
        log.error("request %s: %s", caller(request.scope).request_id, error)
    return errors.render(error, caller(request.scope).request_id)


def _framework(request: Request[Any, Any, Any], error: Exception, methods: Methods) -> Response[bytes]:
    assert isinstance(error, HTTPException)
    status = error.status_code
    if status >= 500:
        return _bug(request, error)
    problem = errors.of_http(status, error.detail)
    headers = {"Allow": methods.allow(request.scope["path"])} if status == 405 else None
    return errors.render(problem, caller(request.scope).request_id, status, headers)


def _bug(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    request_id = caller(request.scope).request_id
    log.error("bug in %s %s, request %s", request.method, request.url.path, request_id, exc_info=error)
    bug = Bug("Atoll itself failed", hint=f"see the daemon's log for request {request_id}")
    return errors.render(bug, request_id)
