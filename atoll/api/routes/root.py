"""/v1, health, hosts, tokens, recipes and the description of all of it."""

from typing import Any

import msgspec

from atoll.api.route import Call, Reply, Routes, answer, nothing
from atoll.base.errors import Absent
from atoll.base.names import check_label
from atoll.client.wire import (
    Greeting,
    Health,
    HostMemoryView,
    HostView,
    NewToken,
    RecipeView,
    Token,
    TokenBody,
)
from atoll.instance.admission import promised
from atoll.operation.model import Subject

routes = Routes()
LINKS = {
    "openapi": "/v1/openapi.json",
    "events": "/v1/events",
    "operations": "/v1/operations",
    "hosts": "/v1/hosts",
    "recipes": "/v1/recipes",
    "tokens": "/v1/tokens",
    "instances": "/v1/projects/{project}/instances",
    "images": "/v1/projects/{project}/images",
    "networks": "/v1/projects/{project}/networks",
    "groups": "/v1/projects/{project}/groups",
    "pools": "/v1/projects/{project}/pools",
    "volumes": "/v1/projects/{project}/volumes",
    "history": "/v1/projects/{project}/history",
}


class ProbeQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`refresh`: try again instead of answering from before."""

    refresh: bool = False


class TokenArgs(msgspec.Struct, frozen=True, kw_only=True):
    """For the audit."""

    name: str


@routes.add("GET", "", action="api.greet", answer=Greeting)
async def greet(call: Call) -> Reply:
    """Version, host and where everything is."""
    services = call.services
    return answer(Greeting(version=services.version, host=services.host_id, links=LINKS))


@routes.add("GET", "/health", action="api.health", answer=Health)
async def health(call: Call) -> Reply:
    """Whether the daemon answers and is ready: false while it finishes or takes back what a former
    daemon left."""
    return answer(Health(ready=call.services.ready()))


@routes.add("GET", "/hosts", action="host.list", answer=list[HostView])
async def list_hosts(call: Call) -> Reply:
    """The hosts: this one."""
    return answer([await _host(call)])


@routes.add("GET", "/hosts/{id}", action="host.read", answer=HostView)
async def get_host(call: Call) -> Reply:
    """One host: what it has and what it has promised."""
    _known(call)
    return answer(await _host(call))


@routes.add("GET", "/hosts/{id}/probe", action="host.probe", answer=dict[str, Any])
async def probe_host(call: Call, query: ProbeQuery) -> Reply:
    """What a host can do, tried out: acceleration, machine types, kernel parts and what each missing one costs."""
    _known(call)
    return answer(await call.services.host.probe(refresh=query.refresh))


def _known(call: Call) -> None:
    if call.names["id"] != call.services.host_id:
        raise Absent(f"there is no host {call.names['id']}", hint="GET /v1/hosts lists them")


async def _host(call: Call) -> HostView:
    services = call.services
    views, memory = await services.instances.list(None), services.memory()
    return HostView(
        id=services.host_id,
        version=services.version,
        instances=len(views),
        memory=HostMemoryView(total=memory.total, promisable=memory.promisable, promised=promised(views)),
        facts=msgspec.to_builtins(await services.host.facts()),
    )


@routes.add("GET", "/recipes", action="image.recipes", answer=list[RecipeView])
async def list_recipes(call: Call) -> Reply:
    """Images that Atoll can build itself."""
    return answer(list(call.services.recipes))


@routes.add("GET", "/tokens", action="token.list", answer=list[Token])
async def list_tokens(call: Call) -> Reply:
    """Tokens, without their secrets: nobody has those any more."""
    return answer(await call.services.tokens.list())


@routes.add("POST", "/tokens", action="token.create", answer=NewToken, status=201)
async def create_token(call: Call, body: TokenBody) -> Reply:
    """Make a token. Its secret is in this answer and never shown again."""
    args, subject = TokenArgs(name=check_label(body.name)), Subject("token", name=body.name)
    async with call.services.operations.audited("token.create", args, subject, await call.keyed()):
        made = await call.services.tokens.create(body.name, days=body.days)
    return answer(made, status=201, headers={"Cache-Control": "no-store"})


@routes.add("DELETE", "/tokens/{name}", action="token.revoke", answer=None, status=204)
async def revoke_token(call: Call) -> Reply:
    """Revoke a token: its next request is refused."""
    args, subject = TokenArgs(name=call.name), Subject("token", name=call.name)
    async with call.services.operations.audited("token.revoke", args, subject, await call.keyed()):
        await call.services.tokens.revoke(call.name)
    return nothing()
