"""NICs added, removed and changed, also while the instance runs.

The record and the port's claims change in one commit that expects the instance's state, so that whoever starts it
at the same time sees it before or after. What runs follows at once where it can, at its next start where not.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar

import msgspec

from atoll.base.errors import Absent, AtollError, Conflict, Invalid, Lacking, Refused
from atoll.base.ids import NetworkId
from atoll.instance import nics
from atoll.instance.book import InstanceView, definition
from atoll.instance.engine import HotNics
from atoll.instance.here import ALIVE, RETRIES, Here, busy
from atoll.instance.model import MAX_NICS, Instance, Nic, NicPlan, NicSpec, State
from atoll.instance.verbs.args import AddNicArgs, RemoveNicArgs, SetNicArgs
from atoll.network.addresses import check_mac, draw_mac
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery, Undoer, UndoStep
from atoll.store.api import Txn
from atoll.store.txn import merge

TAKE_BACK, FINISH = Recovery.TAKE_BACK, Recovery.FINISH
AT_REST = ALIVE | {State.STOPPED, State.BROKEN}
WAITS = "nics"
"""In `restart_for`: a NIC that the running guest has not."""
Change = Callable[[InstanceView], Awaitable[tuple[Instance, Txn]]]


async def write(here: Here, work: RunningWork, view: InstanceView, change: Change) -> InstanceView:
    """Commit what `change` makes of it as it is now, together with what that claims."""
    for _ in range(RETRIES):
        view = await here.present(view.id)
        if view.status.state not in AT_REST:
            raise Refused(f"{view.name} is {view.status.state}", hint="wait until it runs or is stopped")
        instance, claims = await change(view)
        try:
            done = await here.book.write_with(view, instance, claims)
        except Conflict:
            continue
        work.changed(definition(view.id), view.revision, done.revision)
        return done
    raise busy(view)


def hot(here: Here, view: InstanceView) -> HotNics:
    engine = here.engine(view)
    if not isinstance(engine, HotNics):
        raise Lacking(f"{view.name} is a {view.instance.spec.kind}, whose NICs are fixed")
    return engine


async def converge(here: Here, view: InstanceView) -> None:
    """What runs has the NICs of its record; those that must wait are said to."""
    waits = False
    for spec, nic in zip(view.instance.spec.nics, view.instance.hardware.nics, strict=True):
        waits = not await bring(here, view, spec, nic) or waits
    if waits:
        await wait_for_start(here, view)


async def bring(here: Here, view: InstanceView, spec: NicSpec, nic: Nic) -> bool:
    """One NIC into a guest that runs. False: it must wait for the next start. One that ended needs none."""
    plugged = await here.supplies.plug_port(view.name, nic, owner=await here.owner(view))
    try:
        await hot(here, view).add_nic(view.id, NicPlan(nic.mac, nic.slot, plugged, spec.link))
        await hot(here, view).set_link(view.id, nic.slot, up=spec.link)
    except (Refused, Absent):
        return not await here.alive(view)
    return True


async def wait_for_start(here: Here, view: InstanceView) -> None:
    same = view.status.generation
    waits = tuple(sorted({*view.status.restart_for, WAITS}))
    await here.seen(view.id, None, only=lambda now: now.generation == same, restart_for=waits)
    here.tell_of(view, "instance.restart-needed", {"reason": "a NIC waits for the next start"})


class AddNic:
    name = "instance.nic-add"
    args = AddNicArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"claim": TAKE_BACK, "plug": FINISH}

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: AddNicArgs) -> dict[str, str]:
        here = self._here
        view = await here.named(work, args.project, args.name)
        if not work.resumed:
            view = await self._claim(work, view, args.nic)
        nic = view.instance.hardware.nics[-1]
        await work.step("plug", percent=50)
        if view.status.state in ALIVE:
            await converge(here, view)
        return {"mac": nic.mac, "addresses": ", ".join(nic.addresses)}

    async def _claim(self, work: RunningWork, view: InstanceView, wanted: NicSpec) -> InstanceView:
        here, supplies = self._here, self._here.supplies
        hot(here, view)
        network = await supplies.network(view.project, wanted)
        wish, _ = await nics.wish(supplies.groups, view.project, wanted, view.instance.spec.kind)
        # Drawn now where none is given: what takes it back must know it. One that is another's is never taken back.
        wish = msgspec.structs.replace(wish, mac=check_mac(wanted.mac) if wanted.mac else draw_mac())
        nics.refuse_twice(view, wish.mac)
        await work.step("claim", UndoStep("nic.remove", {"id": view.id, "mac": wish.mac}), percent=10)

        async def change(view: InstanceView) -> tuple[Instance, Txn]:
            if len(view.instance.hardware.nics) >= MAX_NICS:
                raise Invalid(f"{view.name} has {MAX_NICS} NICs, which is the most", field="nics")
            slot = hot(here, view).place(view.instance.hardware)
            _, expected = await nics.wish(supplies.groups, view.project, wanted, view.instance.spec.kind)
            port, claim = await supplies.networks.plan_port(
                network, project=view.project, instance=view.id, name=view.name, wish=wish
            )
            nic = Nic(port.id, port.network, port.mac, slot, port.addresses)
            return nics.with_nic(view.instance, wanted, nic), merge(claim, expected)

        return await write(here, work, view, change)


class RemoveNic:
    name = "instance.nic-remove"
    args = RemoveNicArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"pull": FINISH}

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: RemoveNicArgs) -> None:
        view = await self._here.named(work, args.project, args.name)
        try:
            nics.find(view, args.mac)
        except Absent:
            if work.resumed:
                return
            raise
        await work.step("pull", percent=20)
        await remove(self._here, work, view, args.mac)


async def remove(here: Here, work: RunningWork | None, view: InstanceView, mac: str) -> None:
    """Out of the guest, off its network, off the records. Absent is success. Raises Refused where the guest holds
    on to it."""
    for _ in range(RETRIES):
        view = await here.present(view.id)
        try:
            number = nics.find(view, mac)
        except Absent:
            return
        if view.status.state not in AT_REST:
            raise Refused(f"{view.name} is {view.status.state}", hint="wait until it runs or is stopped")
        nic = view.instance.hardware.nics[number]
        if view.status.state in ALIVE:
            try:
                await hot(here, view).remove_nic(view.id, nic.slot)
            except AtollError:
                if await here.alive(view):
                    raise
        await here.supplies.unplug_port(nic.network, nic.port)
        port = await here.supplies.networks.port(NetworkId(nic.network), nic.port)
        claims = await here.supplies.networks.release_port(NetworkId(nic.network), nic.port)
        try:
            done = await here.book.write_with(view, nics.without_nic(view.instance, number), claims)
        except Conflict:
            continue
        if work is not None:
            work.changed(definition(view.id), view.revision, done.revision)
        await here.supplies.enforcer.forgotten(port.settings.groups if port else ())
        return
    raise busy(view)


class SetNic:
    """Link, groups, limits, guard and forwards of one NIC. A setting that this host refuses is taken back."""

    name = "instance.nic-set"
    args = SetNicArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"write": FINISH, "apply": FINISH}

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: SetNicArgs) -> None:
        here = self._here
        view = await here.named(work, args.project, args.name)
        before = view.instance.spec.nics[nics.find(view, args.mac)]
        after = nics.changed(before, args.changes)
        await here.supplies.network(view.project, after)
        undo = UndoStep(
            "nic.settings", {"id": view.id, "mac": args.mac, "spec": msgspec.json.encode(before).decode()}
        )
        await work.step("write", *([] if work.resumed else [undo]), percent=20)
        left = await put(here, work, view, args.mac, lambda spec: nics.changed(spec, args.changes))
        await work.step("apply", percent=60)
        await apply(here, await here.present(view.id), args.mac, before.forwards != after.forwards)
        await here.supplies.enforcer.forgotten(left)


async def put(
    here: Here, work: RunningWork, view: InstanceView, mac: str, change: Callable[[NicSpec], NicSpec]
) -> set[str]:
    """Record its new settings. Returns the ids of groups that it left."""
    left: set[str] = set()

    async def make(view: InstanceView) -> tuple[Instance, Txn]:
        nonlocal left
        number = nics.find(view, mac)
        nic, spec = view.instance.hardware.nics[number], change(view.instance.spec.nics[number])
        settings, expected = await nics.settings_of(here.supplies.groups, view.project, spec)
        former = await here.supplies.networks.port(NetworkId(nic.network), nic.port)
        left = set(former.settings.groups if former else ()) - set(settings.groups)
        _, claims = await here.supplies.networks.change_port(NetworkId(nic.network), nic.port, settings)
        return nics.with_spec(view.instance, number, spec), merge(claims, expected)

    await write(here, work, view, make)
    return left


async def apply(here: Here, view: InstanceView, mac: str, forwards: bool) -> None:
    """`forwards`: whether those changed: some networks take them at the next start only."""
    if view.status.state not in ALIVE:
        return
    number = nics.find(view, mac)
    nic, spec = view.instance.hardware.nics[number], view.instance.spec.nics[number]
    if not await bring(here, view, spec, nic):
        await wait_for_start(here, view)
    traits = await here.supplies.traits(nic.network)
    if forwards and traits is not None and traits.forwards == "start":
        await wait_for_start(here, await here.present(view.id))


def nic_undoers(here: Here) -> dict[str, Undoer]:
    async def take_out(args: Mapping[str, str]) -> None:
        view = await here.book.by_id(args["id"])
        if view is not None:
            await remove(here, None, view, args["mac"])

    async def settings(args: Mapping[str, str]) -> None:
        view = await here.book.by_id(args["id"])
        if view is None:
            return
        spec = msgspec.json.decode(args["spec"], type=NicSpec)
        for _ in range(RETRIES):
            view = await here.present(view.id)
            number = nics.find(view, args["mac"])
            nic = view.instance.hardware.nics[number]
            if view.instance.spec.nics[number] == spec:
                return
            former, expected = await nics.settings_of(here.supplies.groups, view.project, spec)
            _, claims = await here.supplies.networks.change_port(NetworkId(nic.network), nic.port, former)
            instance = nics.with_spec(view.instance, number, spec)
            try:
                await here.book.write_with(view, instance, merge(claims, expected))
            except Conflict:
                continue
            await apply(here, await here.present(view.id), args["mac"], False)
            return

    return {"nic.remove": take_out, "nic.settings": settings}
