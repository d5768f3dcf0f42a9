"""What an instance is supplied with: an image, disks in pools, ports on networks. The one place where the
instance floor meets those nouns' books and this host's drivers of them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass

from atoll.base import clock
from atoll.base.errors import Absent, AtollError, Invalid, Refused
from atoll.base.ids import Bytes, Digest, HostId, NetworkId, PortId, VolumeId, new_uuid
from atoll.image.book import ImageBook, ImageView
from atoll.image.library import KERNEL, Library
from atoll.image.model import Image, ImageUse, Manifest
from atoll.instance import kinds, nics
from atoll.instance.admission import HOLDING
from atoll.instance.book import InstanceBook, InstanceView
from atoll.instance.boots import Booting, Boots
from atoll.instance.model import Disk, DiskPlan, DiskUse, InstanceSpec, Kind, Nic, NicPlan, NicSpec
from atoll.instance.seed import Lan
from atoll.network.book import NetworkBook
from atoll.network.enforce import Enforcer
from atoll.network.groupbook import GroupBook
from atoll.network.model import Network, NetworkTraits, Plugged, Port, PortWish
from atoll.network.network import NetworkDriver
from atoll.storage.book import PoolView, StorageBook, VolumeView
from atoll.storage.model import Layer, Life, Pool, Volume, VolumeAttachment, VolumeSpec
from atoll.storage.registry import Pools, check_ready
from atoll.store.api import Revision, Store, Txn
from atoll.store.txn import commit_afresh, merge

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sources:
    """The records a launch draws from, as read; its claim holds only while they stay as they are."""

    found: ImageView | None
    pool: PoolView
    kind: Kind
    networks: tuple[Network, ...]
    wishes: tuple[tuple[PortWish, Txn], ...]
    cd: ImageView | None = None
    volumes: tuple[VolumeView, ...] = ()

    @property
    def image(self) -> Image | None:
        return self.found.image if self.found else None

    @property
    def manifest(self) -> Manifest | None:
        """None: it begins with an empty disk."""
        return self.found.image.manifest if self.found else None


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
    boots: Boots

    async def find(self, project: str, spec: InstanceSpec, volumes: Iterable[DiskUse] = ()) -> Sources:
        """Raises Absent with what may have been meant, Invalid where the image is a disc, Refused (a volume that
        another has), and what a pool out of reach raises."""
        found = await self.images.find(project, spec.image) if spec.image else None
        if found:
            kinds.check_image(spec, found.image.manifest, found.image.name)
        pool = await self.storage.find(project, spec.root.pool)
        check_ready(pool.pool)
        await self.pools.capacity(pool.pool)  # one out of reach is found out before anything is claimed
        if spec.kind is Kind.CONTAINER and not (await self.pools.driver(pool.pool)).traits.trees:
            raise Invalid(
                f"pool {pool.pool.name} ({pool.pool.driver}) cannot hold a container", field="spec.root.pool"
            )
        return Sources(
            found,
            pool,
            spec.kind,
            tuple([await self.network(project, nic) for nic in spec.nics]),
            tuple([await nics.wish(self.groups, project, nic, spec.kind) for nic in spec.nics]),
            await self.images.find(project, spec.cdrom) if spec.cdrom else None,
            tuple([await self.free(await self.storage.find_volume(project, use.volume)) for use in volumes]),
        )

    async def free(self, view: VolumeView) -> VolumeView:
        """A volume that may be attached. Raises Refused."""
        volume = view.volume
        if view.held:
            holder = await InstanceBook(self.store).by_id(view.held.instance)
            name = holder.name if holder else view.held.instance
            hint = f"atoll volume detach {volume.name}" if volume.named else ""
            raise Refused(f"volume {volume.name} is attached to instance {name}", hint=hint, field="volume")
        if volume.state is not Life.READY:
            raise Refused(
                f"volume {volume.name} is {volume.state}", hint=f"atoll volume show {volume.name}", field="volume"
            )
        return view

    async def network(self, project: str, nic: NicSpec) -> Network:
        """The one that a NIC shall be on. Raises Absent, Invalid (it cannot give what is wanted)."""
        record = await self.networks.get(project, nic.network)
        nics.check(nic, record, (await self.realise(record)).traits)
        return record

    async def plan(self, project: str, id: str, name: str, size: Bytes, sources: Sources) -> Plan:
        """Draw ids, addresses and claims. `size` of the root disk in bytes; 0: as the image's."""
        tree = sources.kind is Kind.CONTAINER  # as large as it wants, unless a size is given
        disk = sources.manifest.files["disk"] if sources.manifest and not tree else None
        volume = Volume(
            id=VolumeId(new_uuid()),
            project=project,
            name=f"{name}-root",
            pool=sources.pool.pool.id,
            size=size or (disk.virtual_size if disk else Bytes(0)),
            base=sources.image.digest if sources.image else None,
            created=clock.now(),
            format="tree" if tree else "thin",
        )
        held = VolumeAttachment(volume=volume.id, instance=id, host=self.host)
        claims = [self.storage.claiming(sources.pool, volume, held)]
        uses = ((sources.found, volume.id), (sources.cd, VolumeId(id)))  # what is in the drive is held by its id
        for found, holder in uses:
            if found is not None:
                claims.append(self.images.claiming(found, ImageUse(volume=holder, project=project, user=name)))
        for view in sources.volumes:
            other = VolumeAttachment(volume=view.volume.id, instance=id, host=self.host)
            claims.append(self.storage.attaching(view, other))
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
            own = [disk.volume for disk in disks if not disk.named]
            parts = [await instance(), await self.storage.releasing(view.project, own)]
            parts += [await self.storage.detaching(disk.volume, view.id) for disk in disks if disk.named]
            parts += [self.images.releasing(image, holder) for image, holder in image_uses(view)]
            parts += [await self.networks.release_port(NetworkId(nic.network), nic.port) for nic in held]
            return None, merge(*parts)

        ports = [await self.networks.port(NetworkId(nic.network), nic.port) for nic in held]
        await commit_afresh(self.store, make)
        await self.enforcer.forgotten({group for port in ports if port for group in port.settings.groups})
        await self._drop_kernel(view.instance.image)

    async def _drop_kernel(self, image: Digest) -> None:
        """What came with an imported instance has no name that could be removed: it goes with its last user."""
        try:
            if image and (await self.images.manifest(image)).kind == KERNEL:
                await self.library.prune()
        except AtollError as error:  # the next prune does it
            log.warning("the kernel %s could not be removed: %s", image, error)

    async def make_disks(self, view: InstanceView) -> None:
        """The root disk as a thin clone of the image, or empty. Raises Exhausted, Broken."""
        for disk in own_disks(view):
            volume = await self.storage.volume(view.project, disk.volume)
            driver = await self.pools.driver(await self._pool(view))
            await driver.create(VolumeSpec(volume.id, volume.size, await self._base(view), volume.format))

    async def _base(self, view: InstanceView) -> tuple[Layer, ...]:
        """What its own disk stands on."""
        image = view.instance.image
        if view.instance.spec.kind is Kind.CONTAINER:
            return (Layer(str(await self.library.rootfs(image)), "tree", read_only=True),)
        return (await self.library.layers(image)).base if image else ()

    async def delete_disks(self, view: InstanceView) -> None:
        for disk in own_disks(view):
            await self.delete_volume(view.project, view.instance.spec.root.pool, disk.volume)

    async def delete_volume(self, project: str, pool: str, volume: str) -> None:
        driver = await self.pools.driver(await self.pools.get(project, pool))
        await driver.delete(VolumeId(volume))

    async def attach(self, view: InstanceView) -> tuple[DiskPlan, ...]:
        """Record this generation as the disks' owner, then open them. Raises Refused to an older generation."""
        return tuple([await self.attach_disk(view, disk) for disk in view.instance.hardware.disks])

    async def attach_disk(self, view: InstanceView, disk: Disk) -> DiskPlan:
        """One of them, as `attach`."""
        held = VolumeAttachment(
            volume=disk.volume, instance=view.id, host=self.host, generation=view.status.generation
        )

        async def owned() -> tuple[None, Txn]:
            return None, await self.storage.owning(held)

        await commit_afresh(self.store, owned)
        driver = await self.pools.of(await self.storage.volume(view.project, disk.volume))
        return DiskPlan(disk.serial, disk.slot, await driver.attach(disk.volume), disk.bus, disk.cache)

    async def boot(self, view: InstanceView) -> Booting:
        """What it boots from, ready to be opened. Raises Lacking (no such firmware here), Absent, Broken."""
        if view.instance.spec.kind is Kind.CONTAINER:
            return Booting(boot=None, agent=True, uefi=None, cdrom=None, seed="")
        records = {record.id: record for record in await self.networks.all()}
        lans = [
            Lan(nic.mac, nic.addresses, records[NetworkId(nic.network)])
            for nic in view.instance.hardware.nics
            if nic.network in records
        ]
        return await self.boots.prepare(view, lans)

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
        for image, holder in image_uses(view):
            await self._rename_use(image, ImageUse(volume=holder, project=view.project, user=view.name))
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


def own_disks(view: InstanceView) -> list[Disk]:
    """Those that came with it and go with it."""
    return [disk for disk in view.instance.hardware.disks if not disk.named]


def image_uses(view: InstanceView) -> list[tuple[Digest, VolumeId]]:
    """Which images it uses, and under what each knows it: its own disk, or for the CD in its drive its id."""
    held = [(view.instance.image, disk.volume) for disk in own_disks(view)]
    return [use for use in (*held, (view.instance.cdrom, VolumeId(view.id))) if use[0]]
