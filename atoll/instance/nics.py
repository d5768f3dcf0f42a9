"""What a NIC's user wants, as the network floor has it: the one place where names of groups become ids."""

from typing import TypeVar

import msgspec

from atoll.base.errors import Absent, Exists, Invalid
from atoll.instance.book import InstanceView
from atoll.instance.kinds import end_of
from atoll.instance.model import Instance, Kind, Nic, NicSpec
from atoll.instance.verbs.args import NicChanges
from atoll.network.groupbook import GroupBook
from atoll.network.model import Mode, Network, NetworkTraits, PortSettings, PortWish
from atoll.store.api import Txn

T = TypeVar("T")


async def wish(groups: GroupBook, project: str, spec: NicSpec, kind: Kind) -> tuple[PortWish, Txn]:
    """What to plan its port with, and the part of a commit that fails where a group of it changed. Raises
    Absent."""
    settings, expected = await settings_of(groups, project, spec)
    return PortWish(address=spec.address, mac=spec.mac, end=end_of(kind), settings=settings), expected


async def settings_of(groups: GroupBook, project: str, spec: NicSpec) -> tuple[PortSettings, Txn]:
    ids, expected = await groups.using(project, spec.groups)
    settings = PortSettings(guard=spec.guard, groups=ids, down=spec.down, up=spec.up, forwards=spec.forwards)
    return settings, expected


def check(spec: NicSpec, network: Network, traits: NetworkTraits) -> None:
    """Raises Invalid for what this network can never give a NIC."""
    name = network.name
    if spec.forwards and (traits.forwards == "no" or network.mode is Mode.ISOLATED):
        raise Invalid(
            f"no port of the host can lead to network {name} ({network.mode})",
            hint="a network with mode nat or routed has forwards",
            field="nics.forwards",
        )
    if (spec.groups or spec.up or spec.down) and not traits.filters:
        raise Invalid(
            f"network {name} ({network.driver}) filters and limits nothing",
            hint="run the daemon as root: its networks do",
            field="nics",
        )
    if (spec.up or spec.down) and not spec.guard:
        raise Invalid(
            "the bandwidth of an unguarded NIC cannot be limited: it could pass for another",
            hint="guard=on, or no limits",
            field="nics.guard",
        )
    if spec.address and not traits.plans_addresses:
        raise Invalid(f"network {name} plans no addresses", hint="leave the address out", field="nics.address")


def find(view: InstanceView, mac: str) -> int:
    """The place of the NIC with this MAC in the instance's list. Raises Absent."""
    for number, nic in enumerate(view.instance.hardware.nics):
        if nic.mac == mac.lower().replace("-", ":"):
            return number
    known = ", ".join(nic.mac for nic in view.instance.hardware.nics) or "none"
    raise Absent(f"{view.name} has no NIC {mac[:40]}", hint=f"its NICs: {known}", field="nic")


def refuse_twice(view: InstanceView, mac: str) -> None:
    if any(nic.mac == mac for nic in view.instance.hardware.nics):
        raise Exists(f"{view.name} has a NIC with {mac} already", field="mac")


def with_nic(instance: Instance, spec: NicSpec, nic: Nic) -> Instance:
    wanted = msgspec.structs.replace(instance.spec, nics=(*instance.spec.nics, spec))
    hardware = msgspec.structs.replace(instance.hardware, nics=(*instance.hardware.nics, nic))
    return msgspec.structs.replace(instance, spec=wanted, hardware=hardware)


def without_nic(instance: Instance, number: int) -> Instance:
    def less(nics: tuple[T, ...]) -> tuple[T, ...]:
        return nics[:number] + nics[number + 1 :]

    wanted = msgspec.structs.replace(instance.spec, nics=less(instance.spec.nics))
    hardware = msgspec.structs.replace(instance.hardware, nics=less(instance.hardware.nics))
    return msgspec.structs.replace(instance, spec=wanted, hardware=hardware)


def with_spec(instance: Instance, number: int, spec: NicSpec) -> Instance:
    nics = instance.spec.nics
    wanted = msgspec.structs.replace(instance.spec, nics=(*nics[:number], spec, *nics[number + 1 :]))
    return msgspec.structs.replace(instance, spec=wanted)


def changed(spec: NicSpec, changes: NicChanges) -> NicSpec:
    """The spec with the changes in it."""
    names = ("link", "guard", "groups", "down", "up")
    new = {name: value for name in names if (value := getattr(changes, name)) is not msgspec.UNSET}
    gone = {(each.port, each.protocol) for each in changes.remove_forwards}
    kept = [each for each in spec.forwards if (each.port, each.protocol) not in gone]
    forwards = tuple(dict.fromkeys((*kept, *changes.add_forwards)))
    return msgspec.structs.replace(spec, **new, forwards=forwards)
