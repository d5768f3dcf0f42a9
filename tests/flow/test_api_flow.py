"""The API through the typed client, over a real unix socket and real HTTPS, on fakes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from atoll.api import tls
from atoll.api.app import build
from atoll.api.server import Serving, serve
from atoll.api.services import Limits
from atoll.base.errors import (
    Absent,
    AtollError,
    Compacted,
    Conflict,
    Exists,
    Invalid,
    Refused,
    Unauthenticated,
)
from atoll.base.ids import Bytes
from atoll.client import Client, Endpoint, NotRunning
from atoll.instance.model import InstanceSpec, State
from atoll.instance.verbs.args import Changes
from atoll.operation.model import News, OperationStatus, Progress, Subject
from tests.kit.app import HOST, Kit, make_kit

TINY = InstanceSpec(image="tiny", memory=64 << 20)  # type: ignore[arg-type]


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    kit = await make_kit(limits=Limits(file=1 << 20, heartbeat=0.2))
    yield kit
    await kit.close()


@pytest.fixture
async def serving(kit: Kit, tmp_path: Path) -> AsyncIterator[Serving]:
    files = tls.ensure(tmp_path / "tls")
    serving = await serve(kit.app, unix=tmp_path / "s", tcp=("127.0.0.1", 0), tls=files)
    yield serving
    await serving.close()


@pytest.fixture
async def client(serving: Serving) -> AsyncIterator[Client]:
    async with Client(Endpoint(socket=serving.unix)) as client:
        yield client


def over_tcp(serving: Serving, tmp_path: Path, token: str, fingerprint: str = "") -> Client:
    assert serving.address is not None
    trusted = fingerprint or tls.fingerprint(tmp_path / "tls" / "tls.crt")
    return Client(Endpoint(url=f"https://127.0.0.1:{serving.address[1]}", token=token, fingerprint=trusted))


async def launch(client: Client, name: str) -> None:
    await client.operations.wait(await client.instances.launch(TINY, name=name))


async def test_an_instance_lives_and_dies(client: Client) -> None:
    operation = await client.instances.launch(TINY, name="web1")
    assert operation.subject.name == "web1"
    assert operation.actor.kind == "uid"
    done = await client.operations.wait(operation)
    assert done.status is OperationStatus.DONE
    view = await client.instances.get("web1")
    assert view.status.state is State.RUNNING
    assert [each.name for each in await client.instances.list()] == ["web1"]
    assert await client.instances.list(labels={"no": "such"}) == []
    assert await client.instances.list(states=[State.STOPPED]) == []
    for change in (
        client.instances.pause("web1"),
        client.instances.resume("web1"),
        client.instances.stop("web1", grace=0),
        client.instances.start("web1"),
        client.instances.restart("web1"),
        client.instances.rename("web1", "web2"),
        client.instances.change("web2", Changes(cpus=2), revision=0),
        client.instances.delete("web2", force=True),
    ):
        await client.operations.wait(await change)
    assert await client.instances.list() == []
    verbs = [each.verb for each in await client.history()]
    assert verbs[0] == "instance.delete"
    assert verbs[-1] == "instance.launch"
    assert (await client.instances.history("web2"))[0].verb == "instance.delete"


async def test_an_operations_error_is_raised_as_it_was(client: Client) -> None:
    await launch(client, "web1")
    with pytest.raises(Exists) as caught:
        await launch(client, "web1")
    assert caught.value.hint == "choose another name"
    with pytest.raises(Refused):
        await client.operations.wait(await client.instances.delete("web1"))


async def test_a_made_up_name_survives_sending_again(client: Client, kit: Kit) -> None:
    first = await client.instances.launch(TINY, key="same")
    await client.operations.wait(first)
    again = await client.instances.launch(TINY, key="same")
    assert again.id == first.id
    assert again.subject.name == first.subject.name
    with pytest.raises(Invalid) as caught:
        await client.instances.launch(TINY, name="other", key="same")
    assert caught.value.field == "Idempotency-Key"


async def test_a_stale_change_is_refused_at_once(client: Client) -> None:
    await launch(client, "web1")
    before = await client.instances.get("web1")
    await client.operations.wait(await client.instances.change("web1", Changes(cpus=2), revision=before.revision))
    with pytest.raises(Conflict):
        await client.instances.change("web1", Changes(cpus=3), revision=before.revision)


async def test_progress_comes_while_one_waits(client: Client, kit: Kit) -> None:
    kit.pace.hold()
    seen: list[Progress] = []
    operation = await client.instances.launch(TINY, name="slow")
    waiting = asyncio.create_task(client.operations.wait(operation, seen.append))
    await asyncio.sleep(0.3)  # it listens by now
    kit.pace.go()
    await waiting
    assert [progress.step for progress in seen] == ["finish"]


async def test_cancel_takes_back(client: Client, kit: Kit) -> None:
    kit.pace.hold()
    operation = await client.instances.launch(TINY, name="slow")
    while not (await client.operations.get(operation.id)).steps:
        await asyncio.sleep(0.01)
    await client.operations.cancel(operation.id)
    with pytest.raises(AtollError) as caught:
        await client.operations.wait(operation)
    assert caught.value.code == "cancelled"
    running = await client.operations.list(status=OperationStatus.RUNNING)
    assert running == []


async def test_inside_the_guest(client: Client, kit: Kit) -> None:
    await launch(client, "web1")
    outcome = await client.instances.execute("web1", ["echo", "hé", "there"], input=b"\x00\xff")
    assert outcome.stdout == "hé there".encode() + b"\x00\xff"
    assert outcome.stderr == b"\xff"
    with pytest.raises(Absent):
        await client.instances.execute("web1", ["missing"])
    with pytest.raises(AtollError) as caught:
        await client.instances.execute("web1", ["crash", "secret-argument"])
    assert caught.value.code == "bug"
    data = bytes(range(256)) * 2000
    pushed = await client.instances.push("web1", "/tmp/a b", data, mode=0o755)
    assert (pushed.size, pushed.mode) == (len(data), 0o755)
    assert b"".join([chunk async for chunk in client.instances.pull("web1", "/tmp/a b")]) == data
    with pytest.raises(Absent):
        async for _ in client.instances.pull("web1", "/none"):
            pass
    with pytest.raises(Invalid) as large:
        await client.instances.push("web1", "/tmp/large", bytes(2 << 20))
    assert "larger" in large.value.message
    assert (await client.instances.stats("web1")).cpu_seconds == 1.5
    assert await client.instances.log("web1", limit=4) == b"6.1\n"
    assert "10.9.8.7" in (await client.instances.addresses("web1"))["52:54:00:12:34:56"]
    await client.instances.ready("web1")
    audit = [(each.verb, bytes(each.request)) for each in await client.instances.history("web1")]
    assert "instance.exec" in dict(audit)
    assert "instance.push" in dict(audit)
    assert not any(b"secret-argument" in request for _, request in audit)


async def test_a_console_talks_and_says_why_it_ends(client: Client, kit: Kit) -> None:
    await launch(client, "web1")
    async with client.instances.console("web1") as console:
        assert await console.read() == b"login: "
        await console.write(b"\x00root\r\xff")
        assert await console.read() == b"\x00root\r\xff"
        await console.write(b"bye")
        assert await console.read() == b""
        assert console.reason == "the guest's console ended"
    with pytest.raises(Absent):
        async with client.instances.console("none") as console:
            await console.read()
    kit.engine.agent = False
    with pytest.raises(Refused):
        async with client.instances.console("web1") as console:
            await console.read()


async def test_events_resume_by_id(client: Client, kit: Kit) -> None:
    await launch(client, "web1")
    news = client.events.follow(since="0", kinds=["operation."], project="default")
    first = await anext(news)
    second = await anext(news)
    assert (first.kind, second.kind) == ("operation.started", "operation.done")
    rest = client.events.follow(since=first.id, kinds=["operation.done", "operation.started"])
    assert (await anext(rest)).id == second.id
    kit.services.events.publish("image.built", Subject("image", "default", "tiny"))
    kit.services.events.publish("operation.other", Subject("image", "default", "tiny"))
    assert (await anext(news)).kind == "operation.other"
    await news.aclose()  # type: ignore[attr-defined]
    await rest.aclose()  # type: ignore[attr-defined]


async def test_events_go_on_after_a_restart_of_the_daemon(kit: Kit, tmp_path: Path) -> None:
    serving = await serve(kit.app, unix=tmp_path / "s")
    async with Client(Endpoint(socket=tmp_path / "s")) as client:
        kit.services.events.publish("a.one", Subject("a"))
        news = client.events.follow(since="0")
        assert (await anext(news)).kind == "a.one"
        waiting = asyncio.create_task(collect(news, 2))
        await serving.close()
        kit.services.events.publish("a.two", Subject("a"))
        serving = await serve(build(kit.services), unix=tmp_path / "s")
        kit.services.events.publish("a.three", Subject("a"))
        assert [each.kind for each in await waiting] == ["a.two", "a.three"]
        await news.aclose()  # type: ignore[attr-defined]
    await serving.close()


async def collect(news: AsyncIterator[News], count: int) -> list[News]:
    return [await anext(news) for _ in range(count)]


async def test_events_too_old_are_a_clear_error(client: Client, kit: Kit) -> None:
    for number in range(5200):
        kit.services.events.publish("a.b", Subject("a", name=str(number)))
    while int((await collect(client.events.follow(since="0"), 1))[0].id) < 3:  # the first are let go in batches
        await asyncio.sleep(0.05)
    with pytest.raises(Compacted):
        await anext(client.events.follow(since="1"))


async def test_the_rest_of_the_nouns(client: Client) -> None:
    assert (await client.greeting()).host == HOST
    assert (await client.health()).ready
    host = (await client.hosts.list())[0]
    assert host == await client.hosts.get(host.id)
    assert (await client.hosts.probe(host.id, refresh=True))["cpus"] == 4
    shown = await client.networks.get("default")
    assert (await client.networks.list())[0] == msgspec.structs.replace(shown, warnings=())
    assert shown.warnings == ("a firewall drops what is forwarded",)
    assert (await client.pools.list())[0] == await client.pools.get("default")
    assert [view.volume.name for view in await client.volumes.list()] == ["root"]
    assert await client.within("lab").volumes.list() == []
    await client.operations.wait(await client.volumes.create("data", Bytes(1 << 30), format="raw"))
    await client.operations.wait(await client.volumes.attach("data", "web", bus="scsi"))
    await client.operations.wait(await client.volumes.detach("data", force=True))
    await client.operations.wait(await client.volumes.grow("data", Bytes(2 << 30)))
    await client.operations.wait(await client.volumes.rename("data", "old"))
    old = await client.volumes.get("old")
    assert (old.volume.size, old.volume.format, old.pool) == (2 << 30, "raw", "default")
    await client.operations.wait(await client.volumes.delete("old"))
    await client.operations.wait(await client.pools.create("fast", driver="dir", path="/srv/fast"))
    await client.operations.wait(await client.pools.delete("fast", force=True))
    assert [recipe.name for recipe in await client.images.recipes()] == ["tiny"]
    await client.operations.wait(await client.images.build("tiny"))
    await client.operations.wait(await client.images.rename("tiny", "small"))
    assert [image.name for image in await client.images.list()] == ["small"]
    assert (await client.images.get("small")).manifest.agent
    await client.operations.wait(await client.images.prune())
    await client.operations.wait(await client.images.delete("small"))
    with pytest.raises(Absent) as caught:
        await client.images.build("tyni")
    assert "tiny" in caught.value.hint


async def test_tcp_needs_a_token_that_is_valid_now(client: Client, serving: Serving, tmp_path: Path) -> None:
    made = await client.tokens.create("ci", days=1)
    async with over_tcp(serving, tmp_path, made.secret) as remote:
        assert await remote.instances.list() == []
        operation = await remote.instances.launch(TINY, name="web1")
        assert (operation.actor.kind, operation.actor.name) == ("token", "ci")
        await remote.operations.wait(operation)
        async with remote.instances.console("web1") as console:
            assert await console.read() == b"login: "
        with pytest.raises(Exists):
            await client.tokens.create("ci")
        assert (await client.tokens.list())[0].used
        assert made.secret not in str(await client.tokens.list())
        await client.tokens.revoke("ci")
        with pytest.raises(Unauthenticated):
            await remote.instances.list()
        with pytest.raises(Unauthenticated):
            async with remote.instances.console("web1"):
                pass
        with pytest.raises(Unauthenticated):
            await remote.health()
    with pytest.raises(Absent):
        await client.tokens.revoke("ci")
    for token in ("", "nonsense", "atoll_" + "a" * 43):
        async with over_tcp(serving, tmp_path, token) as stranger:
            with pytest.raises(Unauthenticated):
                await stranger.greeting()


async def test_a_page_of_another_origin_gets_no_console(client: Client, serving: Serving, tmp_path: Path) -> None:
    await launch(client, "web1")
    secret = (await client.tokens.create("browser")).secret
    assert serving.address is not None
    here = f"127.0.0.1:{serving.address[1]}"
    pinned = aiohttp.Fingerprint(bytes.fromhex(tls.fingerprint(tmp_path / "tls" / "tls.crt")))
    headers = {"Authorization": f"Bearer {secret}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=pinned), headers=headers) as session:
        url = f"wss://{here}/v1/projects/default/instances/web1/console"
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await session.ws_connect(url, headers={"Origin": "https://elsewhere.example"})
        assert caught.value.status == 403
        async with session.ws_connect(url, headers={"Origin": f"https://{here}"}) as socket:
            assert (await socket.receive()).data == b"login: "


async def test_another_certificate_is_not_believed(serving: Serving, tmp_path: Path) -> None:
    async with over_tcp(serving, tmp_path, "atoll_x", fingerprint="ab" * 32) as client:
        with pytest.raises(Unauthenticated, match="certificate"):
            await client.greeting()
    assert serving.address is not None
    async with Client(Endpoint(url=f"https://127.0.0.1:{serving.address[1]}", token="atoll_x")) as client:
        with pytest.raises(AtollError):
            await client.greeting()
    crt = tmp_path / "tls" / "tls.crt"
    async with Client(Endpoint(url=f"https://127.0.0.1:{serving.address[1]}", token="atoll_x", ca=crt)) as client:
        with pytest.raises(Unauthenticated, match="token"):  # so far it gets: the certificate is believed
            await client.health()


async def test_nobody_at_home(tmp_path: Path) -> None:
    async with Client(Endpoint(socket=tmp_path / "none")) as client:
        with pytest.raises(NotRunning) as caught:
            await client.instances.list()
    assert "atoll up" in caught.value.hint
