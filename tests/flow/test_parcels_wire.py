"""Whole instances over the wire: through client, HTTP and routes, with real records and verbs below."""

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from atoll.api.app import build
from atoll.api.server import serve
from atoll.base.errors import Absent, Exists, Invalid, Unreachable
from atoll.client import Client, Endpoint, Fitting
from atoll.operation.model import OperationStatus
from tests.flow.test_parcels import SECRET, furnished, roots, world
from tests.kit.app import BookReads, make_kit
from tests.kit.world import World

__all__ = ["roots", "world"]


@pytest.fixture
async def client(world: World, tmp_path: Path) -> AsyncIterator[Client]:
    """The API over the world's records."""
    kit = await make_kit()
    services = dataclasses.replace(
        kit.services,
        instances=BookReads(world.here.book),
        operations=world.operations,
        parcels=world.parcels,
        seeds=world.here.supplies.boots.seeds,
    )
    serving = await serve(build(services), unix=tmp_path / "s")
    async with Client(Endpoint(socket=tmp_path / "s")) as made:
        yield made
    await serving.close()
    await kit.close()


def padded(world: World) -> None:
    """Its disks take more than any buffer on the way."""
    copy = world.pool.copy_out

    async def large(volume: Any, target: Path, **rest: Any) -> None:
        await copy(volume, target, **rest)
        with target.open("ab") as file:
            file.write(bytes(48 << 20))

    world.pool.copy_out = large  # type: ignore[method-assign]


async def test_over_the_wire_it_leaves_and_comes(world: World, client: Client) -> None:
    padded(world)
    await furnished(world)
    asked = await client.parcels.export("web")
    async with client.parcels.fetch(asked) as (length, chunks):
        file = b"".join([chunk async for chunk in chunks])
    assert len(file) == length > 96 << 20
    assert (await client.operations.wait(asked)).status is OperationStatus.DONE
    with pytest.raises(Exists):  # said at once: most of the file is never sent
        await client.parcels.send(pieces(file), Fitting())
    brought = await client.parcels.send(pieces(file), Fitting(name="copy"), length=len(file))
    ended = await client.operations.wait(brought)
    assert (ended.subject.name, ended.status) == ("copy", OperationStatus.DONE)
    copy = await client.instances.get("copy")
    assert await world.here.supplies.boots.seeds.get("default", copy.instance.seed) == SECRET
    with pytest.raises(Absent):
        async with client.parcels.fetch(asked):
            pass
    with pytest.raises(Invalid, match="cut off"):
        await client.parcels.send(pieces(file[: len(file) // 2]), Fitting(name="half"))
    assert list((world.root / "parcels").iterdir()) == []


async def test_a_client_that_hangs_up_ends_the_export(world: World, client: Client) -> None:
    padded(world)
    await furnished(world)
    asked = await client.parcels.export("web")
    async with client.parcels.fetch(asked) as (_, chunks):
        await anext(aiter(chunks))
    with pytest.raises(Unreachable, match="hung up"):
        await client.operations.wait(asked)
    assert list((world.root / "parcels").iterdir()) == []


async def pieces(file: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(file), 1 << 20):
        yield file[at : at + (1 << 20)]
