"""What an instance boots from, and what lies on its host for that: variable store, seed, known host key.

ROOT/ID/variables.fd    the UEFI's own memory (boot entries, keys), as the guest last left it
ROOT/ID/seed.iso        what cloud-init is told, written anew at each start
ROOT/ID/known_hosts     the key that its sshd showed first
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from atoll.base.errors import Invalid
from atoll.host import files, firmware
from atoll.image.library import Library
from atoll.image.model import Manifest
from atoll.instance import seed
from atoll.instance.book import InstanceView
from atoll.instance.model import CdromPlan, DirectBoot, InstanceSpec, UefiPlan
from atoll.instance.seeds import SeedBook

Way = Literal["direct", "bios", "uefi"]


class Booting(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a BootPlan that says from what, and whether a guest agent may answer."""

    boot: DirectBoot | None
    agent: bool
    uefi: UefiPlan | None
    cdrom: CdromPlan | None
    seed: str


def choose(spec: InstanceSpec, manifest: Manifest | None) -> Way:
    """How it is started; `manifest` None: its disk is empty. Raises Invalid where it could not be."""
    own = manifest.firmware if manifest else "any"
    kernel = manifest is not None and {"kernel", "initrd"} <= manifest.files.keys()
    if spec.firmware == "auto":
        if kernel and not spec.boot_cdrom and not (spec.hardware == "compatible" and own):
            return "direct"
        return "uefi" if own == "uefi" else "bios"
    if spec.firmware == "direct" and not kernel:
        raise Invalid(
            f"image {spec.image or '(none)'} has no kernel to boot directly",
            hint="--firmware bios or uefi",
            field="spec.firmware",
        )
    if spec.firmware != "direct" and own != "any" and own != spec.firmware and not spec.cdrom:
        can = f"it boots by {own.upper()}" if own else "it boots directly, by its kernel"
        raise Invalid(
            f"image {spec.image} has no bootloader for {spec.firmware.upper()}: {can}",
            hint=f"--firmware {own or 'direct'}",
            field="spec.firmware",
        )
    return spec.firmware


def seeded(spec: InstanceSpec, manifest: Manifest | None, given: str) -> bool:
    """Whether it gets a seed: where its user has something to tell, and where its image is a distribution's."""
    return bool(given or spec.ssh_keys or (manifest is not None and manifest.firmware))


@dataclass(frozen=True, slots=True)
class Boots:
    root: Path
    library: Library
    seeds: SeedBook

    def home(self, id: str) -> Path:
        return self.root / id

    async def prepare(self, view: InstanceView, lans: Sequence[seed.Lan]) -> Booting:
        """Everything ready to be opened. May be repeated. Raises Absent, Lacking, Exhausted, Broken."""
        instance, hardware = view.instance, view.instance.hardware
        home = self.home(view.id)
        with files.translated(f"make {home}"):
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
        direct, agent = await self._kernel(view)
        store = await files.in_thread(self._variables, home, hardware.uefi) if hardware.uefi else None
        drive = None
        if hardware.cdrom:
            iso = (await self.library.layers(instance.cdrom)).iso if instance.cdrom else ""
            drive = CdromPlan(iso, first=instance.spec.boot_cdrom)
        told = ""
        if hardware.seed:
            disk = await self._seed(view, lans)
            with files.translated("write the cloud-init seed"):
                await files.in_thread(files.write_whole, home / "seed.iso", disk)
            told = str(home / "seed.iso")
        return Booting(boot=direct, agent=agent, uefi=store, cdrom=drive, seed=told)

    async def _kernel(self, view: InstanceView) -> tuple[DirectBoot | None, bool]:
        """An empty disk may get a system with an agent; what an image has, its manifest says."""
        if not view.instance.image:
            return None, True
        image = await self.library.layers(view.instance.image)
        agent = image.manifest.agent or bool(view.instance.hardware.cdrom)
        if view.instance.hardware.firmware != "direct":
            return None, agent
        return DirectBoot(image.kernel, image.initrd, image.manifest.cmdline), agent

    def _variables(self, home: Path, build: str) -> UefiPlan:
        found, own = firmware.uefi(build), home / "variables.fd"
        with files.translated("make the UEFI variable store"):
            if not own.exists():
                files.write_whole(own, found.template.read_bytes())
        return UefiPlan(str(found.code), str(own))

    async def _seed(self, view: InstanceView, lans: Sequence[seed.Lan]) -> bytes:
        given = await self.seeds.get(view.project, view.instance.seed)
        keys = [(await self.seeds.keys(view.project)).public, *view.instance.spec.ssh_keys]
        parts = seed.files(given, id=view.id, name=view.name, keys=keys, lans=lans)
        return await files.in_thread(seed.iso, parts)

    async def remove(self, id: str) -> None:
        """All of it. Absent is success."""
        with files.translated(f"remove {self.home(id)}"):
            await files.in_thread(_remove, self.home(id))


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
