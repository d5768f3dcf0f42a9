"""OpenAPI 3.1 from the routes and the very structs that read requests and write answers."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, cast, get_args, get_origin

import msgspec

from atoll.api.errors import PROBLEM
from atoll.api.route import BYTES, JSON, SSE, Empty, Route
from atoll.base.names import LABEL
from atoll.client.wire import ProblemDetails

Schema = dict[str, Any]
REF = "#/components/schemas/{name}"
PATH_NAMES: Schema = {
    "project": {"type": "string", "pattern": LABEL, "maxLength": 63},
    "name": {"type": "string", "pattern": LABEL, "maxLength": 63},
    "mac": {"type": "string", "pattern": "^[0-9a-f]{2}(-[0-9a-f]{2}){5}$"},
    "id": {"type": "string", "pattern": "^[0-9A-Za-z-]{1,64}$"},
}
CHANGE_HEADERS = {"Idempotency-Key": "the same key again returns the first request's operation"}
KEY_SCHEMA: Schema = {"type": "string", "pattern": "^[!-~]{1,255}$"}
HEADER_SCHEMAS: Schema = {
    "Idempotency-Key": KEY_SCHEMA,
    "If-Match": {"type": "string", "pattern": '^([*]|"?[0-9]{1,18}"?)$'},
    "If-None-Match": {"type": "string"},
    "Last-Event-ID": {"type": "string", "pattern": "^[0-9]{0,16}$"},
}


def describe(routes: Iterable[Route], *, version: str, websockets: dict[str, str]) -> Schema:
    """The whole document. `websockets`: path -> what it is; OpenAPI has no words for them but a 101."""
    routes = list(routes)
    schemas = _Schemas(routes)
    paths: Schema = {}
    for route in routes:
        paths.setdefault("/v1" + route.path, {})[route.method.lower()] = _operation(route, schemas)
    for path, text in websockets.items():
        paths["/v1" + path] = {"get": _websocket(path, text)}
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "Atoll",
            "version": version,
            "description": "Server virtualization. Every change is an operation (202): ask it for its outcome.",
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {
                "Problem": {
                    "description": "What is wrong and what to do about it (RFC 9457)",
                    "content": {PROBLEM: {"schema": schemas.of(ProblemDetails)}},
                }
            },
        },
    }


def _operation(route: Route, schemas: "_Schemas") -> Schema:
    doc = " ".join((route.handler.__doc__ or "").split())
    parameters = [*_path_parameters(route.path), *_query_parameters(route, schemas)]
    named = {**route.headers, **(CHANGE_HEADERS if route.status == HTTPStatus.ACCEPTED else {})}
    parameters += [
        {"name": name, "in": "header", "description": text, "schema": HEADER_SCHEMAS[name]}
        for name, text in named.items()
    ]
    described: Schema = {
        "operationId": route.action.replace(".", "_"),
        "tags": [route.action.partition(".")[0]],
        "summary": doc.partition(". ")[0].rstrip("."),
        "description": doc,
        "x-atoll-action": route.action,
        "responses": _responses(route, schemas),
    }
    if parameters:
        described["parameters"] = parameters
    if route.takes:
        described["requestBody"] = {"required": True, "content": {route.takes: {"schema": {}}}}
    elif route.body is not None:
        required = any(field.required for field in msgspec.structs.fields(route.body))
        described["requestBody"] = {"required": required, "content": {JSON: {"schema": schemas.of(route.body)}}}
    return described


def _responses(route: Route, schemas: "_Schemas") -> Schema:
    success: Schema = {"description": HTTPStatus(route.status).phrase}
    if route.media == SSE:
        success["description"] = "Server-Sent Events; `data` of each is a News"
        success["content"] = {SSE: {"schema": {"type": "string"}}}
    elif route.media == BYTES:
        success["content"] = {BYTES: {"schema": {}}}
    elif route.answer is not None:
        success["content"] = {JSON: {"schema": schemas.of(route.answer)}}
    if route.status == HTTPStatus.ACCEPTED:
        where = {"description": "the operation", "required": True, "schema": {"type": "string"}}
        success["headers"] = {"Location": where}
    found: Schema = {str(route.status): success}
    if "If-None-Match" in route.headers:
        found["304"] = {"description": "unchanged"}
    problem = {"$ref": "#/components/responses/Problem"}
    statuses = {400} | {401, 403} | ({404} if "{" in route.path else set())
    statuses |= {413, 415} if route.body is not None else set()
    statuses |= {412} if "If-Match" in route.headers else set()
    return found | {str(status): problem for status in sorted(statuses)} | {"default": problem}


def _path_parameters(path: str) -> list[Schema]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": PATH_NAMES[name]} for name in names]


def _query_parameters(route: Route, schemas: "_Schemas") -> list[Schema]:
    described = schemas.properties(route.query)
    required = described.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": schema}
        for name, schema in described.get("properties", {}).items()
    ]


def _websocket(path: str, text: str) -> Schema:
    return {
        "operationId": "instance_" + path.rpartition("/")[2],
        "tags": ["instance"],
        "summary": text,
        "parameters": _path_parameters(path),
        "responses": {
            "101": {"description": "a WebSocket of binary frames"},
            "default": {"$ref": "#/components/responses/Problem"},
        },
    }


class _Schemas:
    """msgspec's own JSON schemas of every struct the routes name."""

    def __init__(self, routes: list[Route]) -> None:
        types = [r.body for r in routes if r.body] + [r.query for r in routes] + [ProblemDetails]
        types += [r.answer for r in routes if r.answer not in (None, bytes)]
        self._types = [_describable(kind) for kind in types]
        found, components = msgspec.json.schema_components(self._types, ref_template=REF)
        self._found = dict(zip([_key(kind) for kind in types], found, strict=True))
        queries = {route.query.__name__ for route in routes}
        self._all = components
        self.components = {name: schema for name, schema in components.items() if name not in queries}

    def of(self, kind: Any) -> Schema:
        return self._found[_key(kind)]

    def properties(self, kind: type[msgspec.Struct]) -> Schema:
        return {} if kind is Empty else self._all[kind.__name__]


def _key(kind: Any) -> str:
    return str(kind)


_STAND_INS: dict[Any, Any] = {}


def _describable(kind: Any) -> Any:
    """The same type with `Any` for raw JSON, for whose default msgspec has no schema."""
    if get_origin(kind) is list:
        return list[_describable(get_args(kind)[0])]  # type: ignore[misc]
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return kind
    fields = msgspec.structs.fields(kind)
    if not any(field.type is msgspec.Raw for field in fields):
        return kind
    if kind not in _STAND_INS:
        parts: list[Any] = []
        for field in fields:
            if field.type is msgspec.Raw:
                parts.append((field.encode_name, Any))
            elif field.required:
                parts.append((field.encode_name, field.type))
            else:
                default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
                parts.append((field.encode_name, field.type, default))
        stand_in = msgspec.defstruct(kind.__name__, parts, kw_only=True)
        stand_in.__doc__ = kind.__doc__
        _STAND_INS[kind] = cast(Any, stand_in)
    return _STAND_INS[kind]
