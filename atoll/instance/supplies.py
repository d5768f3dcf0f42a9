"""What an instance is supplied with: an image, disks in pools, ports on networks. The one place where the
instance floor meets those nouns' books and this host's drivers of them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass

from atoll.base import clock
from atoll.base.errors import Absent, AtollError
from atoll.base.ids import Bytes, Digest, HostId, NetworkId, PortId, VolumeId, new_uuid
from atoll.image.book import ImageBook, ImageView
from atoll.image.library import Library
from atoll.image.model import Image, ImageUse
from atoll.instance import nics
from atoll.instance.admission import HOLDING
from atoll.instance.book import InstanceView
from atoll.instance.model import DirectBoot, DiskPlan, InstanceSpec, Nic, NicPlan, NicSpec
from atoll.network.book import NetworkBook
from atoll.network.enforce import Enforcer
from atoll.network.groupbook import GroupBook
from atoll.network.model import Network, NetworkTraits, Plugged, Port, PortWish
from atoll.network.network import NetworkDriver
from atoll.storage.book import PoolView, StorageBook
from atoll.storage.model import Pool, Volume, VolumeAttachment, VolumeSpec
from atoll.storage.registry import Pools
from atoll.store.api import Revision, Store, Txn
from atoll.store.txn import commit_afresh, merge

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sources:
    """The records a launch draws from, as read; its claim holds only while they stay as they are."""

    found: ImageView
    pool: PoolView
    networks: tuple[Network, ...]
    wishes: tuple[tuple[PortWish, Txn], ...]

    @property
    def image(self) -> Image:
        return self.found.image


@dataclass(frozen=True, slots=True)
class Plan:
    """What one launch will own, and the parts of the commit that make it so."""

    volume: Volume
    ports: tuple[Port, ...]
    claims: tuple[Txn, ...]


@dataclass(frozen=True, slots=True)
class Supplies:
    store: Store
    images: ImageBook
    library: Library
    storage: StorageBook
    pools: Pools
    networks: NetworkBook
    realise: Callable[[Network], Awaitable[NetworkDriver]]
    host: HostId
    raising: asyncio.Lock
    """Held while a network is brought up: two launches must not make one bridge twice."""
    groups: GroupBook
    enforcer: Enforcer

    async def find(self, project: str, spec: InstanceSpec) -> Sources:
        """Raises Absent with what may have been meant, and what a pool out of reach raises."""
        pool = await self.storage.find(project, spec.root.pool)
        await self.pools.capacity(pool.pool)  # one out of reach is found out before anything is claimed
        return Sources(
            await self.images.find(project, spec.image),
            pool,
            tuple([await self.network(project, nic) for nic in spec.nics]),
            tuple([await nics.wish(self.groups, project, nic) for nic in spec.nics]),
        )

    async def network(self, project: str, nic: NicSpec) -> Network:
        """The one that a NIC shall be on. Raises Absent, Invalid (it cannot give what is wanted)."""
        record = await self.networks.get(project, nic.network)
        nics.check(nic, record, (await self.realise(record)).traits)
        return record

    async def plan(self, project: str, id: str, name: str, size: Bytes, sources: Sources) -> Plan:
        """Draw ids, addresses and claims. `size` of the root disk in bytes; 0: as the image's."""
        disk = sources.image.manifest.files["disk"]
        volume = Volume(
            id=VolumeId(new_uuid()),
            project=project,
            name=f"{name}-root",
            pool=sources.pool.pool.id,
            size=size or disk.virtual_size,
            base=sources.image.digest,
            created=clock.now(),
        )
        held = VolumeAttachment(volume=volume.id, instance=id, host=self.host)
        claims = [
            self.storage.claiming(sources.pool, volume, held),
            self.images.claiming(sources.found, ImageUse(volume=volume.id, project=project, user=name)),
        ]
        ports = []
        for network, (wish, expected) in zip(sources.networks, sources.wishes, strict=True):
            port, claim = await self.networks.plan_port(network, project=project, instance=id, name=name, wish=wish)
            ports.append(port)
            claims += [claim, expected]
        return Plan(volume, tuple(ports), tuple(claims))

    async def claim(self, instance: Txn, plan: Plan) -> Revision:
        """Raises Conflict where anything of it changed or was taken meanwhile."""
        return await self.store.commit(merge(instance, *plan.claims))

    async def release(self, view: InstanceView, instance: Callable[[], Awaitable[Txn]]) -> None:
        """Give back every record of it, with its own (`instance`), in one commit. What is gone is left out."""
        disks, held = view.instance.hardware.disks, view.instance.hardware.nics

        async def make() -> tuple[None, Txn]:
            parts = [await instance(), await self.storage.releasing(view.project, [disk.volume for disk in disks])]
            parts += [self.images.releasing(view.instance.image, disk.volume) for disk in disks]
            parts += [await self.networks.release_port(NetworkId(nic.network), nic.port) for nic in held]
            return None, merge(*parts)

        ports = [await self.networks.port(NetworkId(nic.network), nic.port) for nic in held]
        await commit_afresh(self.store, make)
        await self.enforcer.forgotten({group for port in ports if port for group in port.settings.groups})

    async def make_disks(self, view: InstanceView) -> None:
        """The root disk as a thin clone of the image. Raises Exhausted, Broken."""
        for disk in view.instance.hardware.disks:
            volume = await self.storage.volume(view.project, disk.volume)
            driver = await self.pools.driver(await self._pool(view))
            image = await self.library.layers(view.instance.image)
            await driver.create(VolumeSpec(volume.id, volume.size, image.base))

    async def delete_disks(self, view: InstanceView) -> None:
        for disk in view.instance.hardware.disks:
            await self.delete_volume(view.project, view.instance.spec.root.pool, disk.volume)

    async def delete_volume(self, project: str, pool: str, volume: str) -> None:
        driver = await self.pools.driver(await self.pools.get(project, pool))
        await driver.delete(VolumeId(volume))

    async def attach(self, view: InstanceView) -> tuple[DiskPlan, ...]:
        """Record this generation as the disks' owner, then open them. Raises Refused to an older generation."""
        plans = []
        driver = await self.pools.driver(await self._pool(view))
        for disk in view.instance.hardware.disks:
            held = VolumeAttachment(
                volume=disk.volume, instance=view.id, host=self.host, generation=view.status.generation
            )
            await self.store.commit(await self.storage.owning(held))
            plans.append(DiskPlan(disk.serial, disk.slot, await driver.attach(disk.volume)))
        return tuple(plans)

    async def boot(self, view: InstanceView) -> tuple[DirectBoot, bool]:
        """What it boots from, and whether a guest agent answers in it."""
        image = await self.library.layers(view.instance.image)
        return DirectBoot(image.kernel, image.initrd, image.manifest.cmdline), image.manifest.agent

    async def plug(self, view: InstanceView, *, owner: int | None) -> tuple[NicPlan, ...]:
        """Every network up, every port ready. May be repeated: it mends what is missing."""
        plans = []
        for number, nic in enumerate(view.instance.hardware.nics):
            plugged = await self.plug_port(view.name, nic, owner=owner)
            spec = view.instance.spec.nics[number]
            plans.append(NicPlan(nic.mac, nic.slot, plugged, spec.link))
        return tuple(plans)

    async def plug_port(self, name: str, nic: Nic, *, owner: int | None) -> Plugged:
        """One NIC of instance `name`: its network up, its groups in force, its port ready. Raises Absent."""
        record = await self._network(nic.network)
        port = await self.networks.port(NetworkId(nic.network), nic.port)
        if record is None or port is None:
            raise Absent(f"{name}: the record of its port on network {nic.network} is gone")
        driver = await self.realise(record)
        async with self.raising:
            await driver.up()
        await self.enforcer.prepare(record, port)
        return await driver.plug(port, owner=owner)

    async def traits(self, network: str) -> NetworkTraits | None:
        """None where there is no such network."""
        driver = await self._driver(network)
        return driver.traits if driver else None

    async def unplug(self, view: InstanceView) -> None:
        for nic in view.instance.hardware.nics:
            await self.unplug_port(nic.network, nic.port)

    async def unplug_port(self, network: str, port: str) -> None:
        driver = await self._driver(network)
        if driver is not None:
            await driver.unplug(PortId(port))

    async def rename(self, view: InstanceView, *, owner: int | None, running: bool) -> None:
        """Its name in what it uses: its image's users, its ports' records and, while it runs, their DNS."""
        for disk in view.instance.hardware.disks:
            use = ImageUse(volume=disk.volume, project=view.project, user=view.name)
            await self._rename_use(view.instance.image, use)
        for nic in view.instance.hardware.nics:
            record = await self._network(nic.network)
            if record is None:
                continue
            port = await self.networks.rename_port(record, nic.port, project=view.project, name=view.name)
            driver = await self.realise(record)
            if running and port is not None:
                await driver.plug(port, owner=owner)

    async def _rename_use(self, image: Digest, use: ImageUse) -> None:
        async def make() -> tuple[None, Txn]:
            return None, await self.images.renaming(image, use)

        await commit_afresh(self.store, make)

    async def sweep(self, views: Iterable[InstanceView], *, busy: Collection[str] = ()) -> None:
        """Unplug ports that no running instance has: leavings of guests that ended while nobody looked.

        `busy`: ids of instances at which an operation is; it sees to their ports.
        """
        alive = [view for view in views if view.status.state in HOLDING or view.id in busy]
        used = {nic.port for view in alive for nic in view.instance.hardware.nics}
        for network in await self.networks.all():
            try:
                driver = await self.realise(network)
                for port in set(await driver.ports()) - used:
                    log.info("unplugging port %s of network %s: nothing runs on it", port, network.name)
                    await driver.unplug(port)
            except AtollError as error:
                log.warning("network %s could not be swept: %s", network.name, error)

    async def _pool(self, view: InstanceView) -> Pool:
        return await self.pools.get(view.project, view.instance.spec.root.pool)

    async def _network(self, id: str) -> Network | None:
        return next((one for one in await self.networks.all() if one.id == id), None)

    async def _driver(self, network: str) -> NetworkDriver | None:
        record = await self._network(network)
        return await self.realise(record) if record else None
