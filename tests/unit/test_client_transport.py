"""The client's answers to bad answers: a tiny server that says what a test tells it to."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from atoll.base.errors import BY_CODE, AtollError, Broken, Denied, Invalid, Unauthenticated, Unreachable
from atoll.client import Client, Endpoint, NotRunning
from atoll.client.problems import from_body, from_close
from atoll.client.transport import path_of, query_of
from atoll.client.wire import ProblemDetails
from atoll.instance.model import InstanceSpec

Answer = Callable[[bytes], bytes]


@asynccontextmanager
async def daemon(path: Path, answer: Answer) -> AsyncIterator[list[bytes]]:
    """Answers each request's bytes with `answer` and hangs up; yields the requests seen."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        body = await reader.readexactly(int(length or 0))
        seen.append(head + body)
        writer.write(answer(head + body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, str(path))
    try:
        yield seen
    finally:
        server.close()
        await server.wait_closed()


def said(status: int, body: bytes, kind: str = "application/json") -> bytes:
    head = (
        f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


@pytest.mark.parametrize("code", sorted(BY_CODE))
async def test_every_problem_comes_back_as_its_error(code: str, tmp_path: Path) -> None:
    problem = ProblemDetails(
        type="urn:x", title="X", status=418, detail="what is wrong", code=code, hint="do this", field="spec.cpus"
    )
    async with (
        daemon(tmp_path / "s", lambda _: said(418, msgspec.json.encode(problem))),
        Client(Endpoint(socket=tmp_path / "s")) as client,
    ):
        with pytest.raises(BY_CODE[code]) as caught:
            await client.greeting()
    error = caught.value
    assert (error.message, error.hint, error.field) == ("what is wrong", "do this", "spec.cpus")


@pytest.mark.parametrize("status", [200, 302, 500])
@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b'{"code": 3}', b"\xff\xfe", b"<html>"])
async def test_nonsense_is_broken(body: bytes, status: int, tmp_path: Path) -> None:
    async with (
        daemon(tmp_path / "s", lambda _: said(status, body)),
        Client(Endpoint(socket=tmp_path / "s")) as client,
    ):
        with pytest.raises(Broken):
            await client.greeting()


def test_a_status_says_something_where_the_body_does_not() -> None:
    assert isinstance(from_body(401, b""), Unauthenticated)
    assert isinstance(from_body(403, b""), Denied)
    assert isinstance(from_body(503, b"busy"), Unreachable)


async def test_a_broken_connection_is_tried_again_with_the_same_key(tmp_path: Path) -> None:
    async with daemon(tmp_path / "s", lambda _: b"") as seen, Client(Endpoint(socket=tmp_path / "s")) as client:
        with pytest.raises(Unreachable) as caught:
            await client.instances.launch(InstanceSpec(image="tiny"))
    assert not isinstance(caught.value, NotRunning)
    keys = {
        line for request in seen for line in request.split(b"\r\n") if line.lower().startswith(b"idempotency-key")
    }
    assert len(seen) >= 2
    assert len(keys) == 1


async def test_a_program_is_never_run_twice(tmp_path: Path) -> None:
    async with daemon(tmp_path / "s", lambda _: b"") as seen, Client(Endpoint(socket=tmp_path / "s")) as client:
        with pytest.raises(Unreachable):
            await client.instances.execute("web1", ["reboot"])
    assert len(seen) == 1


async def test_half_an_answer_is_an_error(tmp_path: Path) -> None:
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"
    async with daemon(tmp_path / "s", lambda _: half), Client(Endpoint(socket=tmp_path / "s")) as client:
        with pytest.raises(AtollError):
            [chunk async for chunk in client.instances.pull("web1", "/etc/hostname")]


async def test_nobody_listens(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "x" / "y"):
        async with Client(Endpoint(socket=path)) as client:
            with pytest.raises(NotRunning):
                await client.greeting()


async def test_an_unusable_endpoint_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        Endpoint()
    with pytest.raises(Invalid):
        Endpoint(url="http://127.0.0.1:1", token="x")
    async with Client(Endpoint(socket=tmp_path / ("x" * 120))) as client:
        with pytest.raises(Invalid):
            await client.greeting()
    async with Client(Endpoint(url="https://127.0.0.1:1", token="a\nb")) as client:
        with pytest.raises(Unauthenticated):
            await client.greeting()
    async with Client(Endpoint(url="https://127.0.0.1:1", token="x", fingerprint="zz")) as client:
        with pytest.raises(Invalid):
            await client.greeting()


def test_names_cannot_leave_their_place_in_a_path() -> None:
    assert path_of("projects", "../x", "a/b?c#d") == "/v1/projects/..%2Fx/a%2Fb%3Fc%23d"
    assert query_of({"a": None, "b": True, "c": ["x", "y"], "d": 1.5}) == "?b=true&c=x&c=y&d=1.5"


def test_a_close_frame_says_why() -> None:
    assert from_close(1000, "the guest's console ended") is None
    assert isinstance(from_close(4404, "absent: there is no instance x"), BY_CODE["absent"])
    assert isinstance(from_close(1011, "what"), Broken)
