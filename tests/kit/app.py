"""The API on fakes: real store contract (memory), real operations and events, an engine and verbs that pretend."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from atoll.api.app import build
from atoll.api.door import PEER, App, Door
from atoll.api.services import Limits, Services
from atoll.api.tokens import TokenBook
from atoll.base import clock
from atoll.base.errors import Absent, Conflict, Exists, Refused
from atoll.base.ids import Bytes, Generation, HostId, InstanceId, VolumeId, new_uuid
from atoll.client.wire import RecipeView
from atoll.image.args import BuildArgs, ImageArgs, PruneArgs, RenameImageArgs
from atoll.image.imports import ImportArgs
from atoll.instance.admission import HostMemory
from atoll.instance.book import InstanceBook, InstanceView
from atoll.instance.engine import EngineTraits, Furnish, GuestEvent, Observed, Outcome, Stats
from atoll.instance.model import BootPlan, Disk, Hardware, Instance, InstanceSpec, InstanceStatus, Kind, Nic, State
from atoll.instance.model import Limits as Shares
from atoll.instance.seeds import SeedBook
from atoll.instance.verbs import args
from atoll.instance.verbs.args import (
    AddNicArgs,
    AttachVolumeArgs,
    DeleteArgs,
    ExportArgs,
    ImportInstanceArgs,
    InsertArgs,
    LaunchArgs,
    NamedArgs,
    RenameArgs,
    SetArgs,
    SetNicArgs,
    StopArgs,
)
from atoll.network.args import ChangeGroupArgs, CreateGroupArgs, CreateNetworkArgs, GroupArgs, NetworkArgs
from atoll.operation.book import OperationBook
from atoll.operation.events import Events
from atoll.operation.journal import Journal
from atoll.operation.runner import Operations
from atoll.operation.verb import Recovery
from atoll.storage.args import (
    CreatePoolArgs,
    CreateVolumeArgs,
    GrowVolumeArgs,
    PoolArgs,
    RenameVolumeArgs,
    VolumeArgs,
)
from atoll.store.api import Revision
from atoll.store.memory import MemoryStore
from tests.kit.fake_resources import (
    DIGEST,
    GIB,
    FakeGroups,
    FakeHost,
    FakeImages,
    FakeNetworks,
    FakeParcels,
    FakePools,
)
from tests.kit.fake_streams import Echoing, FakeStream

HOST = HostId("7c0e5c1e-6e0e-4a1f-9d6b-0d7d6f3b1a2c")


def make_instance(name: str, spec: InstanceSpec | None = None, project: str = "default") -> Instance:
    """As rich as a real one, so that sizes and speeds mean something."""
    nics = (Nic(port="p-" + name, network="default", mac="52:54:00:12:34:56", slot=2, addresses=("10.9.8.7",)),)  # type: ignore[arg-type]
    hardware = Hardware(
        arch="x86_64",
        machine="pc-q35-7.2",
        accel="tcg",
        cpu="max",
        max_cpus=8,
        max_memory=Bytes(4 * GIB),
        disks=(Disk(volume=VolumeId(new_uuid()), serial="root", slot=1),),
        nics=nics,
    )
    return Instance(
        id=InstanceId(new_uuid()),
        project=project,
        name=name,
        spec=spec or InstanceSpec(image="tiny", labels={"tier": "web"}),
        hardware=hardware,
        image=DIGEST,
        created=clock.now(),
    )


def make_view(name: str, revision: int = 1, state: State = State.RUNNING) -> InstanceView:
    status = InstanceStatus(host=HOST, state=state, generation=Generation(1), since=clock.now())
    return InstanceView(
        instance=make_instance(name),
        status=status,
        revision=Revision(revision),
        status_revision=Revision(revision),
    )


class BookReads:
    """The read side straight from the records."""

    def __init__(self, book: InstanceBook) -> None:
        self.book = book

    async def list(self, project: str | None) -> Sequence[InstanceView]:
        return [view for view in await self.book.all() if project in (None, view.project)]

    async def get(self, project: str, name: str) -> InstanceView:
        return await self.book.get(project, name)


@dataclass
class FakeGuests:
    """An engine whose guests are a dict: all abilities, files in memory, `execute` is a tiny `echo`."""

    kind: Kind = Kind.VM
    traits: EngineTraits = field(default_factory=EngineTraits)
    files: dict[str, bytes] = field(default_factory=dict)
    agent: bool = True

    async def adopt(self) -> Mapping[InstanceId, Observed]:
        return {}

    async def observe(self) -> Mapping[InstanceId, Observed]:
        return {}

    async def start(self, plan: BootPlan) -> None: ...
    async def stop(self, guest: InstanceId, *, grace: float) -> None: ...
    async def pause(self, guest: InstanceId) -> None: ...
    async def resume(self, guest: InstanceId) -> None: ...
    async def resize(self, guest: InstanceId, *, cpus: int, memory: Bytes) -> None: ...
    async def limit(self, guest: InstanceId, limits: Shares) -> None: ...
    async def furnish(self, want: Furnish) -> Hardware:
        return make_instance("born").hardware

    async def forget(self, guest: InstanceId) -> None: ...
    async def events(self) -> AsyncIterator[GuestEvent]:
        await asyncio.Event().wait()
        yield GuestEvent(InstanceId(""), Observed(State.STOPPED, Generation(0)))

    async def close(self) -> None: ...

    async def console(self, guest: InstanceId) -> FakeStream:
        if not self.agent:
            raise Refused("the guest does not run", hint="atoll start NAME")
        return FakeStream()

    async def log(self, guest: InstanceId, *, limit: int = 64 << 10) -> bytes:
        return b"Linux version 6.1\n"[-limit:]

    async def ready(self, guest: InstanceId, *, timeout: float) -> None: ...

    async def execute(
        self,
        guest: InstanceId,
        argv: tuple[str, ...],
        *,
        input: bytes = b"",
        env: Mapping[str, str] = {},
        timeout: float | None = None,
    ) -> Outcome:
        if argv[0] == "missing":
            raise Absent("there is no program missing in the guest")
        if argv[0] == "crash":
            raise ValueError("an engine's bug")
        return Outcome(code=0, stdout=" ".join(argv[1:]).encode() + input, stderr=b"\xff")

    async def pull(self, guest: InstanceId, path: str) -> AsyncIterator[bytes]:
        if path not in self.files:
            raise Absent(f"there is no file {path} in the guest")
        data = self.files[path]
        for at in range(0, len(data), 65536):
            yield data[at : at + 65536]

    async def push(self, guest: InstanceId, path: str, chunks: AsyncIterator[bytes], *, mode: int) -> int:
        self.files[path] = b"".join([chunk async for chunk in chunks])
        return len(self.files[path])

    async def addresses(self, guest: InstanceId) -> Mapping[str, tuple[str, ...]]:
        return {"52:54:00:12:34:56": ("10.9.8.7", "fe80::1")}

    async def display(self, guest: InstanceId) -> str:
        return f"/nowhere/{guest}.vnc"

    async def screenshot(self, guest: InstanceId) -> bytes:
        return b"\x89PNG\r\n\x1a\n"

    async def stats(self, guest: InstanceId) -> Stats:
        return Stats(cpu_seconds=1.5, memory=Bytes(64 << 20))


class Pretend:
    """A verb of two steps that does `act`."""

    steps: Mapping[str, Recovery] = {"claim": Recovery.TAKE_BACK, "finish": Recovery.FINISH}

    def __init__(self, name: str, args: type[msgspec.Struct], act: Any, pace: "Pace") -> None:
        self.name, self.args, self._act, self._pace = name, args, act, pace

    async def run(self, work: Any, args: Any) -> Any:
        await work.step("claim", percent=10)
        await self._pace.wait()
        await work.step("finish", percent=90)
        return await self._act(args)


class Pace:
    """Open unless a test closes it to hold operations in their first step."""

    def __init__(self) -> None:
        self._gate = asyncio.Event()
        self._gate.set()

    def hold(self) -> None:
        self._gate.clear()

    def go(self) -> None:
        self._gate.set()

    async def wait(self) -> None:
        await self._gate.wait()


class FakeVerbs:
    """What the instance and image verbs do to records, without disks, ports or guests."""

    def __init__(
        self, book: InstanceBook, store: MemoryStore, images: FakeImages, pools: FakePools, pace: Pace
    ) -> None:
        self.book, self.store, self.images, self.pools, self.pace = book, store, images, pools, pace

    def all(self) -> list[Pretend]:
        table: list[tuple[str, type[msgspec.Struct], Any]] = [
            ("instance.launch", LaunchArgs, self.launch),
            ("instance.start", NamedArgs, self._to(State.STARTING, State.RUNNING)),
            ("instance.stop", StopArgs, self._to(State.STOPPED)),
            ("instance.restart", StopArgs, self._to(State.STOPPED, State.STARTING, State.RUNNING)),
            ("instance.pause", NamedArgs, self._to(State.PAUSED)),
            ("instance.resume", NamedArgs, self._to(State.RUNNING)),
            ("instance.rename", RenameArgs, self.rename),
            ("instance.set", SetArgs, self.set),
            ("instance.delete", DeleteArgs, self.delete),
            ("instance.eject", NamedArgs, self._to()),
            ("instance.export", ExportArgs, self.accept),
            ("instance.import", ImportInstanceArgs, self.accept),
            ("instance.insert", InsertArgs, self._to()),
            ("image.build", BuildArgs, self.images.build),
            ("image.delete", ImageArgs, self.images.delete),
            ("image.rename", RenameImageArgs, self.images.rename),
            ("image.prune", PruneArgs, self.images.prune),
            ("volume.create", CreateVolumeArgs, self.pools.create_volume),
            ("volume.delete", VolumeArgs, self.pools.delete_volume),
            ("volume.attach", AttachVolumeArgs, self.pools.change_volume),
            ("volume.detach", VolumeArgs, self.pools.change_volume),
            ("volume.grow", GrowVolumeArgs, self.pools.grow_volume),
            ("volume.rename", RenameVolumeArgs, self.pools.rename_volume),
            ("pool.create", CreatePoolArgs, self.pools.change_pool),
            ("pool.delete", PoolArgs, self.pools.change_pool),
            ("image.import", ImportArgs, self.images.bring),
        ]
        table += [
            ("network.create", CreateNetworkArgs, self.accept),
            ("network.delete", NetworkArgs, self.accept),
            ("group.create", CreateGroupArgs, self.accept),
            ("group.change", ChangeGroupArgs, self.accept),
            ("group.delete", GroupArgs, self.accept),
            ("instance.nic-add", AddNicArgs, self.accept),
            ("instance.nic-set", SetNicArgs, self.accept),
            ("instance.nic-remove", args.RemoveNicArgs, self.accept),
            ("instance.mount-add", args.AddMountArgs, self.accept),
            ("instance.mount-remove", args.RemoveMountArgs, self.accept),
        ]
        return [Pretend(name, kind, act, self.pace) for name, kind, act in table]

    async def accept(self, args: msgspec.Struct) -> None:
        """What the app's tests look at is the way there."""

    async def launch(self, args: LaunchArgs) -> None:
        state = State.RUNNING if args.start else State.STOPPED
        status = InstanceStatus(host=HOST, state=state, generation=Generation(1), since=clock.now())
        try:
            await self.store.commit(self.book.claiming(make_instance(args.name, args.spec, args.project), status))
        except Conflict as error:
            raise Exists(
                f"instance {args.name} already exists", hint="choose another name", field="name"
            ) from error

    def _to(self, *states: State) -> Any:
        async def act(args: NamedArgs | StopArgs) -> None:
            view = await self.book.get(args.project, args.name)
            for state in states:
                view = await self.book.claim(view, msgspec.structs.replace(view.status, state=state))

        return act

    async def rename(self, args: RenameArgs) -> None:
        await self.book.rename(await self.book.get(args.project, args.name), args.to)

    async def set(self, args: SetArgs) -> None:
        view = await self.book.get(args.project, args.name)
        given = {k: v for k, v in msgspec.structs.asdict(args.changes).items() if v is not msgspec.UNSET}
        spec = msgspec.structs.replace(view.instance.spec, **given)
        await self.book.write_definition(view, msgspec.structs.replace(view.instance, spec=spec))

    async def delete(self, args: DeleteArgs) -> None:
        view = await self.book.get(args.project, args.name)
        if view.status.state is State.RUNNING and not args.force:
            raise Refused(f"{args.name} runs", hint="stop it, or --force")
        await self.store.commit(self.book.releasing(view))


@dataclass
class Kit:
    """The app, and what a test reaches behind it for."""

    app: Door
    services: Services
    book: InstanceBook
    engine: FakeGuests
    pace: Pace

    async def close(self) -> None:
        self.pace.go()
        await self.services.operations.close(grace=5)
        await self.services.events.close()

    def as_uid(self, uid: int = 1000) -> App:
        """The app as it answers to a user of the unix socket."""

        async def from_socket(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                scope.setdefault("state", {})[PEER] = uid
            await self.app(scope, receive, send)

        return from_socket


async def make_kit(*, instances: Any = None, limits: Limits | None = None, **services_: Any) -> Kit:
    store, local = MemoryStore(), MemoryStore()
    events = Events(local)
    await events.start()
    operations = Operations(OperationBook(store), Journal(local), events, host=HOST, epoch=1)
    book, pace, images, engine = InstanceBook(store), Pace(), FakeImages(), FakeGuests()
    pools = FakePools()
    operations.know(*FakeVerbs(book, store, images, pools, pace).all())
    services = Services(
        version="0.1.0",
        host_id=HOST,
        operations=operations,
        events=events,
        instances=instances or BookReads(book),
        engines={Kind.VM: engine},
        images=images,
        networks=FakeNetworks(),
        groups=FakeGroups(),
        pools=pools,
        tokens=TokenBook(store),
        host=FakeHost(),
        memory=lambda: HostMemory(total=Bytes(8 * GIB), reserve=Bytes(GIB)),
        seeds=SeedBook(store),
        shells=Echoing(),
        parcels=FakeParcels(),
        recipes=(RecipeView(name="tiny", description="Debian's kernel and busybox"),),
        limits=limits or Limits(),
        **services_,
    )
    return Kit(build(services), services, book, engine, pace)
