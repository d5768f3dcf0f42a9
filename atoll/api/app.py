"""The app: routes, one guard, one table of errors, the door in front."""

import logging
from typing import Any

import msgspec
from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException

from atoll.api import errors
from atoll.api.access import caller
from atoll.api.door import Door
from atoll.api.openapi import describe
from atoll.api.route import Call, Reply, Route, Routes, raw
from atoll.api.routes import guests, instances, operations, resources, root
from atoll.api.services import Services
from atoll.base.errors import AtollError, Bug
from atoll.client.wire import MAX_BODY

log = logging.getLogger(__name__)
WEBSOCKETS = {guests.CONSOLE: "The serial console: binary frames both ways; ends with a close reason"}


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
        *resources.routes,
    ]
    return found


def build_litestar(services: Services) -> Litestar:
    """Without the door: only for looking at its routes."""
    handlers = [route.bind(services) for route in all_routes(services.version)]
    return Litestar(
        route_handlers=[*handlers, guests.console_handler(services)],
        exception_handlers={
            AtollError: _ours,
            HTTPException: _framework,
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


def _framework(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    assert isinstance(error, HTTPException)
    status = error.status_code
    if status >= 500:
        return _bug(request, error)
    problem = errors.of_http(status, error.detail)
    return errors.render(problem, caller(request.scope).request_id, status, error.headers)


def _bug(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    request_id = caller(request.scope).request_id
    log.error("bug in %s %s, request %s", request.method, request.url.path, request_id, exc_info=error)
    bug = Bug("Atoll itself failed", hint=f"see the daemon's log for request {request_id}")
    return errors.render(bug, request_id)
