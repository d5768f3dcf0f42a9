"""Trees that are not unpacked: whoever only asks for them needs no right to."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from atoll.base.errors import Invalid
from atoll.base.ids import Bytes, Digest
from atoll.host.rootfs import Facts, format_of
from atoll.storage.treestore import Fresh
from tests.kit.faults import Faults

SIZE = Bytes(1 << 20)


class FakeTrees(Faults):
    """`held` outlives the object when given, as a disk outlives a daemon. Of a file it looks at the format only."""

    def __init__(self, held: dict[Digest, Facts] | None = None) -> None:
        super().__init__()
        self.held = {} if held is None else held
        self.made = 0

    async def open(self) -> None:
        self.maybe("open")

    def path(self, digest: Digest) -> Path:
        return Path("/fake/trees") / digest.replace(":", "-") / "tree"

    def present(self, digest: Digest) -> bool:
        return digest in self.held

    async def lower(self, digest: Digest, source: Path, format: str) -> Path:
        if digest not in self.held:
            await self.keep(await self.make(source, format), digest)
        return self.path(digest)

    async def make(self, source: Path, format: str) -> Fresh:
        self.maybe("make")
        if await format_of(source) != format:
            raise Invalid(f"{source} is no {format}")
        self.made += 1
        return Fresh(
            Path(f"/fake/trees/.new-{self.made}"), Facts(members=1, bytes=SIZE, top=("bin",), shell="/bin/sh")
        )

    async def keep(self, fresh: Fresh, digest: Digest) -> None:
        self.maybe("keep")
        self.held.setdefault(digest, fresh.facts)

    async def drop(self, fresh: Fresh) -> None:
        self.maybe("drop")

    async def remove(self, digest: Digest) -> None:
        self.maybe("remove")
        self.held.pop(digest, None)

    def facts(self, digest: Digest) -> Facts | None:
        return self.held.get(digest)

    async def usage(self) -> Mapping[Digest, Bytes]:
        return {digest: Bytes(facts.bytes) for digest, facts in self.held.items()}

    async def prune(self, unneeded: Iterable[Digest]) -> Bytes:
        sizes = [Bytes(facts.bytes) for digest in unneeded if (facts := self.held.pop(digest, None))]
        return Bytes(sum(sizes))
