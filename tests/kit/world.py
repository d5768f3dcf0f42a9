"""One host on fakes: real records, operations and verbs; engine, pool and network that pretend and can fail.

What a host has (guests, volumes, ports) and the stores outlive a daemon: `boot` again is a restart of it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from atoll.base.errors import AtollError
from atoll.base.ids import Bytes, HostId
from atoll.image.book import ImageBook
from atoll.image.library import Library
from atoll.image.model import Manifest
from atoll.instance.admission import HostMemory
from atoll.instance.book import InstanceBook, InstanceView
from atoll.instance.boots import Boots
from atoll.instance.dock import Dock
from atoll.instance.here import Here
from atoll.instance.keeper import Keeper
from atoll.instance.model import InstanceSpec, Kind
from atoll.instance.outbox import Outbox
from atoll.instance.parcels import Parcels
from atoll.instance.seeds import SeedBook
from atoll.instance.supplies import Supplies
from atoll.instance.undoers import undoers
from atoll.instance.verbs.args import ExportArgs, Fitting
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
from atoll.network.model import Network
from atoll.operation.book import OperationBook
from atoll.operation.events import Events
from atoll.operation.journal import Journal
from atoll.operation.model import Actor, Operation, Subject, as_error
from atoll.operation.runner import Hook, Operations, Request, nothing
from atoll.storage.book import StorageBook
from atoll.storage.model import Pool
from atoll.storage.registry import Pools, Site
from atoll.storage.verbs.pools import CreatePool, DeletePool, pool_undoers
from atoll.storage.verbs.volumes import CreateVolume, DeleteVolume, RenameVolume, volume_undoers
from atoll.storage.verbs.yard import Yard
from atoll.store.memory import MemoryStore
from tests.kit.fake_engine import FakeEngine, FakeHost
from tests.kit.fake_network import FakeNetwork
from tests.kit.fake_pool import FakePool

ME = Request(actor=Actor("uid", "0"))
GIB = 1 << 30


@dataclass
class World:
    root: Path
    shared: MemoryStore = field(default_factory=MemoryStore)
    local: MemoryStore = field(default_factory=MemoryStore)
    pool: FakePool = field(default_factory=FakePool)
    pools: dict[str, FakePool] = field(default_factory=dict)
    guests: FakeHost = field(default_factory=FakeHost)
    engine: FakeEngine = field(default_factory=FakeEngine)
    nets: dict[str, FakeNetwork] = field(default_factory=dict)
    memory: HostMemory = field(default_factory=lambda: HostMemory(Bytes(64 * GIB), Bytes(0)))
    back_off: tuple[float, ...] = (0.01,)
    epoch: int = 0
    operations: Any = None
    here: Any = None
    keeper: Any = None
    yard: Any = None
    parcels: Any = None

    @asynccontextmanager
    async def boot(self, hook: Hook = nothing, *, rebooted: bool = False) -> AsyncIterator["World"]:
        """A daemon's life: found guests, recovered operations, reconciled records. Leaving is `kill -9`."""
        self.epoch += 1
        self.engine = FakeEngine(self.guests)
        events = Events(self.local)
        await events.start()
        host = HostId("7c0e5c1e-6e0e-4a1f-9d6b-0d7d6f3b1a2c")
        self.operations = Operations(
            OperationBook(self.shared), Journal(self.local), events, host=host, epoch=self.epoch, hook=hook
        )
        supplies = await self._supplies(host)
        self.here = Here(
            host, InstanceBook(self.shared), {Kind.VM: self.engine}, supplies, None, lambda: self.memory, events
        )
        verbs = (
            *(Launch, Start, Revive, Stop, Restart, Pause, Resume, Delete, Set, Rename, Eject, Insert),
            *(AddNic, RemoveNic, SetNic, AddMount, RemoveMount),
        )
        self.operations.know(*(verb(self.here) for verb in verbs), undoers=undoers(self.here))
        self._know_storage()
        self._know_parcels()
        self.keeper = Keeper(self.here, self.operations, back_off=self.back_off)
        found = await self.engine.adopt()
        self.keeper.start()
        try:
            await self.operations.recover()
            await self.keeper.reconcile(found, rebooted=rebooted)
            yield self
        finally:
            await self.keeper.close()
            for task in [t for t in asyncio.all_tasks() if t.get_name().startswith(("instance.", "image."))]:
                task.cancel()
            await events.close()

    async def _supplies(self, host: HostId) -> Supplies:
        images, storage, networks = ImageBook(self.shared), StorageBook(self.shared), NetworkBook(self.shared)
        library = Library(self.root / "images", self.root / "cache", images, {})
        if self.epoch == 1:
            await library.open()
            await self._image(library)
        pools = Pools(storage, host=host, home=self.root / "state", drivers={"dir": self._driver})
        await storage.ensure_default()
        await networks.ensure_default("default", "bridge", plans_addresses=True)

        async def realise(record: Network) -> FakeNetwork:
            return self.nets.setdefault(record.id, FakeNetwork(record))

        groups = GroupBook(self.shared)
        enforcer = Enforcer(networks, groups, realise)
        boots = Boots(self.root / "instances", library, SeedBook(self.shared))
        nouns = (self.shared, images, library, storage, pools, networks, realise, host)
        return Supplies(*nouns, asyncio.Lock(), groups, enforcer, boots)

    def _driver(self, pool: Pool, _: Site) -> FakePool:
        return self.pool if pool.name == "default" else self.pools.setdefault(pool.id, FakePool(pool.name))

    def _know_storage(self) -> None:
        async def name_of(id: str) -> str:
            view = await self.here.book.by_id(id)
            return view.name if view else ""

        here, supplies = self.here, self.here.supplies
        self.yard = yard = Yard(supplies.storage, supplies.pools, here.events, name_of)
        own = CreateVolume(yard), DeleteVolume(yard), RenameVolume(yard), CreatePool(yard), DeletePool(yard)
        self.operations.know(*own, undoers=volume_undoers(yard) | pool_undoers(yard))
        self.operations.know(AttachVolume(here, yard), DetachVolume(here, yard), GrowVolume(here, yard))

    def _know_parcels(self) -> None:
        dock, outbox = Dock(self.root / "parcels", largest=1 << 40), Outbox()
        dock.open()
        verbs = Export(self.here, dock, outbox), ImportInstance(self.here, dock, self.yard)
        self.operations.know(*verbs, undoers=parcel_undoers(dock))
        self.parcels = Parcels(self.here, dock, outbox, self.operations)

    async def _image(self, library: Library) -> None:
        files = {}
        for role in ("disk", "kernel", "initrd"):
            path = self.root / role
            path.write_bytes(role.encode())
            files[role] = await library.blobs.add(path)
        disk = msgspec.structs.replace(files["disk"], virtual_size=Bytes(GIB))
        manifest = Manifest(arch="x86_64", files={**files, "disk": disk}, cmdline="root=/dev/vda", agent=True)
        await library.book.record("default", "tiny", manifest)

    async def do(self, verb: str, name: str = "web", **args: Any) -> Any:
        if verb == "instance.export":
            return await self.export(name, **args)
        args_type = self.operations.verbs[verb].args
        made = args_type(project="default", name=name, **args)
        return await self.operations.do(verb, made, Subject(verb.partition(".")[0], "default", name), ME)

    async def export(self, name: str = "web", **args: Any) -> bytes:
        """The whole file, fetched while the operation runs. Raises what that ends with."""
        made = ExportArgs(project="default", name=name, **args)
        subject = Subject("instance", "default", name)
        operation, work = await self.operations._accept("instance.export", made, subject, ME)
        got = []
        with contextlib.suppress(AtollError):
            sending = await self.parcels.fetch("default", operation.id)
            got = [chunk async for chunk in sending.chunks]
            assert sum(map(len, got)) == sending.length
        await work.task
        if (ended := await self.operations.book.get(operation.id)).problem:
            raise as_error(ended.problem)
        return b"".join(got)

    async def bring(self, file: bytes, **how: Any) -> Any:
        """Import a file, as the route does. What the import tells."""
        fitting = Fitting(**how)

        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, len(file), 100_000):
                yield file[at : at + 100_000]

        received = await self.parcels.receive("default", chunks(), fitting)
        given = received.parcel.cloud_init
        seed = await self.here.supplies.boots.seeds.put("default", given) if given else ""
        name = fitting.name or received.parcel.name
        return await self.do("instance.import", name, upload=received.upload, fitting=fitting, seed=seed)

    async def launch(self, name: str = "web", *, start: bool = True, **spec: Any) -> InstanceView:
        await self.do("instance.launch", name, spec=InstanceSpec(image="tiny", **spec), start=start)
        return await self.get(name)

    async def submit(self, verb: str, name: str = "web", **args: Any) -> Operation:
        made = self.operations.verbs[verb].args(project="default", name=name, **args)
        operation: Operation = await self.operations.submit(verb, made, Subject("instance", "default", name), ME)
        return operation

    async def get(self, name: str = "web") -> InstanceView:
        view: InstanceView = await self.here.book.get("default", name)
        return view

    async def leftovers(self) -> list[object]:
        """Everything on the host and in the records that an instance had."""
        net = next(iter(self.nets.values()), None)
        supplies = self.here.supplies
        [network] = await supplies.networks.all()
        image = (await supplies.images.find("default", "tiny")).image
        return [
            *await self.here.book.all(),
            *(self.root / "parcels").iterdir(),
            *self.pool.held,
            *[id for pool in self.pools.values() for id in pool.held],
            *(await net.ports() if net else ()),
            *[id for id, seen in (await self.engine.observe()).items() if seen.pid],
            *await supplies.storage.all_volumes(),
            *await supplies.networks.ports(network.id),
            *await supplies.images.uses(image.digest),
        ]
