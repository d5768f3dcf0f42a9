"""Images, networks, pools and a host that are a few records in memory."""

from collections.abc import AsyncIterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from atoll.base import clock
from atoll.base.errors import Absent, Exists
from atoll.base.ids import Bytes, Digest, NetworkId, PoolId, VolumeId
from atoll.image.args import BuildArgs, ImageArgs, PruneArgs, RenameImageArgs
from atoll.image.book import taken
from atoll.image.imports import ImportArgs
from atoll.image.model import File, Image, Manifest
from atoll.image.staging import Upload
from atoll.instance.dock import Received
from atoll.instance.outbox import Sending
from atoll.instance.parcel import read
from atoll.instance.tarred import Reader
from atoll.instance.verbs.args import AttachVolumeArgs, Fitting
from atoll.network.groups import Group
from atoll.network.model import Network, Port
from atoll.storage.args import (
    CreatePoolArgs,
    CreateVolumeArgs,
    GrowVolumeArgs,
    PoolArgs,
    RenameVolumeArgs,
    VolumeArgs,
)
from atoll.storage.book import VolumeView
from atoll.storage.model import Capacity, Pool, Usage, Volume, VolumeAttachment
from atoll.storage.registry import Health
from atoll.store.api import Revision

DIGEST = Digest("sha256:" + "ab" * 32)
GIB = 1 << 30


class FakeImages:
    def __init__(self) -> None:
        self.known: dict[tuple[str, str], Image] = {}
        self.sent: dict[str, bytes] = {}

    async def list(self, project: str) -> Sequence[Image]:
        return [image for (of, _), image in sorted(self.known.items()) if of == project]

    async def get(self, project: str, name: str) -> Image:
        if (project, name) not in self.known:
            raise Absent(f"there is no image {name}", hint="atoll image list")
        return self.known[project, name]

    async def check_free(self, project: str, name: str, *, replace: bool) -> None:
        if not replace and (project, name) in self.known:
            raise taken(name)

    async def receive(self, chunks: AsyncIterator[bytes], length: int | None) -> Upload:
        content = b"".join([chunk async for chunk in chunks])
        self.sent[f".up-{len(self.sent)}"] = content
        return Upload(f".up-{len(self.sent) - 1}", Digest(f"sha256:{sha256(content).hexdigest()}"), len(content))

    def drop(self, upload: Upload) -> None:
        self.sent.pop(upload.name, None)

    async def content(self, project: str, ref: str, role: str = "") -> tuple[File, AsyncIterator[bytes]]:
        file = (await self.get(project, ref)).manifest.files.get(role or "disk")
        if file is None:
            raise Absent(f"image {ref} has no {role}")

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(file.size // 65536):
                yield bytes(65536)

        return file, chunks()

    async def bring(self, args: ImportArgs) -> None:
        await self.check_free(args.project, args.name, replace=args.replace)
        await self.build(BuildArgs(project=args.project, name=args.name, recipe="tiny"))

    async def build(self, args: BuildArgs) -> None:
        manifest = Manifest(arch="x86_64", files={"disk": File(DIGEST, Bytes(1 << 20), "qcow2")}, agent=True)
        self.known[args.project, args.name] = Image(
            digest=DIGEST, project=args.project, name=args.name, manifest=manifest, created=clock.now()
        )

    async def delete(self, args: ImageArgs) -> None:
        await self.get(args.project, args.name)
        del self.known[args.project, args.name]

    async def rename(self, args: RenameImageArgs) -> None:
        image = await self.get(args.project, args.name)
        del self.known[args.project, args.name]
        self.known[args.project, args.to] = msgspec.structs.replace(image, name=args.to)

    async def prune(self, args: PruneArgs) -> None: ...


class FakeNetworks:
    network = Network(
        id=NetworkId("n1"), project="default", name="default", driver="bridge", subnets=("10.9.8.0/24",),
        gateways=("10.9.8.1",), created=clock.now(),
    )  # fmt: skip

    async def list(self, project: str) -> Sequence[Network]:
        return [self.network] if project == "default" else []

    async def get(self, project: str, name: str) -> Network:
        if (project, name) != ("default", "default"):
            raise Absent(f"there is no network {name}")
        return self.network

    async def ports(self, network: NetworkId) -> Sequence[Port]:
        return [Port(id="p1", network=network, instance="i1", mac="52:54:00:12:34:56", addresses=("10.9.8.7",))]  # type: ignore[arg-type]

    async def warnings(self, network: Network) -> Sequence[str]:
        return ["a firewall drops what is forwarded"]


class FakeGroups:
    group = Group(id="g1", project="default", name="web1", created=clock.now())

    async def list(self, project: str) -> Sequence[Group]:
        return [self.group] if project == "default" else []

    async def get(self, project: str, name: str) -> Group:
        if (project, name) != ("default", "web1"):
            raise Absent(f"there is no group {name}")
        return self.group

    async def users(self, group: Group) -> Sequence[str]:
        return ["web1"]


class FakePools:
    pool = Pool(id=PoolId("p1"), project="default", name="default", driver="dir", created=clock.now())

    async def list(self, project: str) -> Sequence[Pool]:
        return [self.pool] if project == "default" else []

    async def get(self, project: str, name: str) -> Pool:
        if (project, name) != ("default", "default"):
            raise Absent(f"there is no pool {name}")
        return self.pool

    def __init__(self) -> None:
        self.known: dict[str, Volume] = {}
        self._put("root", GIB, named=False)

    def _put(self, name: str, size: int, **rest: Any) -> None:
        id = VolumeId(f"v{len(self.known) + 1}")
        self.known[name] = Volume(
            id=id, project="default", name=name, pool=PoolId("p1"), size=Bytes(size), created=clock.now(), **rest
        )

    async def all(self) -> Sequence[Pool]:
        return [self.pool]

    async def volumes(self, project: str) -> Sequence[Volume]:
        return list(self.known.values()) if project == "default" else []

    async def all_volumes(self) -> Sequence[Volume]:
        return list(self.known.values())

    async def volume(self, project: str, ref: str) -> VolumeView:
        if project != "default" or ref not in self.known:
            raise Absent(f"there is no volume {ref}")
        return VolumeView(self.known[ref], Revision(1))

    async def attachments(self) -> Mapping[str, VolumeAttachment]:
        return {}

    async def usage(self, volume: Volume) -> Usage | None:
        return Usage(volume.size, Bytes(1 << 20), Bytes(1 << 20))

    async def health(self, pool: Pool) -> Health:
        return Health(Capacity(Bytes(100 * GIB), Bytes(GIB), Bytes(99 * GIB)))

    def filled(self, health: Health) -> int:
        return 0

    async def place(self, pool: Pool) -> Path:
        return Path("/var/lib/atoll/pools/p1")

    async def create_volume(self, args: CreateVolumeArgs) -> None:
        if args.name in self.known:
            raise Exists(f"volume {args.name} already exists", field="name")
        self._put(args.name, args.size, format=args.format, named=True)

    async def delete_volume(self, args: VolumeArgs) -> None:
        await self.volume(args.project, args.name)
        del self.known[args.name]

    async def change_volume(self, args: VolumeArgs | AttachVolumeArgs) -> None:
        await self.volume(args.project, args.name)

    async def grow_volume(self, args: GrowVolumeArgs) -> None:
        view = await self.volume(args.project, args.name)
        self.known[args.name] = msgspec.structs.replace(view.volume, size=args.size)

    async def rename_volume(self, args: RenameVolumeArgs) -> None:
        view = await self.volume(args.project, args.name)
        del self.known[args.name]
        self.known[args.to] = msgspec.structs.replace(view.volume, name=args.to)

    async def change_pool(self, args: CreatePoolArgs | PoolArgs) -> None: ...


class FakeParcels:
    """Takes what has a manifest, and has something to fetch for everybody."""

    async def receive(self, project: str, chunks: AsyncIterator[bytes], how: Fitting) -> Received:
        parcel = read(await Reader(chunks).manifest(), largest=1 << 40)
        async for _ in chunks:
            pass
        return Received(".up-0", parcel)

    def drop(self, received: Received) -> None: ...

    async def fetch(self, project: str, id: str) -> Sending:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"all of it"

        return Sending(9, chunks())


class FakeFacts(msgspec.Struct, frozen=True):
    name: str = "reef"
    cpus: int = 2


class FakeHost:
    async def facts(self) -> FakeFacts:
        return FakeFacts()

    async def probe(self, *, refresh: bool) -> FakeFacts:
        return FakeFacts(cpus=4 if refresh else 2)
