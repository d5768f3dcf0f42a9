"""Networks and security groups made, changed and removed, as operations."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from atoll.base.errors import Absent, Invalid, Lacking, Refused
from atoll.base.ids import new_uuid
from atoll.network.args import (
    ChangeGroupArgs,
    CreateGroupArgs,
    CreateNetworkArgs,
    GroupArgs,
    NetworkArgs,
    NetworkSpec,
)
from atoll.network.book import DEFAULT, NetworkBook
from atoll.network.enforce import Enforcer
from atoll.network.groupbook import GroupBook
from atoll.network.model import Mode, Network
from atoll.network.network import NetworkDriver
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery

FINISH = Recovery.FINISH


@dataclass(frozen=True, slots=True)
class Wires:
    """What these verbs work with on this host.

    `drivers`: of each mode, the driver's name; none for what this daemon may not make. `routes`: the subnets that
    the host routes now. `raising`: held while a network is brought up, taken down or made.
    """

    networks: NetworkBook
    groups: GroupBook
    enforcer: Enforcer
    realise: Callable[[Network], Awaitable[NetworkDriver]]
    withdraw: Callable[[Network], Awaitable[None]]
    routes: Callable[[], Awaitable[list[str]]]
    drivers: Mapping[Mode, str]
    raising: asyncio.Lock


def check(spec: NetworkSpec) -> None:
    """Raises Invalid for what contradicts itself."""
    bridged = spec.mode is Mode.BRIDGED
    if bridged and not spec.uplink:
        raise Invalid("a bridged network needs a link of the host", hint="--uplink br0 or eth0", field="uplink")
    if not bridged and spec.uplink:
        raise Invalid(f"a network with mode {spec.mode} has no uplink", hint="--mode bridged", field="uplink")
    if bridged and spec.subnets:
        raise Invalid(
            "addresses on a bridged network are given by whoever is on that wire",
            hint="leave the subnets out",
            field="subnets",
        )
    if not bridged and spec.subnets == ():
        raise Invalid("a network needs a subnet", hint="leave subnets out to have some chosen", field="subnets")


class CreateNetwork:
    """Record it. It comes up with its first guest, and is looked at now, so that what is wrong is told now."""

    name = "network.create"
    args = CreateNetworkArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"record": FINISH}

    def __init__(self, wires: Wires) -> None:
        self._wires = wires

    async def run(self, work: RunningWork, args: CreateNetworkArgs) -> dict[str, str]:
        spec, wires = args.spec, self._wires
        check(spec)
        driver = wires.drivers.get(spec.mode)
        if driver is None:
            raise Lacking("this user may make no networks", hint="run the daemon as root", field="mode")
        if not work.resumed:
            work.about(id=new_uuid())
        await work.step("record", percent=20)
        made = await wires.networks.create(
            args.project,
            args.name,
            driver,
            subnets=() if spec.mode is Mode.BRIDGED else spec.subnets,
            mtu=spec.mtu,
            description=spec.description,
            taken=await wires.routes(),
            mode=spec.mode,
            uplink=spec.uplink or "",
            bandwidth=spec.bandwidth or 0,
            id=work.operation.subject.id,
        )
        try:
            if spec.mode is Mode.BRIDGED:
                await (await wires.realise(made)).up()
        except BaseException:
            await wires.networks.delete(made)
            await wires.withdraw(made)
            raise
        return {"id": made.id, "name": made.name}


class DeleteNetwork:
    """What it has on this host, and its record. Refused with its users."""

    name = "network.delete"
    args = NetworkArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"delete": FINISH}

    def __init__(self, wires: Wires) -> None:
        self._wires = wires

    async def run(self, work: RunningWork, args: NetworkArgs) -> None:
        wires = self._wires
        try:
            found = await wires.networks.ending_of(args.project, args.name) or await wires.networks.get(
                args.project, args.name
            )
        except Absent:
            if work.resumed:  # the record is gone; at its start the daemon took down what had none
                return
            raise
        if found.project != args.project:
            raise Refused(
                f"network {args.name} is project {found.project}'s", hint=f"atoll -p {found.project} network delete"
            )
        if (found.project, found.name) == (DEFAULT, DEFAULT):
            raise Refused("the default network stays", hint="it takes nothing while no guest is on it")
        await wires.networks.check_unused(found)
        work.about(id=found.id)
        await work.step("delete", percent=20)
        async with wires.raising:
            await wires.networks.delete(found)
            await wires.withdraw(found)


class CreateGroup:
    name = "group.create"
    args = CreateGroupArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"record": FINISH}

    def __init__(self, wires: Wires) -> None:
        self._wires = wires

    async def run(self, work: RunningWork, args: CreateGroupArgs) -> dict[str, str]:
        if not work.resumed:
            work.about(id=new_uuid())
        await work.step("record")
        made = await self._wires.groups.create(
            args.project,
            args.name,
            rules=args.rules,
            description=args.description,
            id=work.operation.subject.id,
        )
        return {"id": made.id, "name": made.name}


class ChangeGroup:
    """Record its rules, then bring them to bear on every port in it, at once and in place."""

    name = "group.change"
    args = ChangeGroupArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"record": FINISH, "apply": FINISH}

    def __init__(self, wires: Wires) -> None:
        self._wires = wires

    async def run(self, work: RunningWork, args: ChangeGroupArgs) -> None:
        wires = self._wires
        await wires.groups.get(args.project, args.name)
        await work.step("record")
        group = await wires.groups.change(args.project, args.name, add=args.add, remove=args.remove)
        work.about(id=group.id)
        await work.step("apply", percent=50)
        await wires.enforcer.changed([group.id])


class DeleteGroup:
    name = "group.delete"
    args = GroupArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"delete": FINISH}

    def __init__(self, wires: Wires) -> None:
        self._wires = wires

    async def run(self, work: RunningWork, args: GroupArgs) -> None:
        try:
            group = await self._wires.groups.get(args.project, args.name)
        except Absent:
            if work.resumed:
                return
            raise
        await work.step("delete")
        await self._wires.groups.delete(group, await self._wires.enforcer.users(group))
