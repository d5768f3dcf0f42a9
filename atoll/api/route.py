"""A route as it is declared: method, path, action, and a handler whose annotations are its query, body and answer.

    @routes.add("POST", "/projects/{project}/instances", action="instance.launch", answer=Operation, status=202)
    async def launch(call: Call, body: LaunchBody) -> Reply: ...

What validates a request and what describes it in OpenAPI are one and the same struct.
"""

import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast, get_type_hints
from urllib.parse import parse_qsl

import msgspec
from litestar import Request, Response
from litestar.handlers import HTTPRouteHandler
from litestar.response import Stream

from atoll.api.access import actor_of, caller, guard
from atoll.api.errors import Unsupported, invalid
from atoll.api.services import Services
from atoll.base.errors import Absent, Invalid
from atoll.base.names import check_label, did_you_mean
from atoll.operation import runner
from atoll.operation.model import Operation, Subject

Reply = Response[bytes] | Stream
Check = Callable[[], Awaitable[None]]
ReadRequest = Request[Any, Any, Any]
JSON = "application/json"
BYTES = "application/octet-stream"
SSE = "text/event-stream"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_TYPES = re.compile(r"application/([a-z.-]+\+)?json\s*(;.*)?", re.IGNORECASE)


class Empty(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A query or body without fields."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request as its handler sees it. `names`: of its path, each a valid label (an `id` excepted)."""

    request: ReadRequest
    services: Services

    @property
    def names(self) -> dict[str, str]:
        return self.request.path_params

    @property
    def project(self) -> str:
        return self.names["project"]

    @property
    def name(self) -> str:
        return self.names["name"]

    @property
    def by(self) -> runner.Request:
        """The request as the audit keeps it. Raises Invalid where its Idempotency-Key is none."""
        key = self.request.headers.get("idempotency-key")
        if key is not None and not _KEY.fullmatch(key):
            raise Invalid("this is no key", hint="1 to 255 printable ASCII characters", field="Idempotency-Key")
        who = caller(self.request.scope)
        return runner.Request(actor=actor_of(self.request), id=who.request_id, idempotency_key=key or "")

    async def submit(
        self, verb: str, args: msgspec.Struct, name: str | None = None, *, first: Check | None = None
    ) -> Reply:
        """Begin a change of the thing that the path names: 202, and where to ask for its outcome.

        `first` may still refuse it; not where the same request was accepted before.
        """
        kind = verb.partition(".")[0]
        subject = Subject(kind, self.project, self.name if name is None else name)
        by = await self.keyed()
        operations = self.services.operations
        if first is not None:
            former = await operations.book.former(by.actor, by.idempotency_key, by.fingerprint)
            if former is not None:
                return accepted(former)
            await first()
        return accepted(await operations.submit(verb, args, subject, by))

    async def keyed(self) -> runner.Request:
        """As `by`, with what tells the same request sent twice from another one under the same key."""
        scope, match = self.request.scope, self.request.headers.get("if-match", "")
        asked = (self.request.method.encode(), scope["path"].encode(), scope["query_string"], match.encode())
        digest = hashlib.sha256(b"\0".join((*asked, await self.request.body())))
        return msgspec.structs.replace(self.by, fingerprint=digest.hexdigest())


def answer(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    return raw(msgspec.json.encode(value), status=status, headers=headers)


def raw(
    content: bytes, *, status: int = 200, headers: dict[str, str] | None = None, media_type: str = JSON
) -> Reply:
    return Response(content, status_code=status, headers=headers, media_type=media_type)


def streamed(chunks: AsyncIterator[bytes], *, media_type: str = BYTES) -> Reply:
    return Stream(chunks, media_type=media_type, headers={"Cache-Control": "no-store"})


def nothing() -> Reply:
    return Response(b"", status_code=HTTPStatus.NO_CONTENT)


def accepted(operation: Operation) -> Reply:
    return answer(operation, status=202, headers={"Location": f"/v1/operations/{operation.id}"})


Handler = Callable[..., Awaitable[Reply]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """`answer`: what a success carries (None: nothing), as `media`. `headers`: of the request, by name, described.
    `takes`: media type of a body that is not JSON. `max_body`: bytes, None: its own bound.
    """

    method: str
    path: str
    action: str
    handler: Handler
    query: type[msgspec.Struct]
    body: type[msgspec.Struct] | None
    answer: Any
    status: int
    media: str
    takes: str
    headers: dict[str, str]

    def bind(self, services: Services) -> HTTPRouteHandler:
        """As Litestar wants it: a handler of the bare request, so that nothing of it is validated twice."""
        handler, query_type, body_type = self.handler, self.query, self.body
        wants_query, wants_body = query_type is not Empty, body_type is not None and body_type is not Empty

        async def endpoint(request: Request) -> Response:  # type: ignore[type-arg]
            check_path(request.path_params)
            query = read_query(request.scope["query_string"], query_type)
            given: dict[str, Any] = {"query": query} if wants_query else {}
            if body_type is not None:
                body = await read_body(request, body_type)
                if wants_body:
                    given["body"] = body
            return cast(Response[Any], await handler(Call(request, services), **given))

        endpoint.__name__ = endpoint.__qualname__ = handler.__name__
        sized = {"request_max_body_size": None} if self.takes else {}
        return HTTPRouteHandler(
            litestar_path(self.path),
            http_method=cast(Any, self.method),
            guards=[guard],
            opt={"action": self.action},
            status_code=200,  # of the declaration only: every reply has its own
            include_in_schema=False,
            **cast(Any, sized),
        )(endpoint)


def litestar_path(path: str) -> str:
    return "/v1" + re.sub(r"{(\w+)}", r"{\1:str}", path)


class Routes(list[Route]):
    """The routes of one noun."""

    def add(
        self,
        method: str,
        path: str,
        *,
        action: str,
        answer: Any,
        status: int = 200,
        media: str = JSON,
        takes: str = "",
        headers: dict[str, str] | None = None,
    ) -> Callable[[Handler], Handler]:
        def declare(handler: Handler) -> Handler:
            hints = get_type_hints(handler)
            default_body = Empty if method == "POST" and not takes else None
            route = Route(
                method=method,
                path=path,
                action=action,
                handler=handler,
                query=hints.get("query", Empty),
                body=hints.get("body", default_body),
                answer=answer,
                status=status,
                media=media,
                takes=takes,
                headers=headers or {},
            )
            self.append(route)
            return handler

        return declare


def check_path(names: dict[str, str]) -> None:
    """Raises Invalid where a name is no label, Absent where an id cannot be one."""
    for key, value in names.items():
        if key == "id":
            if not (value.isascii() and len(value) <= 64 and value.replace("-", "").isalnum()):
                raise Absent(f"there is no {value[:80]!r}")
        else:
            check_label(value, field=key)


_FIELDS: dict[type[msgspec.Struct], dict[str, bool]] = {}


def fields_of(kind: type[msgspec.Struct]) -> dict[str, bool]:
    """Names of a query's parameters, and whether each may be repeated."""
    if kind not in _FIELDS:
        hints = get_type_hints(kind)
        _FIELDS[kind] = {
            name: getattr(hints[name], "__origin__", None) in (tuple, list) for name in kind.__struct_fields__
        }
    return _FIELDS[kind]


def read_query(raw_query: bytes, kind: type[msgspec.Struct]) -> msgspec.Struct:
    """Raises Invalid: a parameter unknown, given twice, or of the wrong kind."""
    known = fields_of(kind)
    values: dict[str, Any] = {}
    try:
        pairs = parse_qsl(raw_query.decode(), keep_blank_values=True, max_num_fields=100, errors="strict")
    except ValueError as error:
        raise Invalid(f"the query cannot be read: {error}") from error
    for name, value in pairs:
        if name not in known:
            hint = did_you_mean(name, known) or f"there are: {', '.join(known) or 'none'}"
            raise Invalid(f"there is no parameter {name[:80]!r} here", hint=hint, field=name[:80])
        if known[name]:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise Invalid(f"{name} is given twice", field=name)
        else:
            values[name] = value
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        wrong = invalid(error)
        raise Invalid(wrong.message, field=wrong.field.partition("[")[0]) from error


async def read_body(request: ReadRequest, kind: type[msgspec.Struct]) -> msgspec.Struct:
    """Raises Invalid, TooLarge, Unsupported. Nothing at all is as good as {}."""
    content = await request.body()
    if content:
        media = request.headers.get("content-type", "")
        if not _TYPES.fullmatch(media.strip()):
            raise Unsupported(
                f"a body of {media[:80] or 'no type'} is not taken here", hint=f"Content-Type: {JSON}"
            )
    try:
        return msgspec.json.decode(content or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(error) from error
