"""How an instance that comes in a parcel is fitted into this Atoll: names, pools, networks, addresses, identity.

What it had is kept where it is free here, and what is not is told. Nothing is written: the import's own commit
holds only while everything stays as it was found.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from atoll.base.errors import Absent, AtollError, Exhausted, Exists, Invalid, Lacking
from atoll.base.ids import Bytes, InstanceId, new_uuid
from atoll.base.names import check_label
from atoll.base.units import show_size
from atoll.instance import nics
from atoll.instance.here import Here
from atoll.instance.model import DiskSpec, InstanceSpec, Kind, Limits, NicSpec
from atoll.instance.parcel import DiskPart, NicPart, Parcel, travelling
from atoll.instance.verbs.args import Fitting
from atoll.network.model import Network
from atoll.storage.model import Pool
from atoll.storage.registry import check_ready

OURS = ("mac", "address", "port")
"""Fields of errors that say that somebody here has what a NIC wants."""


@dataclass(slots=True)
class Fitted:
    """`spec`: with the NICs as they are planned, MACs and addresses fixed where they are kept; `nics`: as their
    user wants them from now on. `pools`: of the disks, in order. `volumes`: their names here. `notes`: for people,
    what is not as it was."""

    id: InstanceId
    name: str
    spec: InstanceSpec
    nics: tuple[NicSpec, ...]
    pools: tuple[Pool, ...]
    volumes: tuple[str, ...]
    notes: list[str] = field(default_factory=list)


async def fit(here: Here, project: str, parcel: Parcel, how: Fitting) -> Fitted:
    """Raises Exists (the name), Absent (a pool, network or group, with the option that names another), Exhausted,
    Invalid."""
    name = check_label(how.name or parcel.name, field="--name" if how.name else "name")
    if name in await here.book.names(project):
        raise Exists(f"instance {name} already exists", hint="another name: --name NAME", field="name")
    notes: list[str] = []
    pools = tuple([await _pool(here, project, disk, how) for disk in parcel.disks])
    await _check_room(here, parcel, pools)
    planned, wanted = await _nics(here, project, parcel, how, notes)
    spec = msgspec.structs.replace(
        travelling(parcel.spec),  # whatever else its file says
        root=DiskSpec(size=Bytes(parcel.disks[0].size), pool=pools[0].name),
        nics=planned,
        limits=_limits(here, parcel.spec, notes),
    )
    return Fitted(
        await _identity(here, parcel, how, notes),
        name,
        spec,
        wanted,
        pools,
        await _volumes(here, project, parcel, notes),
        notes,
    )


async def _identity(here: Here, parcel: Parcel, how: Fitting, notes: list[str]) -> InstanceId:
    """Its own id where nobody has it: then it is the same machine to its guest and to cloud-init."""
    if how.new_identity:
        return InstanceId(new_uuid())
    if (other := await here.book.by_id(parcel.id)) is not None:
        notes.append(f"its id is {other.name}'s here: it has a new one, and is a new machine to cloud-init")
        return InstanceId(new_uuid())
    return InstanceId(parcel.id)


def _limits(here: Here, spec: InstanceSpec, notes: list[str]) -> Limits:
    try:
        here.check_limits(spec.kind, spec.limits)
    except Lacking as error:
        notes.append(f"its limits are left out: {error.message}")
        return Limits()
    return spec.limits


async def _pool(here: Here, project: str, disk: DiskPart, how: Fitting) -> Pool:
    try:
        pool = (await here.supplies.storage.find(project, how.pool or disk.pool)).pool
    except Absent as error:
        raise _with(error, "--pool NAME puts its disks into another one") from error
    check_ready(pool)
    return pool


async def _check_room(here: Here, parcel: Parcel, pools: tuple[Pool, ...]) -> None:
    """Raises Exhausted, and what a pool out of reach raises."""
    wanted: dict[str, int] = {}
    for disk, pool in zip(parcel.disks, pools, strict=True):
        takes = disk.size if disk.format == "full" else disk.content.length
        wanted[pool.id] = wanted.get(pool.id, 0) + takes
    for pool in {pool.id: pool for pool in pools}.values():
        room = await here.supplies.pools.capacity(pool)
        if wanted[pool.id] > room.available:
            raise Exhausted(
                f"its disks take {show_size(wanted[pool.id])}, and pool {pool.name} has"
                f" {show_size(room.available)} to give",
                hint="make room there, or --pool NAME",
                field="pool",
            )


async def _volumes(here: Here, project: str, parcel: Parcel, notes: list[str]) -> tuple[str, ...]:
    """Names for its volumes, each its own where that is free."""
    taken = {volume.name for volume in await here.supplies.storage.volumes(project)}
    names = []
    for disk in parcel.disks[1:]:
        name, number = disk.volume, 2
        while name in taken:
            name, number = f"{disk.volume[:56]}-{number}", number + 1
        if name != disk.volume:
            notes.append(f"there is a volume {disk.volume} here: its own is {name}")
        taken.add(name)
        names.append(name)
    return tuple(names)


async def _nics(
    here: Here, project: str, parcel: Parcel, how: Fitting, notes: list[str]
) -> tuple[tuple[NicSpec, ...], tuple[NicSpec, ...]]:
    """As they are planned, and as their user wants them."""
    mapping = _networks(how)
    planned: list[NicSpec] = []
    wanted: list[NicSpec] = []
    for part in parcel.nics:
        nic = await _nic(here, project, part, mapping, how, notes)
        if nic.address and any((nic.network, nic.address) == (other.network, other.address) for other in planned):
            nic = msgspec.structs.replace(nic, address="")
            notes.append(f"two of its NICs had {part.address}: one has another")
        planned.append(nic)
        wanted.append(
            msgspec.structs.replace(
                nic,
                mac=part.spec.mac if nic.mac else "",
                address=part.spec.address if nic.address else "",
            )
        )
    return tuple(planned), tuple(wanted)


def _networks(how: Fitting) -> Mapping[str, str]:
    """New names by old ones; "" for all others. Raises Invalid."""
    found: dict[str, str] = {}
    for text in how.network:
        old, given, new = text.rpartition("=")
        if given and not old:
            raise Invalid(f"{text!r} names no network", hint="--network NEW, or OLD=NEW", field="--network")
        if old in found:
            raise Invalid(f"network {old or new} is told twice", field="--network")
        found[old] = check_label(new, what="network's name", field="--network")
    return found


async def _nic(
    here: Here, project: str, part: NicPart, mapping: Mapping[str, str], how: Fitting, notes: list[str]
) -> NicSpec:
    old = part.spec.network
    nic = msgspec.structs.replace(
        part.spec,
        network=mapping.get(old) or mapping.get("") or old,
        mac="" if how.new_identity else part.mac,
        address="" if how.new_identity else part.address,
        groups=part.spec.groups if how.groups else (),
    )
    try:
        record = await here.supplies.networks.get(project, nic.network)
    except Absent as error:
        raise _with(error, f"--network {old}=NAME puts its NIC on another one") from error
    traits = (await here.supplies.realise(record)).traits
    if nic.address and not traits.plans_addresses:
        nic = msgspec.structs.replace(nic, address="")
        notes.append(f"network {record.name} plans no addresses: {part.address} is left out")
    nics.check(nic, record, traits)
    return await _kept(here, project, nic, record, notes)


async def _kept(here: Here, project: str, nic: NicSpec, record: Network, notes: list[str]) -> NicSpec:
    """Without what somebody here has already."""
    for _ in range(len(nic.forwards) + 3):
        try:
            wish, _ = await nics.wish(here.supplies.groups, project, nic, Kind.VM)
        except Absent as error:
            raise _with(error, "--without-groups leaves its security groups out") from error
        try:
            await here.supplies.networks.plan_port(record, project=project, instance="", name="x", wish=wish)
        except (Exists, Invalid) as error:
            if error.field not in OURS:
                raise
            nic, left = await _less(here, nic, record, error)
            notes.append(f"{error.message}: {left}")
        else:
            return nic
    return nic


async def _less(here: Here, nic: NicSpec, record: Network, error: AtollError) -> tuple[NicSpec, str]:
    if error.field == "mac":
        return msgspec.structs.replace(nic, mac=""), "it has a new one"
    if error.field == "address":
        return msgspec.structs.replace(nic, address=""), "it has another address"
    for forward in nic.forwards:
        alone = msgspec.structs.replace(nic, forwards=(forward,), mac="", address="", groups=())
        wish, _ = await nics.wish(here.supplies.groups, record.project, alone, Kind.VM)
        try:
            await here.supplies.networks.plan_port(record, project=record.project, instance="", name="x", wish=wish)
        except (Exists, Invalid):
            rest = tuple(each for each in nic.forwards if each is not forward)
            return msgspec.structs.replace(nic, forwards=rest), "that forward is left out"
    return msgspec.structs.replace(nic, forwards=()), "its forwards are left out"


def _with(error: Absent, option: str) -> Absent:
    """With the option that names another."""
    hint = f"{error.hint}; {option}" if error.hint else option
    return Absent(error.message, hint=hint, field=error.field)
