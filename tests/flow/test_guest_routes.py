"""What reaches into a guest, in every state of it: answered, or refused with its state and the way on."""

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atoll.api.app import all_routes, build
from atoll.api.server import serve
from atoll.base.errors import Exists, Refused
from atoll.client import Client, Endpoint
from atoll.instance.model import InstanceSpec, Kind, State
from tests.flow.test_verbs import TABLE, VERBS
from tests.kit.app import BookReads, make_kit
from tests.kit.world import World

Use = Callable[[Client], Awaitable[Any]]


async def _console(client: Client) -> None:
    async with client.instances.console("web") as console:
        assert await console.read()


async def _pull(client: Client) -> None:
    async for _ in client.instances.pull("web", "/etc/hostname"):
        pass


USES: dict[str, Use] = {
    "instance.exec": lambda client: client.instances.execute("web", ("true",)),
    "instance.push": lambda client: client.instances.push("web", "/etc/hostname", b"web"),
    "instance.pull": _pull,
    "instance.addresses": lambda client: client.instances.addresses("web"),
    "instance.ready": lambda client: client.instances.ready("web", timeout=1),
    "instance.console": _console,
    "instance.stats": lambda client: client.instances.stats("web"),
    "instance.screenshot": lambda client: client.instances.screenshot("web"),
    "instance.display": lambda client: client.instances.display("web"),
    "instance.cloud-init": lambda client: client.instances.cloud_init("web"),
    "instance.log": lambda client: client.instances.log("web"),
}
AWAKE = frozenset({"instance.exec", "instance.push", "instance.pull", "instance.addresses", "instance.cloud-init"})
"""What a paused guest cannot answer."""
ALWAYS = frozenset({"instance.log"})
"""Also of what ended."""
READS = frozenset({"instance.list", "instance.list-all", "instance.read"})
"""Of records alone: a state is what they tell."""
OF_ITS_OWN = frozenset(
    {"instance.launch", "instance.revive", "instance.import", "instance.mount-add", "instance.mount-remove"}
)
"""In no state of a VM: a launch and an import make one, the restart policy revives what has died, containers have
mounts."""


def answers(use: str, state: State) -> bool:
    if use in ALWAYS:
        return True
    return state is State.RUNNING or (state is State.PAUSED and use not in AWAKE)


def test_no_way_to_an_instance_is_left_out() -> None:
    ways = {route.action for route in all_routes("x") if route.action.startswith("instance.")} | {
        "instance.console"
    }
    verbs = {verb.removesuffix(" --force") for verb in VERBS}
    assert ways | OF_ITS_OWN == verbs | USES.keys() | READS | OF_ITS_OWN


async def test_no_verb_is_left_out(world: World) -> None:
    known = {name for name in world.operations.verbs if name.startswith("instance.")}
    assert known == {verb.removesuffix(" --force") for verb in VERBS} | OF_ITS_OWN
    assert TABLE.keys() == set(State)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path).boot() as made:
        yield made


@pytest.fixture
async def client(world: World, tmp_path: Path) -> AsyncIterator[Client]:
    """The API over the world's records and engine."""
    kit = await make_kit()
    services = dataclasses.replace(
        kit.services,
        instances=BookReads(world.here.book),
        engines={Kind.VM: world.engine},
        operations=world.operations,
    )
    serving = await serve(build(services), unix=tmp_path / "s")
    async with Client(Endpoint(socket=tmp_path / "s")) as made:
        yield made
    await serving.close()
    await kit.close()


async def brought_to(world: World, state: State) -> None:
    web = await world.launch()
    world.engine.host.guests[web.id, web.status.generation].files["/etc/hostname"] = b"web"
    if state is State.PAUSED:
        await world.do("instance.pause")
    elif state is not State.RUNNING:
        await world.do("instance.stop")
    view = await world.get()
    if view.status.state is not state:
        await world.here.book.write_status(view, msgspec.structs.replace(view.status, state=state))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("state", State)
async def test_every_use_in_every_state(world: World, client: Client, state: State, use: str) -> None:
    await brought_to(world, state)
    if answers(use, state):
        await USES[use](client)
        return
    with pytest.raises(Refused) as caught:
        await USES[use](client)
    assert state in caught.value.message


@pytest.mark.parametrize("state", State)
async def test_a_name_is_taken_in_every_state(world: World, state: State) -> None:
    await brought_to(world, state)
    with pytest.raises(Exists, match="web already exists"):
        await world.do("instance.launch", spec=InstanceSpec(image="tiny"))
    assert (await world.get()).status.state is state
