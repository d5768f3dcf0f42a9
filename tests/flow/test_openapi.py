"""The description is true: every route is called and its answer checked against its schema."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema_rs
import msgspec
import pytest

from atoll.api.access import HOST_ADMINISTRATOR, may
from atoll.api.app import WEBSOCKETS, all_routes, build_litestar
from atoll.api.openapi import describe
from atoll.base.errors import Denied
from atoll.operation.model import Actor, Subject
from tests.kit.app import HOST, Kit, make_kit
from tests.kit.parcels import manifest, whole

DOCUMENT = describe(all_routes("0.1.0"), version="0.1.0", websockets=WEBSOCKETS)
OPERATIONS = {
    described["operationId"]: (method.upper(), path, described)
    for path, methods in DOCUMENT["paths"].items()
    for method, described in methods.items()
}
SPEC = {"image": "tiny", "description": "ünïcode ✓"}
CALLS: dict[str, dict[str, Any]] = {
    "operation_read": {"params": {"wait": "5"}},
    "operation_history": {"params": {"kind": "instance", "name": "web1"}},
    "host_probe": {"params": {"refresh": "true"}},
    "token_create": {"json": {"name": "another", "days": 3}},
    "event_follow": {"params": {"since": "0", "kind": "instance."}},
    "instance_list": {"params": {"label": "tier=web", "state": "running"}},
    "instance_launch": {"json": {"name": "web2", "spec": SPEC}},
    "instance_set": {"json": {"cpus": 2, "labels": {"a": "b"}}},
    "instance_delete": {"params": {"force": "true"}},
    "instance_stop": {"json": {"grace": 0}},
    "instance_rename": {"json": {"to": "web3"}},
    "instance_exec": {"json": {"argv": ["echo", "hello"], "stdin": "AAE=", "env": {"A": "b"}}},
    "instance_push": {"params": {"path": "/a", "mode": "0755"}, "content": b"abc"},
    "instance_pull": {"params": {"path": "/a"}},
    "instance_export": {"json": {"compress": True}},
    "instance_import": {"params": {"name": "web9"}, "content": whole(manifest(b"disk"), b"disk")},
    "instance_nic-add": {
        "json": {"network": "default", "address": "10.9.8.9", "forwards": [{"port": 80, "to": 80}]}
    },
    "instance_mount-add": {"json": {"source": "/srv", "path": "/data"}},
    "instance_mount-remove": {"params": {"path": "/data"}},
    "instance_nic-set": {"json": {"link": False, "down": {"ceiling": 1000000}}},
    "network_create": {"json": {"name": "lan", "mode": "isolated", "subnets": ["10.1.2.0/24"]}},
    "group_create": {"json": {"name": "db", "rules": [{"direction": "ingress", "protocol": "tcp", "port": 80}]}},
    "group_change": {"json": {"add": [{"direction": "egress"}]}},
    "instance_insert": {"json": {"image": "tiny"}},
    "image_build": {"json": {"recipe": "tiny"}},
    "image_prune": {"params": {"unused": "true"}},
    "image_import": {"json": {"url": "https://example.org/disk.qcow2"}},
    "image_send": {"params": {"replace": "true"}, "content": b"an image"},
    "image_rename": {"json": {"to": "small"}},
    "instance_shell": {"expect": 405},
    "instance_session": {"expect": 405},
    "volume_create": {"json": {"name": "data", "size": 1 << 30, "format": "raw"}},
    "volume_attach": {"json": {"instance": "web1", "bus": "scsi", "cache": "none"}},
    "volume_detach": {"json": {"force": True}},
    "volume_grow": {"json": {"size": 2 << 30}},
    "volume_rename": {"json": {"to": "old"}},
    "pool_create": {"json": {"name": "fast", "driver": "dir", "path": "/srv/fast"}},
    "pool_delete": {"params": {"force": "true"}},
    "instance_console": {"expect": 405},  # a WebSocket: tests/flow/test_api_flow.py talks to it
}
LAST = ["instance_rename", "instance_delete", "image_rename", "image_delete", "volume_rename", "volume_delete"]


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    kit = await make_kit()
    yield kit
    await kit.close()


def check(described: dict[str, Any], response: httpx.Response) -> None:
    found = described["responses"].get(str(response.status_code), described["responses"]["default"])
    if "$ref" in found:
        found = DOCUMENT["components"]["responses"]["Problem"]
    content = found.get("content")
    if content is None:
        assert response.content == b""
        return
    media = response.headers["content-type"].partition(";")[0]
    assert media in content
    if media.endswith("json"):
        validator = jsonschema_rs.validator_for(
            {"components": DOCUMENT["components"], **content[media]["schema"]}, validate_formats=True
        )
        validator.validate(response.json())
    for name, header in found.get("headers", {}).items():
        assert not header.get("required") or name in response.headers


async def test_every_route_answers_as_described(kit: Kit) -> None:
    transport = httpx.ASGITransport(app=kit.as_uid())
    kit.engine.files["/a"] = b"content"
    async with httpx.AsyncClient(transport=transport, base_url="http://atoll") as http:
        await http.post("/v1/tokens", json={"name": "web1"})
        await http.post("/v1/projects/default/images", json={"recipe": "tiny", "name": "web1"})
        for name in ("web1", "default"):
            launched = await http.post("/v1/projects/default/instances", json={"name": name, "spec": SPEC})
            operation = launched.json()["id"]
            await http.get(f"/v1/operations/{operation}?wait=5")
        made = await http.post("/v1/projects/default/volumes", json={"name": "web1", "size": 1 << 30})
        await http.get(f"/v1/operations/{made.json()['id']}?wait=5")
        kit.app.closing.set()  # so that the stream of events ends
        order = [name for name in OPERATIONS if name not in LAST] + LAST
        for id in order:
            method, path, described = OPERATIONS[id]
            call = dict(CALLS.get(id, {}))
            expected = call.pop("expect", min(int(s) for s in described["responses"] if s[0] == "2") if "2" in str(
                described["responses"].keys()) else 200)  # fmt: skip
            thing = "default" if "{name}" in path and ("networks" in path or "pools" in path) else "web1"
            this = HOST if "hosts" in path else operation
            url = (
                path.replace("{project}", "default")
                .replace("{name}", thing)
                .replace("{id}", this)
                .replace("{mac}", "52-54-00-12-34-56")
            )
            response = await http.request(method, url, **call)
            assert response.status_code == expected, f"{id}: {response.status_code} {response.text}"
            check(described, response)
            assert response.headers["x-request-id"]
            if response.status_code == 202:
                await http.get(response.headers["location"] + "?wait=5")


async def test_the_served_document_is_this_one(kit: Kit) -> None:
    transport = httpx.ASGITransport(app=kit.as_uid())
    async with httpx.AsyncClient(transport=transport, base_url="http://atoll") as http:
        served = (await http.get("/v1/openapi.json")).json()
    assert served == msgspec.json.decode(msgspec.json.encode(DOCUMENT))


def test_every_struct_has_a_meaningful_description() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert "object at 0x" not in schema.get("description", ""), name
    assert len(OPERATIONS) == len(all_routes("x")) + len(WEBSOCKETS), "an operationId is used twice"


async def test_every_route_asks_whether_it_may(kit: Kit) -> None:
    """Each handler carries its action and the one guard."""
    from atoll.api.access import guard

    seen = 0
    for route in build_litestar(kit.services).routes:
        handlers = getattr(route, "route_handlers", None) or [getattr(route, "route_handler", None)]
        for handler in handlers:
            if handler is None or getattr(handler, "http_methods", None) == {"OPTIONS"}:
                continue
            seen += 1
            assert handler.opt.get("action"), handler
            assert guard in handler.resolve_guards(), handler
    assert seen == len(all_routes("x")) + len(WEBSOCKETS)


def test_a_stranger_may_nothing() -> None:
    with pytest.raises(Denied):
        may(Actor("guest", "somebody"), "instance.start", Subject("instance", "default", "web1"))


async def test_what_is_the_hosts_own_takes_a_right_of_its_own(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may launch does not thereby bring the host's directories, or privileges, into a container."""

    def member(actor: Actor, action: str, on: Subject) -> None:
        if action in HOST_ADMINISTRATOR:
            raise Denied(f"{actor.name} may not {action} {on.name}")

    monkeypatch.setattr("atoll.api.access.may", member)
    monkeypatch.setattr("atoll.api.routes.instances.may", member)
    base = "/v1/projects/default/instances"
    spec = {"image": "tiny", "kind": "container"}
    mount = {"source": "/etc", "path": "/mnt/host"}
    transport = httpx.ASGITransport(app=kit.as_uid())
    async with httpx.AsyncClient(transport=transport, base_url="http://atoll") as http:
        for name, container in (("plain", {}), ("mounts", {"mounts": [mount]}), ("mighty", {"privileged": True})):
            answer = await http.post(base, json={"name": name, "spec": {**spec, "container": container}})
            assert answer.status_code == (202 if name == "plain" else 403), answer.text
        assert (await http.post(f"{base}/plain/mounts", json=mount)).status_code == 403
        assert (await http.delete(f"{base}/plain/mounts", params={"path": "/mnt/host"})).status_code == 403
