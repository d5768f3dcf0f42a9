"""Errors as HTTP (RFC 9457): the only file that knows both. A test checks that none is missing."""

import re
from http import HTTPStatus

import msgspec
from litestar import Response

from atoll.base.errors import (
    Absent,
    AtollError,
    Broken,
    Bug,
    Cancelled,
    Compacted,
    Conflict,
    Denied,
    Exhausted,
    Exists,
    Interrupted,
    Invalid,
    Lacking,
    Refused,
    Unauthenticated,
    Unreachable,
)
from atoll.client.wire import ProblemDetails

PROBLEM = "application/problem+json"
STATUS: dict[type[AtollError], int] = {
    Invalid: 400,
    Unauthenticated: 401,
    Denied: 403,
    Absent: 404,
    Exists: 409,
    Refused: 409,
    Conflict: 409,
    Cancelled: 409,
    Compacted: 410,
    Bug: 500,
    Lacking: 501,
    Broken: 502,
    Interrupted: 503,
    Unreachable: 504,
    Exhausted: 507,
}
RETRY_AFTER: dict[type[AtollError], int] = {Interrupted: 5, Unreachable: 5, Exhausted: 30}
"""Seconds after which the same request may fare better."""
_AT = re.compile(r" - at `(?:key in )?\$\.?(.*?)`")


class Stale(Conflict):
    """The If-Match revision is not the present one: 412."""


class TooLarge(Invalid):
    """413."""


class Unsupported(Invalid):
    """The body is not of a media type that this route takes: 415."""


NARROWER: dict[type[AtollError], int] = {Stale: 412, TooLarge: 413, Unsupported: 415}


def status_of(error: AtollError) -> int:
    table = STATUS | NARROWER
    return next(table[kind] for kind in type(error).__mro__ if kind in table)


def details(error: AtollError, request_id: str, status: int = 0) -> ProblemDetails:
    status = status or status_of(error)
    return ProblemDetails(
        type=f"urn:atoll:problem:{error.code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=error.message,
        code=error.code,
        hint=error.hint,
        field=error.field,
        instance=f"urn:atoll:request:{request_id}",
    )


def headers_of(error: AtollError) -> dict[str, str]:
    seconds = next((RETRY_AFTER[kind] for kind in type(error).__mro__ if kind in RETRY_AFTER), 0)
    headers = {"Retry-After": str(seconds)} if seconds else {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def render(
    error: AtollError, request_id: str, status: int = 0, headers: dict[str, str] | None = None
) -> Response[bytes]:
    problem = details(error, request_id, status)
    return Response(
        msgspec.json.encode(problem),
        status_code=problem.status,
        media_type=PROBLEM,
        headers={**headers_of(error), **(headers or {})},
    )


def of_http(status: int, detail: str) -> AtollError:
    """What the framework refuses before any of our code runs."""
    if status == HTTPStatus.NOT_FOUND:
        return Absent("there is nothing at this address", hint="GET /v1/openapi.json lists what there is")
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return Invalid("this method is not for this address", hint="the Allow header names those that are")
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return TooLarge("the body is too large", hint="a JSON body may have 1 MiB")
    return Invalid(detail) if status < 500 else Bug(detail)


def invalid(error: msgspec.MsgspecError | UnicodeDecodeError | RecursionError, *, where: str = "") -> Invalid:
    """msgspec's complaint, with the place it names as the field ("spec.cpus")."""
    if isinstance(error, msgspec.ValidationError):
        text = str(error)
        at = _AT.search(text)
        field = ".".join(part for part in (where, at.group(1) if at else "") if part)
        return Invalid(text[: at.start()] if at else text, field=_unknown(text) or field)
    return Invalid(f"the body is not JSON in UTF-8: {error}"[:300])


def _unknown(text: str) -> str:
    found = re.match(r"Object (?:contains unknown|missing required) field `([^`]*)`(?: - at `\$\.?(.*)`)?", text)
    return ".".join(part for part in (found.group(2), found.group(1)) if part) if found else ""
