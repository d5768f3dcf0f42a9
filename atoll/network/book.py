"""Network, port, address and MAC records: the only file that knows their keys.

Addresses are given out by transaction: `plan_port` looks for free ones and contributes expectations to the
caller's commit, which fails with Conflict where somebody was faster; plan again then (`commit_afresh`).
"""

import asyncio
import re
from collections.abc import Iterable, Mapping

import msgspec

from atoll.base.clock import monotonic, now
from atoll.base.errors import Absent, Exists, Invalid, Refused
from atoll.base.ids import NetworkId, PortId, new_uuid
from atoll.base.names import LABEL, check_label, did_you_mean
from atoll.network.addresses import (
    check_address,
    check_mac,
    choose_prefix,
    choose_subnet,
    draw_mac,
    eui64,
    gateway,
    next_address,
    overlapping,
    parse_subnets,
)
from atoll.network.model import Forward, Mode, Network, Port, PortSettings, PortWish
from atoll.network.promises import check_promises
from atoll.store.api import ABSENT, Entry, Key, Store, Txn, read_all
from atoll.store.txn import commit_afresh

DEFAULT = "default"
"""The project whose networks every project may use, and the name of the network that each project gets."""
DEFINITIONS = Key("/networks/")
ENDING = Key("/networks-ending/")
ANY = PortWish()
_HELD = 30.0  # seconds for which an address offered to one caller is not offered to another


def definition(project: str, id: str) -> Key:
    return Key(f"{DEFINITIONS}{project}/{id}")


def ending(project: str, id: str) -> Key:
    return Key(f"{ENDING}{project}/{id}")


def name_of(project: str, name: str) -> Key:
    return Key(f"/network-names/{project}/{name}")


def subnet_of(subnet: str) -> Key:
    return Key(f"/subnets/{subnet.replace('/', '_')}")


def ports_of(network: str) -> Key:
    return Key(f"/ports/{network}/")


def addresses_of(network: str) -> Key:
    return Key(f"/addresses/{network}/")


def mac_of(mac: str) -> Key:
    return Key(f"/macs/{mac}")


def host_port(forward: Forward) -> Key:
    return Key(f"/host-ports/{forward.protocol}/{forward.port}")


class NetworkBook:
    """One for a daemon: it remembers for a while which addresses it has offered, so that launches at the same
    time do not plan the same ones and lose their commits."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._offered: dict[tuple[NetworkId, str], float] = {}
        self._creating = asyncio.Lock()
        """Subnets that overlap and are not the same have no record in common: commits alone would let both be."""

    async def get(self, project: str, name: str) -> Network:
        """By name: the project's own, else the default project's. Raises Absent."""
        if re.fullmatch(LABEL, name):
            for owner in (project, DEFAULT):
                index = await self._store.get(name_of(owner, name))
                if index and (entry := await self._store.get(definition(owner, index.value.decode()))):
                    return _load(entry)
        known = {network.name for network in await self.visible(project)}
        raise Absent(
            f"there is no network {name[:80]} in project {project}",
            hint=did_you_mean(name, known) or f"there are {', '.join(sorted(known)) or 'none'}",
            field="network",
        )

    async def visible(self, project: str) -> list[Network]:
        """Those that the project may use: its own and the default project's, by name."""
        networks = await self.all()
        mine = [network for network in networks if network.project == project]
        names = {network.name for network in mine}
        shared = [net for net in networks if net.project == DEFAULT and net.name not in names]
        return sorted(mine + shared, key=lambda network: network.name)

    async def by_id(self, id: str) -> Network | None:
        return next((network for network in await self.all() if network.id == id), None)

    async def all(self) -> list[Network]:
        return [_load(entry) for entry in (await read_all(self._store, DEFINITIONS)).entries.values()]

    async def create(
        self,
        project: str,
        name: str,
        driver: str,
        *,
        subnets: Iterable[str] | None = None,
        mtu: int = 1500,
        description: str = "",
        taken: Iterable[str] = (),
        mode: Mode = Mode.NAT,
        uplink: str = "",
        bandwidth: int = 0,
        id: str = "",
    ) -> Network:
        """`subnets` None: choose one, IPv4 and IPv6, that meets neither another network nor `taken` (the
        subnets that this host routes). `id`: drawn where none is given; the network that has it already is
        returned as it is. Raises Exists, Invalid, Refused (one overlaps), Exhausted."""
        check_label(name)
        given, routed = None if subnets is None else parse_subnets(subnets), tuple(taken)
        id = NetworkId(id or new_uuid())
        if found := await self.by_id(id):
            return found

        async def make() -> tuple[Network, Txn]:
            if await self._store.get(name_of(project, name)):
                raise Exists(f"network {name} already exists", hint="choose another name", field="name")
            others = {subnet: net.name for net in await self.all() for subnet in net.subnets}
            ours = (choose_subnet(id, (*routed, *others)), choose_prefix(id)) if given is None else given
            for subnet in ours if given else ():
                _check_free(subnet, others, routed)
            network = Network(
                id=id,
                project=project,
                name=name,
                driver=driver,
                subnets=ours,
                gateways=tuple(map(gateway, ours)),
                domain=f"{name}.{project}.internal",
                mtu=mtu,
                description=description,
                created=now(),
                mode=mode,
                uplink=uplink,
                bandwidth=bandwidth,
            )
            return network, _claim(network)

        async with self._creating:
            network, _ = await commit_afresh(self._store, make)
        return network

    async def ensure_default(
        self, project: str, driver: str, *, plans_addresses: bool, taken: Iterable[str] = ()
    ) -> Network:
        """The project's own network `default`, made at first need; whoever comes at the same time gets it too."""
        while True:
            index = await self._store.get(name_of(project, DEFAULT))
            entry = await self._store.get(definition(project, index.value.decode())) if index else None
            if entry:
                return _load(entry)
            try:
                subnets = None if plans_addresses else ()
                return await self.create(project, DEFAULT, driver, subnets=subnets, taken=taken)
            except Exists:
                if index:
                    raise Refused(
                        f"network {DEFAULT} of project {project} is being deleted", hint="try again"
                    ) from None

    async def check_unused(self, network: Network) -> None:
        """Raises Refused with the instances that have a port on it, by name."""
        if users := {port.name or port.instance for port in await self.ports(network.id)}:
            names = ", ".join(sorted(users)[:5]) + (f" and {len(users) - 5} more" if len(users) > 5 else "")
            raise Refused(f"network {network.name} is used by {names}", hint="delete these instances first")

    async def ending_of(self, project: str, name: str) -> Network | None:
        """One whose deletion has begun and not ended: `delete` finishes it."""
        entries = (await read_all(self._store, Key(f"{ENDING}{project}/"))).entries.values()
        return next((found for entry in entries if (found := _load(entry)).name == name), None)

    async def delete(self, network: Network) -> None:
        """Remove its records. Absent is success. Raises Refused with the users of its ports.

        Ports are committed with the definition's revision expected: once it has moved aside no port can come,
        so that those seen after that are all there are.
        """
        await self.check_unused(network)
        here, aside = definition(network.project, network.id), ending(network.project, network.id)
        entry = await self._store.get(here)
        if entry:
            expect = {here: entry.revision, aside: ABSENT}
            await self._store.commit(Txn(expect, {aside: entry.value}, frozenset({here})))
        entry = await self._store.get(aside)
        if entry is None:
            return
        try:
            await self.check_unused(network)
        except Refused:
            await self._store.commit(
                Txn({aside: entry.revision, here: ABSENT}, {here: entry.value}, frozenset({aside}))
            )
            raise
        rest = {name_of(network.project, network.name), *map(subnet_of, network.subnets)}
        await self._store.commit(Txn({aside: entry.revision}, delete=frozenset({aside, *rest})))

    async def plan_port(
        self, network: Network, *, project: str, instance: str, name: str, wish: PortWish = ANY
    ) -> tuple[Port, Txn]:
        """A new port with a free address of each subnet, and the part of a commit that claims all of it.

        `name`: the guest's host name; seen from another project's network it is `NAME.PROJECT`, so that names
        never clash. Raises Absent (the network was deleted), Exhausted (no address is left), Invalid and Exists
        (what is wished for cannot be, or somebody has it).
        """
        key = definition(network.project, network.id)
        entry = await self._store.get(key)
        if entry is None:
            raise Absent(f"network {network.name} is gone", field="network")
        mac = check_mac(wish.mac) if wish.mac else draw_mac()
        address = (
            check_address(wish.address, network.subnets, network.gateways, name=network.name)
            if wish.address
            else ""
        )
        addresses = await self._choose(network, mac, address)
        port = Port(
            id=PortId(new_uuid()),
            network=network.id,
            instance=instance,
            mac=mac,
            addresses=addresses,
            name=name if project == network.project else f"{name}.{project}",
            settings=wish.settings,
            end=wish.end,
        )
        claims = _keys(port)
        await self._check_free(port, wished=wish)
        check_promises(network, port, await self.ports(network.id))
        values = {key: port.id.encode() for key in claims}
        values[Key(ports_of(network.id) + port.id)] = msgspec.json.encode(port)
        return port, Txn({key: entry.revision, **dict.fromkeys(values, ABSENT)}, values)

    async def rename_port(self, network: Network, id: PortId, *, project: str, name: str) -> Port | None:
        """Give a port its guest's new name; the port as it is then, None where it is gone."""

        async def make() -> tuple[Port | None, Txn]:
            key = Key(ports_of(network.id) + id)
            entry = await self._store.get(key)
            if entry is None:
                return None, Txn()
            full = name if project == network.project else f"{name}.{project}"
            port = msgspec.structs.replace(msgspec.json.decode(entry.value, type=Port), name=full)
            return port, Txn({key: entry.revision}, {key: msgspec.json.encode(port)})

        return (await commit_afresh(self._store, make))[0]

    async def change_port(self, network: NetworkId, id: PortId, settings: PortSettings) -> tuple[Port, Txn]:
        """The part of a commit that gives a port other settings. Raises Absent, Exists (a port of the host)."""
        key = Key(ports_of(network) + id)
        entry = await self._store.get(key)
        if entry is None:
            raise Absent("the record of this port is gone", hint="it was removed meanwhile")
        port = msgspec.json.decode(entry.value, type=Port)
        changed = msgspec.structs.replace(port, settings=settings)
        before, after = set(map(host_port, port.settings.forwards)), set(map(host_port, settings.forwards))
        await self._check_forwards(changed)
        if (settings.up, settings.down) != (port.settings.up, port.settings.down):
            check_promises(await self.by_id(network), changed, await self.ports(network))
        put = {key: msgspec.json.encode(changed), **{claim: id.encode() for claim in after - before}}
        expect = {key: entry.revision, **dict.fromkeys(after - before, ABSENT)}
        return changed, Txn(expect, put, frozenset(before - after))

    async def _check_free(self, port: Port, *, wished: PortWish) -> None:
        """Raises Exists with who has what is wished for: a commit would only say that it lost."""
        if wished.mac and (entry := await self._store.get(mac_of(port.mac))):
            owner = await self._owner(entry.value.decode())
            raise Exists(f"the MAC {port.mac} is {owner}'s", hint="choose another, or none", field="mac")
        if wished.address:
            for address in port.addresses:
                entry = await self._store.get(Key(addresses_of(port.network) + address))
                if entry:
                    owner = await self._owner(entry.value.decode())
                    raise Exists(f"{address} is {owner}'s", hint="choose another, or none", field="address")
        await self._check_forwards(port)

    async def _check_forwards(self, port: Port) -> None:
        seen = set()
        for forward in port.settings.forwards:
            what = f"port {forward.port}/{forward.protocol} of this host"
            if host_port(forward) in seen:
                raise Invalid(f"{what} is forwarded twice", field="port")
            seen.add(host_port(forward))
            entry = await self._store.get(host_port(forward))
            if entry and entry.value.decode() != port.id:
                raise Exists(
                    f"{what} leads to {await self._owner(entry.value.decode())}",
                    hint="choose another",
                    field="port",
                )

    async def _owner(self, id: str) -> str:
        """Whose port this is, for people."""
        for network in await self.all():
            if port := await self.port(network.id, PortId(id)):
                return port.name or port.instance
        return "another instance"

    async def release_port(self, network: NetworkId, id: PortId) -> Txn:
        """The part of a commit that gives everything of a port back; nothing where it is gone already."""
        entry = await self._store.get(Key(ports_of(network) + id))
        if entry is None:
            return Txn()
        key = Key(ports_of(network) + id)
        port = msgspec.json.decode(entry.value, type=Port)
        for address in port.addresses:
            self._offered.pop((network, address), None)
        return Txn({key: entry.revision}, delete=frozenset({key, *_keys(port)}))

    async def port(self, network: NetworkId, id: PortId) -> Port | None:
        entry = await self._store.get(Key(ports_of(network) + id))
        return msgspec.json.decode(entry.value, type=Port) if entry else None

    async def ports(self, network: NetworkId) -> list[Port]:
        entries = (await read_all(self._store, ports_of(network))).entries.values()
        return [msgspec.json.decode(entry.value, type=Port) for entry in entries]

    async def _choose(self, network: Network, mac: str, wished: str) -> tuple[str, ...]:
        """`wished`: the IPv4 address of the subnet it is in."""
        prefix = addresses_of(network.id)
        claimed = {key.removeprefix(prefix) for key in (await read_all(self._store, prefix)).entries}
        # From here to the offer nothing is awaited, so that no other launch of this daemon comes between.
        before = monotonic() - _HELD
        self._offered = {key: at for key, at in self._offered.items() if at > before}
        offered = {address for id, address in self._offered if id == network.id}
        taken = claimed | offered | set(network.gateways)
        found = []
        for net in network.subnets:
            mine = wished if wished and overlapping(f"{wished}/32", [net]) else ""
            found.append(eui64(net, mac) if ":" in net else mine or next_address(net, taken))
        self._offered.update({(network.id, address): monotonic() for address in found})
        return tuple(found)


def _load(entry: Entry) -> Network:
    return msgspec.json.decode(entry.value, type=Network)


def _claim(network: Network) -> Txn:
    values = {
        definition(network.project, network.id): msgspec.json.encode(network),
        name_of(network.project, network.name): network.id.encode(),
        **{subnet_of(subnet): network.id.encode() for subnet in network.subnets},
    }
    return Txn(dict.fromkeys(values, ABSENT), values)


def _keys(port: Port) -> list[Key]:
    forwards = map(host_port, port.settings.forwards)
    return [mac_of(port.mac), *forwards, *(Key(addresses_of(port.network) + address) for address in port.addresses)]


def _check_free(subnet: str, others: Mapping[str, str], routed: Iterable[str]) -> None:
    if clash := overlapping(subnet, others):
        raise Refused(f"{subnet} overlaps {clash} of network {others[clash]}", hint="name another", field="subnets")
    if clash := overlapping(subnet, routed):
        raise Refused(f"{subnet} overlaps {clash}, which this host routes", hint="name another", field="subnets")
