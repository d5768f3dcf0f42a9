"""The composition root: the only file that chooses drivers and puts the parts together."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from atoll import __version__
from atoll.api.services import Services
from atoll.api.tokens import TokenBook
from atoll.base.ids import InstanceId
from atoll.base.units import parse_duration, parse_size
from atoll.client.wire import RecipeView
from atoll.daemon import identity
from atoll.daemon.config import Config
from atoll.daemon.host import HostView, Kernels
from atoll.daemon.networks import GroupList, NetworkList, Realised
from atoll.daemon.paths import Paths
from atoll.host import cgroups, scopes
from atoll.host.links import routes
from atoll.host.outward import Networks, parse_networks
from atoll.host.probe.settled import AccelProbe
from atoll.image.book import ImageBook
from atoll.image.imports import ImportImage, import_undoers
from atoll.image.library import Library
from atoll.image.recipes import ubuntu
from atoll.image.recipes.recipe import Recipe
from atoll.image.recipes.registry import recipes
from atoll.image.verbs import Build, DeleteImage, PruneImages, RenameImage, image_undoers
from atoll.instance.admission import HostMemory
from atoll.instance.book import InstanceBook
from atoll.instance.boots import Boots
from atoll.instance.catalog import Catalog
from atoll.instance.dock import Dock
from atoll.instance.engine import Engine, Observed
from atoll.instance.engines.container.engine import Containers
from atoll.instance.engines.container.groups import Groups, trees
from atoll.instance.engines.qemu.engine import Qemu
from atoll.instance.here import Here
from atoll.instance.keeper import Keeper
from atoll.instance.model import Kind, State
from atoll.instance.outbox import Outbox
from atoll.instance.parcels import Parcels
from atoll.instance.ranges import Ranges
from atoll.instance.seeds import SeedBook
from atoll.instance.shell import Shells
from atoll.instance.supplies import Supplies
from atoll.instance.uids import Uids
from atoll.instance.undoers import undoers
from atoll.instance.verbs.change import Rename, Set
from atoll.instance.verbs.delete import Delete
from atoll.instance.verbs.disks import AttachVolume, DetachVolume, GrowVolume
from atoll.instance.verbs.exporting import Export, parcel_undoers
from atoll.instance.verbs.importing import ImportInstance
from atoll.instance.verbs.launch import Launch
from atoll.instance.verbs.media import Eject, Insert
from atoll.instance.verbs.mount import AddMount, RemoveMount
from atoll.instance.verbs.nic import AddNic, RemoveNic, SetNic
from atoll.instance.verbs.power import Pause, Restart, Resume, Revive, Start, Stop
from atoll.network.book import NetworkBook
from atoll.network.enforce import Enforcer
from atoll.network.groupbook import GroupBook
from atoll.network.naming import run_directory
from atoll.network.registry import BY_MODE, Site
from atoll.network.verbs import ChangeGroup, CreateGroup, CreateNetwork, DeleteGroup, DeleteNetwork, Wires
from atoll.operation.book import OperationBook
from atoll.operation.events import Events
from atoll.operation.journal import Journal
from atoll.operation.runner import Hook, Operations, nothing
from atoll.storage.book import StorageBook
from atoll.storage.registry import Pools
from atoll.storage.verbs.pools import CreatePool, DeletePool, pool_undoers
from atoll.storage.verbs.volumes import CreateVolume, DeleteVolume, RenameVolume, volume_undoers
from atoll.storage.verbs.yard import Yard
from atoll.storage.watch import PoolWatch
from atoll.store.api import Key, Store, Txn
from atoll.store.sqlite import SqliteStore

EPOCH = Key("/daemon/epoch")
BOOT = Key("/daemon/boot")
"""The host's boot whose instances were started: another one means that the host was restarted since."""


class RunsGuests(Engine, Protocol):
    def trim_logs(self) -> None:
        """Keep every guest's logs bounded."""


@dataclass(frozen=True, slots=True)
class Atoll:
    """Everything of one daemon, wired. `rebooted`: the host was restarted, and its instances not yet started."""

    services: Services
    local: Store
    keeper: Keeper
    engines: Mapping[Kind, RunsGuests]
    probe: AccelProbe
    library: Library
    networks: Realised
    rebooted: bool

    async def end(self) -> None:
        """Let operations end or leave them to the next daemon, then networks go that no guest needs."""
        await self.keeper.close()
        await self.services.operations.close()
        if await self.idle():
            await self.networks.withdraw()

    async def idle(self) -> bool:
        """Whether no guest runs."""
        found = [await engine.observe() for engine in self.engines.values()]
        return all(seen.state is State.STOPPED for guests in found for seen in guests.values())

    async def adopt(self) -> dict[InstanceId, Observed]:
        """Hold what runs again, of every engine."""
        found: dict[InstanceId, Observed] = {}
        for engine in self.engines.values():
            found |= await engine.adopt()
        return found

    def trim_logs(self) -> None:
        for engine in self.engines.values():
            engine.trim_logs()


@contextlib.asynccontextmanager
async def compose(paths: Paths, config: Config, hook: Hook = nothing) -> AsyncIterator[Atoll]:
    """Wire a daemon over its state directory; leaving lets go of everything, and guests go on."""
    me = identity.load(paths.state)
    async with contextlib.AsyncExitStack() as held:
        shared, local = await SqliteStore.open(paths.shared), await SqliteStore.open(paths.local)
        held.push_async_callback(local.close)
        held.push_async_callback(shared.close)
        epoch, rebooted = await started(local)
        events = Events(local)
        await events.start()
        held.push_async_callback(events.close)
        operations = Operations(OperationBook(shared), Journal(local), events, host=me.id, epoch=epoch, hook=hook)
        images, storage, networks = ImageBook(shared), StorageBook(shared), NetworkBook(shared)
        library = await _library(paths, config, images)
        pools = await _pools(Pools(storage, host=me.id, home=paths.state, warn_at=config.storage.warn_at))
        realised = await _networks(networks, Site(me.tag, run_directory(me.tag), local))
        held.push_async_callback(realised.site.proxies.close)

        kernels = Kernels(library)
        probe = kernels.probe = AccelProbe(paths.state / "accel.json", kernels)
        held.push_async_callback(probe.close)
        await kernels.changed()
        engines = _engines(paths, me.tag, probe)
        held.push_async_callback(_close, engines)
        boots = Boots(paths.state / "instances", library, SeedBook(shared))
        wires = _wires(networks, GroupBook(shared), realised)
        nouns = (shared, images, library, storage, pools, networks, realised.driver, me.id)
        supplies = Supplies(*nouns, wires.raising, wires.groups, wires.enforcer, boots)
        uids, ranges = (Uids(local, me.tag), Ranges(local, me.tag)) if os.geteuid() == 0 else (None, None)
        memory = MemoryNow(parse_size(config.limits.memory_reserve), config.limits.memory_overcommit)
        book = await _swept(InstanceBook(shared), boots)
        here = Here(me.id, book, engines, supplies, uids, memory, events, ranges)
        _teach(operations, here, library, kernels, parse_networks(config.images.private))
        _teach_networks(operations, wires)
        catalog = await held.enter_async_context(Catalog(shared))
        keeper = Keeper(here, operations)
        held.push_async_callback(operations.close)  # before the engine lets go: what runs still needs it
        held.push_async_callback(keeper.close)
        await held.enter_async_context(PoolWatch(pools, events, every=parse_duration(config.storage.check_every)))
        services = Services(
            version=__version__,
            host_id=me.id,
            operations=operations,
            events=events,
            instances=catalog,
            engines=here.engines,
            images=library,
            networks=NetworkList(networks, realised),
            groups=GroupList(wires.groups, wires.enforcer),
            pools=pools,
            tokens=TokenBook(shared),
            host=HostView(paths.state, probe),
            memory=memory,
            ready=lambda: operations.settled,
            seeds=boots.seeds,
            shells=Shells(boots),
            parcels=await _teach_parcels(operations, here, paths, config),
            recipes=tuple(RecipeView(name=name, description=about(one)) for name, one in _recipes(config).items()),
        )
        yield Atoll(services, local, keeper, engines, probe, library, realised, rebooted)


def _recipes(config: Config) -> Mapping[str, Recipe]:
    given = config.images
    return recipes(ubuntu.Archive(given.ubuntu_mirror, Path(given.ubuntu_keyring or ubuntu.KEYRING)))


def about(recipe: Recipe) -> str:
    """A recipe's first words about itself."""
    said = getattr(recipe, "about", "") or getattr(sys.modules[recipe.__module__], "__doc__", "") or ""
    return str(said).strip().partition("\n")[0]


async def _library(paths: Paths, config: Config, images: ImageBook) -> Library:
    largest = parse_size(config.images.max_size)
    library = Library(paths.images, paths.cache, images, _recipes(config), largest=largest)
    await library.open()
    return library


async def _pools(pools: Pools) -> Pools:
    """Opened, the default one among them."""
    await pools.book.ensure_default()
    await pools.open()
    return pools


async def _swept(book: InstanceBook, boots: Boots) -> InstanceBook:
    """The instances' book, once the secrets of launches that never came to be are gone."""
    await boots.seeds.sweep({view.instance.seed for view in await book.all()})
    return book


def _wires(networks: NetworkBook, groups: GroupBook, realised: Realised) -> Wires:
    drivers = BY_MODE if os.geteuid() == 0 else {}
    enforcer = Enforcer(networks, groups, realised.driver)
    return Wires(networks, groups, enforcer, realised.driver, realised.forget, routes, drivers, asyncio.Lock())


def _teach(operations: Operations, here: Here, library: Library, kernels: Kernels, private: Networks) -> None:
    operations.know(
        Launch(here),
        Start(here),
        Revive(here),
        Stop(here),
        Restart(here),
        Pause(here),
        Resume(here),
        Delete(here),
        Set(here),
        Rename(here),
        Eject(here),
        Insert(here),
        AddNic(here),
        RemoveNic(here),
        SetNic(here),
        AddMount(here),
        RemoveMount(here),
        undoers=undoers(here),
    )
    _teach_storage(operations, _yard(here), here)
    operations.know(
        Build(library, kernels.changed),
        DeleteImage(library),
        RenameImage(library),
        PruneImages(library),
        ImportImage(library, private, kernels.changed),
        undoers=image_undoers(library) | import_undoers(library),
    )


def _yard(here: Here) -> Yard:
    async def name_of(id: str) -> str:
        view = await here.book.by_id(id)
        return view.name if view else ""

    pools = here.supplies.pools
    return Yard(pools.book, pools, here.events, name_of)


async def _teach_parcels(operations: Operations, here: Here, paths: Paths, config: Config) -> Parcels:
    dock, outbox = Dock(paths.parcels, parse_size(config.images.max_size)), Outbox()
    await asyncio.to_thread(dock.open)
    verbs = Export(here, dock, outbox), ImportInstance(here, dock, _yard(here))
    operations.know(*verbs, undoers=parcel_undoers(dock))
    return Parcels(here, dock, outbox, operations)


def _teach_storage(operations: Operations, yard: Yard, here: Here) -> None:
    own = CreateVolume(yard), DeleteVolume(yard), RenameVolume(yard), CreatePool(yard), DeletePool(yard)
    operations.know(*own, undoers=volume_undoers(yard) | pool_undoers(yard))
    operations.know(AttachVolume(here, yard), DetachVolume(here, yard), GrowVolume(here, yard))


def _teach_networks(operations: Operations, wires: Wires) -> None:
    operations.know(
        CreateNetwork(wires), DeleteNetwork(wires), CreateGroup(wires), ChangeGroup(wires), DeleteGroup(wires)
    )


async def _close(engines: Mapping[Kind, RunsGuests]) -> None:
    for engine in engines.values():
        await engine.close()


def _engines(paths: Paths, tag: str, probe: AccelProbe) -> dict[Kind, RunsGuests]:
    """Containers take a root's daemon; what else they take, they say when one is launched."""
    scoped = scopes.detect(tag)
    vms = Qemu(paths.run, host_tag=tag, cgroups=scoped or cgroups.detect(tag), accel=probe.settled)
    if os.geteuid() != 0:
        return {Kind.VM: vms}
    groups = Groups(tag, trees(), scoped=scoped is not None)
    return {Kind.VM: vms, Kind.CONTAINER: Containers(paths.state / "containers", groups)}


@dataclass(frozen=True, slots=True)
class MemoryNow:
    """This host's memory and how much of it may be promised, read anew at each call."""

    reserve: int
    overcommit: float

    def __call__(self) -> HostMemory:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return HostMemory(total, self.reserve, self.overcommit)  # type: ignore[arg-type]


async def started(local: Store) -> tuple[int, bool]:
    """The number of this start, and whether the host was restarted since the last `boot_done`."""
    epoch, boot = await local.get(EPOCH), await local.get(BOOT)
    number = int(epoch.value) + 1 if epoch else 1
    await local.commit(Txn(put={EPOCH: str(number).encode()}))
    if boot is None:
        await boot_done(local)
        return number, False
    return number, boot.value != identity.boot_id().encode()


async def boot_done(local: Store) -> None:
    """What was to be started with the host has been."""
    await local.commit(Txn(put={BOOT: identity.boot_id().encode()}))


async def _networks(networks: NetworkBook, site: Site) -> Realised:
    """With the default network on record (a bridge where this daemon may make one, user-mode networking for an
    ordinary user), and nothing on the host of networks that have no record."""
    realised = Realised(site)
    if os.geteuid() == 0:
        await networks.ensure_default("default", "bridge", plans_addresses=True, taken=await routes())
    else:
        await networks.ensure_default("default", "user", plans_addresses=False)
    await realised.withdraw(keep=[network.id for network in await networks.all()])
    return realised
