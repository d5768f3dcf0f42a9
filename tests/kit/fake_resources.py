"""Images, networks, pools and a host that are a few records in memory."""

from collections.abc import Sequence

import msgspec

from atoll.base import clock
from atoll.base.errors import Absent
from atoll.base.ids import Bytes, Digest, NetworkId, PoolId, VolumeId
from atoll.image.args import BuildArgs, ImageArgs, PruneArgs, RenameImageArgs
from atoll.image.model import File, Image, Manifest
from atoll.network.groups import Group
from atoll.network.model import Network, Port
from atoll.storage.model import Capacity, Pool, Volume

DIGEST = Digest("sha256:" + "ab" * 32)
GIB = 1 << 30


class FakeImages:
    def __init__(self) -> None:
        self.known: dict[tuple[str, str], Image] = {}

    async def list(self, project: str) -> Sequence[Image]:
        return [image for (of, _), image in sorted(self.known.items()) if of == project]

    async def get(self, project: str, name: str) -> Image:
        if (project, name) not in self.known:
            raise Absent(f"there is no image {name}", hint="atoll image list")
        return self.known[project, name]

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

    async def volumes(self, project: str) -> Sequence[Volume]:
        size = Bytes(1 << 30)
        volume = Volume(
            id=VolumeId("v1"), project=project, name="root", pool=PoolId("p1"), size=size, created=clock.now()
        )
        return [volume] if project == "default" else []

    async def capacity(self, pool: Pool) -> Capacity:
        return Capacity(Bytes(100 * GIB), Bytes(GIB), Bytes(99 * GIB))


class FakeFacts(msgspec.Struct, frozen=True):
    name: str = "reef"
    cpus: int = 2


class FakeHost:
    async def facts(self) -> FakeFacts:
        return FakeFacts()

    async def probe(self, *, refresh: bool) -> FakeFacts:
        return FakeFacts(cpus=4 if refresh else 2)
