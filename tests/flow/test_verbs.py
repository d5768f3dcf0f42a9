"""Instance verbs on fakes: what each does, what each refuses, and that a failure anywhere leaves nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atoll.base import clock
from atoll.base.errors import (
    Absent,
    AtollError,
    Broken,
    Conflict,
    Exhausted,
    Exists,
    Invalid,
    Refused,
    Unreachable,
)
from atoll.base.ids import Bytes
from atoll.instance.admission import HostMemory
from atoll.instance.model import MAY_FOLLOW, DiskSpec, Exit, Limits, NicSpec, Power, Restart, State
from atoll.instance.verbs.args import Changes, HostPort, NicChanges
from atoll.network.model import Forward
from atoll.operation.model import OperationStatus
from tests.kit.world import GIB, World

MIB = 1 << 20


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path).boot() as made:
        yield made


async def test_launch_runs_with_everything_on_record(world: World) -> None:
    web = await world.launch(cpus=2)
    assert (web.status.state, web.status.generation) == (State.RUNNING, 1)
    [disk], [nic] = web.instance.hardware.disks, web.instance.hardware.nics
    assert (await world.here.supplies.storage.attachment(disk.volume)).generation == 1
    assert nic.addresses
    assert nic.slot
    assert world.pool.held.keys() == {disk.volume}
    assert (await world.engine.observe())[web.id].pid


async def test_launch_without_start_and_then_start(world: World) -> None:
    web = await world.launch(start=False)
    assert (web.status.state, web.instance.spec.power, web.status.generation) == (State.STOPPED, Power.OFF, 0)
    await world.do("instance.start")
    web = await world.get()
    assert (web.status.state, web.instance.spec.power, web.status.generation) == (State.RUNNING, Power.ON, 1)


FAULTS: list[tuple[str, str, AtollError]] = [
    ("pool", "create", Exhausted("full")),
    ("pool", "attach", Broken("damaged")),
    ("net", "up", Broken("no bridge")),
    ("net", "plug", Broken("no tap")),
    ("engine", "furnish", Invalid("no such machine")),
    ("engine", "start", Unreachable("silent")),
]


@pytest.mark.parametrize(("part", "call", "error"), FAULTS)
async def test_failed_launch_leaves_nothing(world: World, part: str, call: str, error: AtollError) -> None:
    await world.launch("first")
    await world.do("instance.delete", "first", force=True)
    assert await world.leftovers() == []
    target: Any = next(iter(world.nets.values())) if part == "net" else getattr(world, part)
    target.fail(call, error)
    with pytest.raises(type(error), match=error.message):
        await world.launch()
    assert await world.leftovers() == []
    assert (await world.launch()).status.state is State.RUNNING


async def test_cancelled_launch_leaves_nothing(world: World) -> None:
    hang = asyncio.Event()

    class Slow(type(world.engine)):  # type: ignore[misc]
        async def start(self, plan: Any) -> None:
            await super().start(plan)
            hang.set()
            await asyncio.Event().wait()

    world.engine.__class__ = Slow
    from atoll.instance.model import InstanceSpec

    operation = await world.submit("instance.launch", spec=InstanceSpec(image="tiny"))
    await hang.wait()
    await world.operations.cancel(operation.id)
    ended = await world.operations.wait(operation.id, 5)
    assert ended.status is OperationStatus.CANCELLED
    assert await world.leftovers() == []


@pytest.mark.parametrize(
    ("spec", "error", "field"),
    [
        ({"memory": Bytes(8 * MIB)}, Invalid, "spec.memory"),
        ({"memory": Bytes(65 * GIB)}, Exhausted, "spec.memory"),
        ({"root": DiskSpec(size=Bytes(MIB))}, Invalid, "spec.root.size"),
        ({"root": DiskSpec(pool="tape")}, Absent, "pool"),
        ({"host": "elsewhere"}, Invalid, "spec.host"),
    ],
)
async def test_bad_wishes_are_refused_with_their_field(
    world: World, spec: dict[str, Any], error: type[AtollError], field: str
) -> None:
    with pytest.raises(error) as caught:
        await world.launch(**spec)
    assert caught.value.field == field
    assert await world.leftovers() == []


async def test_names(world: World) -> None:
    await world.launch()
    with pytest.raises(Exists, match="web already exists"):
        await world.launch()
    with pytest.raises(Invalid):
        await world.launch("Bad_Name")
    with pytest.raises(Absent) as caught:
        await world.do("instance.start", "wep")
    assert caught.value.hint == "did you mean web?"


async def test_ten_launches_at_once_have_ten_addresses(world: World) -> None:
    await asyncio.gather(*(world.launch(f"vm{n}") for n in range(10)))
    views = await world.here.book.all()
    assert {view.status.state for view in views} == {State.RUNNING}
    assert len({nic.addresses for view in views for nic in view.instance.hardware.nics}) == 10


async def test_memory_is_never_promised_twice(world: World) -> None:
    world.memory = HostMemory(Bytes(4 * GIB), Bytes(0))
    results = await asyncio.gather(
        *(world.launch(f"vm{n}", memory=Bytes(GIB)) for n in range(6)), return_exceptions=True
    )
    assert [type(r) for r in results if isinstance(r, Exception)] == [Exhausted] * 3
    assert len(await world.here.book.all()) == 3
    world.memory = HostMemory(Bytes(4 * GIB), Bytes(0), overcommit=2.0)
    await world.launch("more", memory=Bytes(GIB))


MAC = "02:00:00:00:00:01"
VERBS: dict[str, dict[str, Any]] = {
    "instance.start": {},
    "instance.stop": {},
    "instance.restart": {},
    "instance.pause": {},
    "instance.resume": {},
    "instance.delete": {},
    "instance.delete --force": {"force": True},
    "instance.rename": {"to": "other"},
    "instance.set": {"changes": Changes(description="x")},
    "instance.eject": {},
    "instance.export": {},
    "instance.insert": {"image": "tiny"},
    "instance.nic-add": {"nic": NicSpec()},
    "instance.nic-set": {"mac": MAC, "changes": NicChanges(link=False)},
    "instance.nic-remove": {"mac": MAC},
}
NICS = [verb for verb in VERBS if "nic" in verb]
NO = None
# What each verb leads to from each state: the state after it, or None where it is refused with a reason.
TABLE: dict[State, dict[str, State | str | None]] = {
    State.CREATING: dict.fromkeys(VERBS, NO) | {"instance.rename": State.CREATING, "instance.set": State.CREATING},
    State.STOPPED: {
        "instance.start": State.RUNNING, "instance.stop": State.STOPPED, "instance.restart": NO,
        "instance.pause": NO, "instance.resume": NO, "instance.delete": "absent",
        "instance.delete --force": "absent", "instance.rename": State.STOPPED, "instance.set": State.STOPPED,
        "instance.eject": NO, "instance.insert": NO,
    },
    State.STARTING: dict.fromkeys(VERBS, NO) | {"instance.rename": State.STARTING, "instance.set": State.STARTING},
    State.RUNNING: {
        "instance.start": State.RUNNING, "instance.stop": State.STOPPED, "instance.restart": State.RUNNING,
        "instance.pause": State.PAUSED, "instance.resume": State.RUNNING, "instance.delete": NO,
        "instance.delete --force": "absent", "instance.rename": State.RUNNING, "instance.set": State.RUNNING,
        "instance.eject": NO, "instance.insert": NO,
    },
    State.PAUSED: {
        "instance.start": NO, "instance.stop": State.STOPPED, "instance.restart": State.RUNNING,
        "instance.pause": State.PAUSED, "instance.resume": State.RUNNING, "instance.delete": NO,
        "instance.delete --force": "absent", "instance.rename": State.PAUSED, "instance.set": State.PAUSED,
        "instance.eject": NO, "instance.insert": NO,
    },
    State.STOPPING: {
        "instance.start": NO, "instance.stop": State.STOPPED, "instance.restart": State.RUNNING,
        "instance.pause": NO, "instance.resume": NO, "instance.delete": NO,
        "instance.delete --force": "absent", "instance.rename": State.STOPPING, "instance.set": State.STOPPING,
        "instance.eject": NO, "instance.insert": NO,
    },
    State.MIGRATING: {
        **dict.fromkeys(VERBS, NO), "instance.rename": State.MIGRATING, "instance.set": State.MIGRATING,
    },
    State.BROKEN: {
        "instance.start": State.RUNNING, "instance.stop": State.STOPPED, "instance.restart": NO,
        "instance.pause": NO, "instance.resume": NO, "instance.delete": "absent",
        "instance.delete --force": "absent", "instance.rename": State.BROKEN, "instance.set": State.BROKEN,
        "instance.eject": NO, "instance.insert": NO,
    },
    State.GONE: dict.fromkeys(VERBS, NO) | {"instance.delete": "absent", "instance.delete --force": "absent"},
}  # fmt: skip
for state, row in TABLE.items():
    settled_ = state in (State.STOPPED, State.RUNNING, State.PAUSED, State.BROKEN)
    row.update(dict.fromkeys(NICS, state if settled_ else NO))
    row["instance.export"] = state if state in (State.STOPPED, State.BROKEN) else NO


def test_the_table_is_whole() -> None:
    assert TABLE.keys() == set(State) == MAY_FOLLOW.keys()
    assert all(row.keys() == VERBS.keys() for row in TABLE.values())


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", State)
async def test_every_verb_in_every_state(world: World, state: State, verb: str) -> None:
    web = await world.launch(nics=(NicSpec(mac=MAC),))
    if state not in (State.RUNNING, State.STOPPING, State.MIGRATING, State.PAUSED):
        await world.do("instance.stop")
        web = await world.get()
    if state is State.PAUSED:
        await world.do("instance.pause")
        web = await world.get()
    await world.here.book.write_status(web, msgspec.structs.replace(web.status, state=state))
    expected = TABLE[state][verb]
    name, args = verb.removesuffix(" --force"), VERBS[verb]
    if expected is None:
        with pytest.raises(Refused) as caught:
            await world.do(name, **args)
        assert caught.value.message
        assert (await world.get()).status.state is state
        return
    await world.do(name, **args)
    if expected == "absent":
        assert await world.leftovers() == []
    else:
        found = await world.get("other" if name == "instance.rename" else "web")
        assert found.status.state is expected


async def test_restart_is_a_new_generation_and_applies_what_waited(world: World) -> None:
    web = await world.launch(memory=Bytes(GIB))
    world.engine.fail("resize", Refused("memory cannot shrink while it runs"))
    await world.do("instance.set", changes=Changes(memory=Bytes(512 * MIB)))
    assert (await world.get()).status.restart_for == ("memory",)
    await world.do("instance.restart")
    again = await world.get()
    assert (again.status.generation, again.status.restart_for) == (web.status.generation + 1, ())


async def test_set_is_guarded_by_the_revision(world: World) -> None:
    web = await world.launch()
    await world.do("instance.set", changes=Changes(cpus=2, labels={"a": "1", "b": "2"}), revision=web.revision)
    with pytest.raises(Conflict):
        await world.do("instance.set", changes=Changes(cpus=3), revision=web.revision)
    await world.do("instance.set", changes=Changes(labels={"a": ""}, limits=Limits(cpu=0.5)))
    spec = (await world.get()).instance.spec
    assert (spec.cpus, spec.labels, spec.limits.cpu) == (2, {"b": "2"}, 0.5)
    assert "limit" in world.engine.calls
    with pytest.raises(Invalid, match="made to grow to"):
        await world.do("instance.set", changes=Changes(cpus=900))


async def test_rename_moves_name_ports_and_image_use(world: World) -> None:
    web = await world.launch()
    await world.launch("db")
    with pytest.raises(Exists):
        await world.do("instance.rename", to="db")
    await world.do("instance.rename", to="shop")
    shop = await world.get("shop")
    [network] = await world.here.supplies.networks.all()
    assert shop.id == web.id
    assert {port.name for port in await world.here.supplies.networks.ports(network.id)} == {"shop", "db"}
    assert {use.user for use in await world.here.supplies.images.uses(shop.instance.image)} == {"shop", "db"}


async def settled(world: World, state: State, name: str = "web") -> Any:
    for _ in range(200):
        view = await world.get(name)
        if view.status.state is state:
            return view
        await asyncio.sleep(0.02)
    raise AssertionError(f"{name} is {view.status.state}, not {state}")


async def test_a_death_is_recorded_with_its_exit(world: World) -> None:
    web = await world.launch()
    world.engine.die(web.id, Exit("killed by signal 9", False, clock.now(), ("last words",)))
    dead = await settled(world, State.STOPPED)
    assert (dead.status.exit.reason, dead.status.exit.lines) == ("killed by signal 9", ("last words",))
    assert [n for net in world.nets.values() for n in await net.ports()] == []


@pytest.mark.parametrize(
    ("policy", "clean", "comes_back"),
    [
        (Restart.NO, False, False),
        (Restart.ON_FAILURE, False, True),
        (Restart.ON_FAILURE, True, False),
        (Restart.ALWAYS, True, True),
    ],
)
async def test_restart_policy(world: World, policy: Restart, clean: bool, comes_back: bool) -> None:
    web = await world.launch(restart=policy)
    world.engine.die(web.id, Exit("ended", clean, clock.now()))
    await asyncio.sleep(0.2)
    back = await settled(world, State.RUNNING if comes_back else State.STOPPED)
    assert (back.status.generation, back.status.restarts) == ((2, 1) if comes_back else (1, 0))
    if not comes_back:
        return
    history = await world.operations.book.latest()
    assert (history[0].verb, history[0].actor.name) == ("instance.revive", "restart-policy")


async def test_stopping_by_hand_is_not_undone_by_the_policy(world: World) -> None:
    await world.launch(restart=Restart.ALWAYS)
    await world.do("instance.stop")
    await asyncio.sleep(0.1)
    assert (await world.get()).status.state is State.STOPPED


async def test_a_nic_is_added_changed_and_removed(world: World) -> None:
    web = await world.launch()
    await world.do("instance.nic-add", nic=NicSpec(mac=MAC, forwards=(Forward(8080, 80),)))
    [first, second] = (await world.get()).instance.hardware.nics
    assert (second.mac, first.slot != second.slot) == (MAC, True)
    assert [nic.slot for nic in world.guests.guests[web.id, web.status.generation].plan.nics] == [
        first.slot,
        second.slot,
    ]
    with pytest.raises(Exists, match="8080/tcp of this host leads to web"):
        await world.launch("other", nics=(NicSpec(forwards=(Forward(8080, 80),)),))
    with pytest.raises(Exists, match="is web's"):
        await world.launch("other", nics=(NicSpec(mac=MAC),))
    changes = NicChanges(link=False, add_forwards=(Forward(9090, 90),), remove_forwards=(HostPort(8080),))
    await world.do("instance.nic-set", mac=MAC, changes=changes)
    spec = (await world.get()).instance.spec.nics[1]
    assert (spec.link, spec.forwards) == (False, (Forward(9090, 90),))
    assert [nic.link for nic in world.guests.guests[web.id, web.status.generation].plan.nics] == [True, False]
    await world.launch("other", nics=(NicSpec(forwards=(Forward(8080, 80),)),))
    await world.do("instance.nic-remove", mac=MAC)
    assert len((await world.get()).instance.hardware.nics) == len((await world.get()).instance.spec.nics) == 1
    [network] = await world.here.supplies.networks.all()
    assert {port.mac for port in await world.here.supplies.networks.ports(network.id)} & {MAC} == set()
    with pytest.raises(Absent, match="has no NIC"):
        await world.do("instance.nic-remove", mac=MAC)
    for name in ("web", "other"):
        await world.do("instance.delete", name, force=True)
    assert await world.leftovers() == []


@pytest.mark.parametrize(
    ("part", "call", "error"),
    [
        ("net", "plug", Broken("no tap")),
        ("engine", "add_nic", Broken("no slot")),
        ("net", "up", Broken("no bridge")),
    ],
)
async def test_a_nic_that_cannot_be_leaves_nothing(world: World, part: str, call: str, error: AtollError) -> None:
    await world.launch()
    before = await world.leftovers()
    target: Any = next(iter(world.nets.values())) if part == "net" else world.engine
    target.fail(call, error)
    with pytest.raises(type(error), match=error.message):
        await world.do("instance.nic-add", nic=NicSpec())
    view = await world.get()
    assert len(view.instance.hardware.nics) == len(view.instance.spec.nics) == 1
    assert len(await world.leftovers()) == len(before)


async def test_a_nic_that_must_wait_is_said_to(world: World) -> None:
    await world.launch()
    world.engine.fail("add_nic", Refused("a microvm takes no devices while it runs"), times=1)
    await world.do("instance.nic-add", nic=NicSpec(mac=MAC))
    assert (await world.get()).status.restart_for == ("nics",)
    await world.do("instance.restart")
    web = await world.get()
    assert web.status.restart_for == ()
    assert len(world.guests.guests[web.id, web.status.generation].plan.nics) == 2


async def test_a_setting_that_fails_is_taken_back(world: World) -> None:
    await world.launch(nics=(NicSpec(mac=MAC),))
    next(iter(world.nets.values())).fail("plug", Refused("port 80/tcp of this host is in use"))
    with pytest.raises(Refused, match="in use"):
        await world.do("instance.nic-set", mac=MAC, changes=NicChanges(add_forwards=(Forward(80, 80),)))
    assert (await world.get()).instance.spec.nics == (NicSpec(mac=MAC),)
    await world.launch("other", nics=(NicSpec(forwards=(Forward(80, 80),)),))
