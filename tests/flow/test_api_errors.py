"""What the API says to bad requests: one table of errors, one shape, the field that is wrong."""

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from atoll.api import tls
from atoll.api.errors import NARROWER, PROBLEM, STATUS, details, status_of
from atoll.api.server import listen_tcp, serve
from atoll.base.errors import BY_CODE, AtollError, Broken, Invalid, Refused
from tests.kit.app import Kit, make_kit

BASE = "/v1/projects/default/instances"
SPEC = {"image": "tiny"}


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    kit = await make_kit()
    yield kit
    await kit.close()


@pytest.fixture
async def http(kit: Kit) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=kit.as_uid())
    async with httpx.AsyncClient(transport=transport, base_url="http://atoll") as http:
        yield http


def test_every_error_has_a_status() -> None:
    assert set(STATUS) == set(BY_CODE.values())
    for kind in (*STATUS, *NARROWER):
        problem = details(kind("what", hint="next", field="here"), "r1")
        assert problem.status == status_of(kind("what"))
        assert problem.code in BY_CODE


BAD: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("GET", "/v1/nothing", {}, 404, ""),
    ("GET", "/", {}, 404, ""),
    ("DELETE", "/v1/operations", {}, 405, ""),
    ("GET", BASE + "/none", {}, 404, ""),
    ("GET", BASE + "/BAD_NAME", {}, 400, "name"),
    ("GET", BASE + "/" + "x" * 64, {}, 400, "name"),
    ("GET", "/v1/projects/-/instances", {}, 400, "project"),
    ("GET", BASE + "?nam=x", {}, 400, "nam"),
    ("GET", BASE + "?state=flying", {}, 400, "state"),
    ("GET", BASE + "?label=x", {}, 400, "label"),
    ("DELETE", BASE + "/web1?force=perhaps", {}, 400, "force"),
    ("DELETE", BASE + "/web1?force=true&force=true", {}, 400, "force"),
    ("DELETE", "/v1/projects/default/images", {}, 400, "unused"),
    ("POST", BASE, {"json": {}}, 400, "spec"),
    ("POST", BASE, {"json": {"spec": SPEC, "nane": "x"}}, 400, "nane"),
    ("POST", BASE, {"json": {"spec": {**SPEC, "cpu": 1}}}, 400, "spec.cpu"),
    ("POST", BASE, {"json": {"spec": {**SPEC, "cpus": 0}}}, 400, "spec.cpus"),
    ("POST", BASE, {"json": {"spec": {**SPEC, "memory": "12XB"}}}, 400, "spec.memory"),
    ("POST", BASE, {"json": {"spec": SPEC, "name": "Web"}}, 400, "name"),
    ("POST", BASE, {"json": {"spec": SPEC, "name": "web1\n"}}, 400, "name"),
    ("POST", BASE, {"content": b"{", "headers": {"content-type": "application/json"}}, 400, ""),
    ("POST", BASE, {"content": b"\xff", "headers": {"content-type": "application/json"}}, 400, ""),
    ("POST", BASE, {"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 400, ""),
    ("POST", BASE, {"content": b"spec=1", "headers": {"content-type": "text/plain"}}, 415, ""),
    ("POST", BASE, {"json": {"spec": {**SPEC, "description": "x" * (2 << 20)}}}, 413, ""),
    ("POST", BASE + "/web1/start", {"json": {"now": True}}, 400, "now"),
    ("POST", BASE + "/web1/stop", {"json": {"grace": -1}}, 400, "grace"),
    ("POST", BASE + "/web1/exec", {"json": {"argv": []}}, 400, "argv"),
    ("POST", BASE + "/web1/start", {"headers": {"idempotency-key": "a b"}}, 400, "Idempotency-Key"),
    ("PATCH", BASE + "/web1", {"json": {}, "headers": {"if-match": "x"}}, 400, "If-Match"),
    ("GET", "/v1/operations/x", {}, 404, ""),
    ("GET", "/v1/operations/" + "0" * 20, {}, 404, ""),
    ("GET", "/v1/operations/" + "0" * 20 + "?wait=61", {}, 400, "wait"),
    ("GET", "/v1/operations?limit=0", {}, 400, "limit"),
    ("GET", "/v1/hosts/elsewhere", {}, 404, ""),
    ("GET", "/v1/events?since=x", {}, 400, "since"),
    ("GET", BASE + "/web1/files?path=relative", {}, 400, "path"),
    ("GET", BASE + "/web1/files", {}, 400, "path"),
]


@pytest.mark.parametrize(("method", "url", "call", "status", "field"), BAD)
async def test_bad_requests(
    http: httpx.AsyncClient, method: str, url: str, call: dict[str, Any], status: int, field: str
) -> None:
    response = await http.request(method, url, **call)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    problem = response.json()
    assert problem["status"] == status
    assert problem["detail"]
    assert problem["code"] in BY_CODE
    assert problem["field"] == field
    assert problem["instance"].endswith(response.headers["x-request-id"])
    assert status != 405 or "GET" in response.headers["allow"]


async def test_a_stale_revision_is_412(http: httpx.AsyncClient) -> None:
    await done(http, await http.post(BASE, json={"name": "web1", "spec": SPEC}))
    tag = (await http.get(BASE + "/web1")).headers["etag"]
    await done(http, await http.patch(BASE + "/web1", json={"cpus": 2}, headers={"if-match": tag}))
    stale = await http.patch(BASE + "/web1", json={"cpus": 3}, headers={"if-match": tag})
    assert (stale.status_code, stale.json()["code"]) == (412, "conflict")


async def test_an_unchanged_list_is_not_sent_again(http: httpx.AsyncClient) -> None:
    await done(http, await http.post(BASE, json={"name": "web1", "spec": SPEC}))
    first = await http.get(BASE)
    again = await http.get(BASE, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    await done(http, await http.post(BASE + "/web1/pause"))
    changed = await http.get(BASE, headers={"if-none-match": first.headers["etag"]})
    assert changed.json()[0]["status"]["state"] == "paused"


async def test_the_same_key_is_the_same_operation(http: httpx.AsyncClient) -> None:
    headers = {"idempotency-key": "k1"}
    body = {"name": "web1", "spec": SPEC}
    first, again = [await http.post(BASE, json=body, headers=headers) for _ in range(2)]
    assert first.json()["id"] == again.json()["id"]
    other = await http.post(BASE, json={**body, "name": "web2"}, headers=headers)
    assert (other.status_code, other.json()["field"]) == (400, "Idempotency-Key")


async def test_a_bug_is_a_500_with_a_request_id_and_no_secrets(http: httpx.AsyncClient, kit: Kit) -> None:
    await done(http, await http.post(BASE, json={"name": "web1", "spec": SPEC}))
    response = await http.post(BASE + "/web1/exec", json={"argv": ["crash"]}, headers={"x-request-id": "mine-1"})
    assert response.status_code == 500
    assert response.json()["code"] == "bug"
    assert "mine-1" in response.json()["hint"]
    assert "engine" not in response.text
    assert response.headers["x-request-id"] == "mine-1"
    forged = await http.get("/v1", headers={"x-request-id": "a b\tc"})
    assert forged.headers["x-request-id"] != "a b\tc"


async def done(http: httpx.AsyncClient, response: httpx.Response) -> None:
    assert response.status_code == 202, response.text
    ended = await http.get(response.headers["location"] + "?wait=10")
    assert ended.json()["status"] == "done", ended.text


async def test_no_header_makes_anybody_a_local_user(kit: Kit) -> None:
    transport = httpx.ASGITransport(app=kit.app)
    headers = {"x-forwarded-for": "127.0.0.1", "peer_uid": "0", "authorization": "Basic cm9vdDo="}
    async with httpx.AsyncClient(transport=transport, base_url="http://atoll", headers=headers) as http:
        for url in ("/v1", BASE, "/v1/nothing", "/v1/openapi.json", "/v1/health"):
            response = await http.get(url)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"


async def test_the_socket_is_ours_alone_and_replaces_only_the_dead(kit: Kit, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # bound, never listening: what a killed daemon leaves
    serving = await serve(kit.app, unix=path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(Refused):
        await serve(kit.app, unix=path)
    await serving.close()
    assert not path.exists()
    with pytest.raises(Invalid):
        await serve(kit.app, unix=path, group="no-such-group")
    serving = await serve(kit.app, unix=path, group="daemon")
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, 1 if os.getuid() == 0 else found.st_gid)
    await serving.close()


async def test_endless_headers_are_cut_off(kit: Kit, tmp_path: Path) -> None:
    serving = await serve(kit.app, unix=tmp_path / "s")
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
    for _ in range(2):  # a second request on the same connection, so that what went before does not count
        writer.write(b"GET /v1/health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 700_000 + b"\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
    writer.write(b"GET /v1 HTTP/1.1\r\nX: ")
    with pytest.raises(ConnectionError):
        await flood(writer, 64 << 20)
    writer.close()
    await serving.close()


async def flood(writer: asyncio.StreamWriter, size: int) -> None:
    for _ in range(size >> 16):
        writer.write(b"a" * 65536)
        await writer.drain()


def test_a_taken_port() -> None:
    with listen_tcp("127.0.0.1", 0) as taken, pytest.raises(Refused, match="in use"):
        listen_tcp("127.0.0.1", taken.getsockname()[1])
    with listen_tcp("127.0.0.1", None) as first, listen_tcp("127.0.0.1", None) as second:
        assert second.getsockname()[1] > first.getsockname()[1] >= 8443
    with pytest.raises(Invalid):
        listen_tcp("203.0.113.1", 8443)


def test_the_certificate_is_made_once(tmp_path: Path) -> None:
    certificate, key = tls.ensure(tmp_path / "tls")
    first = tls.fingerprint(certificate)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert tls.fingerprint(tls.ensure(tmp_path / "tls")[0]) == first
    certificate.write_text("broken")
    with pytest.raises(Broken) as caught:
        tls.ensure(tmp_path / "tls")
    assert isinstance(caught.value, AtollError)
    assert "remove" in caught.value.hint


async def test_a_repeated_change_is_the_same_operation_whatever_came_of_it(http: httpx.AsyncClient) -> None:
    await done(http, await http.post(BASE, json={"name": "web", "spec": {"image": "tiny"}}))
    tag = (await http.get(f"{BASE}/web")).headers["etag"]
    keyed = {"If-Match": tag, "Idempotency-Key": "one"}
    first = await http.patch(f"{BASE}/web", json={"description": "a"}, headers=keyed)
    await done(http, first)
    again = await http.patch(f"{BASE}/web", json={"description": "a"}, headers=keyed)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    stale = await http.patch(f"{BASE}/web", json={"description": "b"}, headers={"If-Match": tag})
    assert stale.status_code == 412
    kept = {"Idempotency-Key": "two"}
    assert (await http.delete(f"{BASE}/web", headers=kept)).status_code == 202
    other = await http.delete(f"{BASE}/web?force=true", headers=kept)
    assert (other.status_code, other.json()["field"]) == (400, "Idempotency-Key")


async def test_what_routes_do_themselves_is_on_record_before_it_is_done(http: httpx.AsyncClient) -> None:
    made = await http.post("/v1/tokens", json={"name": "ci"}, headers={"Idempotency-Key": "t"})
    assert made.status_code == 201
    again = await http.post("/v1/tokens", json={"name": "ci"}, headers={"Idempotency-Key": "t"})
    assert (again.status_code, again.json()["code"]) == (409, "exists")
    assert "token.create" in again.json()["detail"]
    listed = (await http.get("/v1/operations")).json()
    assert [(each["verb"], each["status"]) for each in listed] == [("token.create", "done")]
