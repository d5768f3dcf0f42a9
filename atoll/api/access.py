"""May this actor do that to this? One place, asked by one guard before every route."""

import asyncio
from typing import Any

import msgspec
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from atoll.base.errors import Denied, Unauthenticated
from atoll.operation.model import Actor, Subject

KEY = "atoll"
"""Of the caller, in an ASGI scope's state."""
CLOSING = "atoll.closing"
_KINDS = frozenset({"uid", "token", "atoll"})


class Caller(msgspec.Struct, frozen=True):
    """Who makes a request (none: nobody we know) and its id in logs, audit and problem bodies."""

    actor: Actor | None
    request_id: str


MOUNT, PRIVILEGE = "instance.mount-add", "instance.privilege"
HOST_ADMINISTRATOR = frozenset({"pool.create", "pool.delete", MOUNT, "instance.mount-remove", PRIVILEGE})
"""Actions that name or free what is the host's own, such as a path, or whose guests are not kept from it: whoever
has a project alone may not."""


def may(actor: Actor, action: str, on: Subject) -> None:
    """Raises Denied. There is one administrator today: whoever may connect may do everything, those of
    HOST_ADMINISTRATOR too."""
    if actor.kind not in _KINDS:
        raise Denied(f"{actor.kind} {actor.name} may not {action} {on.kind} {on.name}")


def caller(scope: Any) -> Caller:
    found: Caller = scope["state"][KEY]
    return found


def closing(scope: Any) -> asyncio.Event:
    """Set when the daemon ends: streams and consoles end then."""
    event: asyncio.Event = scope["state"][CLOSING]
    return event


def actor_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Actor:
    actor = caller(connection.scope).actor
    if actor is None:
        raise Unauthenticated("who are you? this needs a token", hint="Authorization: Bearer TOKEN")
    return actor


async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    action: str = handler.opt["action"]
    params = connection.path_params
    subject = Subject(action.partition(".")[0], params.get("project", ""), params.get("name", ""))
    may(actor_of(connection), action, subject)
