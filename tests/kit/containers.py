"""Root file systems for containers, made of busybox in a moment, and the host of the engine's contract suite."""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from atoll.base.ids import Bytes, InstanceId
from atoll.base.units import MiB
from atoll.host.run import run
from atoll.instance.engines.container import adopt
from atoll.instance.engines.container.engine import Containers
from atoll.instance.engines.container.groups import Groups, trees
from atoll.instance.engines.container.rundir import names_of
from atoll.instance.model import BootPlan, ContainerPlan, ContainerSpec, DiskPlan, NicPlan
from atoll.network.model import Plugged
from atoll.storage.model import FOREIGN_BASE, Attachment, Bus, Layer
from tests.kit.benches import end_all
from tests.kit.plans import boot_plan, hardware

IDS = 700_000_000
"""Of the containers of a bench: no Atoll's range begins there."""

INIT = """#!/bin/sh
trap 'exit 0' USR2 TERM
echo "hello from $(hostname)"
while :; do sleep 1000 & wait $!; done
"""
INITTAB = """::sysinit:/bin/echo hello from init
::respawn:-/bin/sh
"""


def make_tree(at: Path, *, init: str = "") -> Path:
    """A tree owned by the FOREIGN ids: busybox under all its names as userland, its init or a script as the first
    program."""
    for folder in ("bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp", "root", "var"):
        (at / folder).mkdir(parents=True)
    (at / "tmp").chmod(0o1777)
    busybox = shutil.which("busybox")
    assert busybox, "apt-get install busybox-static"
    shutil.copy(busybox, at / "bin/busybox")
    for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if not (at / "bin" / applet).exists():
            (at / "bin" / applet).symlink_to("busybox")
    (at / "etc/inittab").write_text(INITTAB)
    (at / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:u:/tmp:/bin/sh\n")
    (at / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
    if init:
        (at / "sbin/init").write_text(init)
        (at / "sbin/init").chmod(0o755)
    else:
        (at / "sbin/init").symlink_to("../bin/busybox")
    own(at)
    return at


def own(at: Path) -> None:
    """Give it the owner of every tree on a disk."""
    for where, folders, files in os.walk(at):
        for name in (".", *folders, *files):
            os.lchown(Path(where) / name, FOREIGN_BASE, FOREIGN_BASE)


def make_volume(at: Path, tree: Path) -> Attachment:
    """As a pool attaches a root volume over a tree."""
    (at / "upper").mkdir(parents=True)
    (at / "work").mkdir()
    os.chown(at / "upper", FOREIGN_BASE, FOREIGN_BASE)
    return Attachment((Layer(str(at), "tree"), Layer(str(tree), "tree", read_only=True)))


class ContainerBench:
    """Real containers of busybox, under a tag of their own."""

    def __init__(self, place: Path) -> None:
        self._place, self.tag = place, secrets.token_hex(3)
        self.run = place / "run"
        self.groups = Groups(self.tag, trees())
        self.tree = make_tree(place / "tree")
        self._engines: list[Containers] = []
        self._links: list[str] = []

    async def engine(self) -> Any:
        """What it has not (screens, disks) is not asked of it."""
        engine = Containers(self.run, self.groups)
        self._engines.append(engine)
        return engine

    async def plan(self, **changes: Any) -> BootPlan:
        made = boot_plan(**changes)
        volume = make_volume(self._place / f"volume-{made.id}-{len(list(self._place.iterdir()))}", self.tree)
        fixed: dict[str, Any] = {
            "disks": (DiskPlan("serial1", 0, volume),),
            "hardware": hardware(machine="lxc", accel="none", nics=()),
            "boot": None,
            "memory": Bytes(64 * MiB),
            "container": ContainerPlan(ids=IDS, spec=ContainerSpec()),
        }
        return boot_plan(**{"id": made.id, "name": made.name, **fixed, **changes})

    async def empty_disk(self, slot: int, bus: Bus = "virtio") -> DiskPlan:
        raise NotImplementedError

    async def nic(self, slot: int) -> NicPlan:
        link, peer = f"at{self.tag}test{slot}", f"at{self.tag}-v{slot}"
        await run(["ip", "link", "add", link, "type", "veth", "peer", "name", peer])
        self._links.append(link)
        return NicPlan("52:54:00:00:00:77", slot, Plugged("veth", link=link, peer=peer))

    def cling(self, guest: InstanceId, slot: int) -> None:
        raise NotImplementedError

    async def kill(self, guest: InstanceId) -> None:
        traces = await asyncio.to_thread(adopt.look, self.run, names_of(self.tag), self.groups)
        os.kill(next(t.handle.init for t in traces if t.id == guest and t.handle), signal.SIGKILL)

    async def close(self) -> None:
        """Nothing may be left."""
        await end_all(self._engines, await self.engine())
        for link in self._links:
            await run(["ip", "link", "del", link], check=False)
        assert not self.groups.names()
        assert not list(self.run.iterdir())
        assert str(self.run) not in Path("/proc/mounts").read_text()
        assert not names_of(self.tag).parent.exists()
