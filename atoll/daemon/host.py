"""What the API tells of this host: facts, and what was found out by trying."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from atoll.host.probe.accel import Accel
from atoll.host.probe.facts import HostFacts, facts
from atoll.host.probe.parts import PartState, parts
from atoll.host.probe.settled import AccelProbe
from atoll.image.library import Library
from atoll.network.foreign import warnings


class Probed(msgspec.Struct, frozen=True):
    """`parts`: kernel parts, tools and settings; each missing one with what it costs and how to get it.
    `firewalls`: those of others that drop what our networks carry."""

    accel: Accel
    facts: HostFacts
    parts: tuple[PartState, ...]
    firewalls: tuple[str, ...] = ()


@dataclass(slots=True)
class Kernels:
    """The kernels of this host's images: what the acceleration probe may boot, in no order."""

    library: Library
    probe: AccelProbe | None = None
    paths: tuple[Path, ...] = ()

    def __call__(self) -> Iterable[Path]:
        return self.paths

    async def changed(self) -> None:
        """Look at the images again, then probe if that could tell more than is known."""
        manifests = await self.library.book.manifests()
        found = [m.files["kernel"].digest for m in manifests.values() if "kernel" in m.files]
        self.paths = tuple(self.library.blobs.path(digest) for digest in found)
        if self.probe is not None:
            self.probe.start()


@dataclass(frozen=True, slots=True)
class HostView:
    state: Path
    probe_: AccelProbe

    async def facts(self) -> HostFacts:
        return await facts()

    async def probe(self, *, refresh: bool) -> Probed:
        accel = await self.probe_.again() if refresh else await self.probe_.settled()
        return Probed(accel, await facts(), tuple(await parts(self.state, accel)), tuple(await warnings()))
