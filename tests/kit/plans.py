"""Boot plans for tests."""

import itertools
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from atoll.base.ids import Bytes, Generation, InstanceId, PortId, VolumeId, new_uuid
from atoll.base.units import GiB, MiB
from atoll.instance.engines.qemu.machine import TCG_CPU
from atoll.instance.model import BootPlan, DirectBoot, Disk, DiskPlan, Hardware, Limits, Nic, NicPlan
from atoll.network.model import Plugged
from atoll.storage.model import Attachment, Layer

_numbers = itertools.count(1)


def hardware(**changes: Any) -> Hardware:
    fixed = Hardware(
        arch="x86_64",
        machine="pc-q35-7.2",
        accel="tcg",
        cpu=TCG_CPU,
        max_cpus=2,
        max_memory=Bytes(1 * GiB),
        disks=(Disk(VolumeId("v1"), "serial1", 0),),
        nics=(Nic(PortId("p1"), "default", "52:54:00:00:00:01", 1),),
    )
    return replace(fixed, **changes)


def boot_plan(**changes: Any) -> BootPlan:
    """A whole plan that names files that do not exist."""
    plan = BootPlan(
        id=InstanceId(new_uuid()),
        project="default",
        name=f"web{next(_numbers)}",
        generation=Generation(1),
        hardware=hardware(),
        cpus=1,
        memory=Bytes(256 * MiB),
        limits=Limits(),
        disks=(DiskPlan("serial1", 0, Attachment((Layer("/pool/web.qcow2", "qcow2"),))),),
        nics=(),
        boot=DirectBoot("/images/kernel", "/images/initrd", "quiet"),
        agent=True,
        forkable=False,
        uid=None,
    )
    return replace(plan, **changes)


def user_nic(slot: int = 1) -> NicPlan:
    mac = "52:54:00:00:00:01"
    return NicPlan(mac, slot, Plugged("user", subnet="10.0.2.0/24", address="10.0.2.15"))


def layers(*paths: Path) -> Attachment:
    """qcow2 files, top first; only the first is writable."""
    return Attachment(tuple(Layer(str(path), "qcow2", read_only=n > 0) for n, path in enumerate(paths)))
