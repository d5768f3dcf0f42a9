"""Golden command lines: a change of one is seen and meant. `ATOLL_GOLDEN=write` writes them anew."""

import os
import shlex
from pathlib import Path

import pytest
from msgspec.structs import replace

from atoll.base.ids import Bytes, InstanceId
from atoll.base.units import GiB, MiB
from atoll.host.cgroups import Cgroups
from atoll.host.scopes import Scopes
from atoll.instance.engines.qemu import argv, spawn
from atoll.instance.engines.qemu.argv import Handed, LayerHanded, NicHanded
from atoll.instance.engines.qemu.firmware import BootHanded
from atoll.instance.model import BootPlan, CdromPlan, DiskPlan, Limits, NicPlan, UefiPlan
from atoll.network.model import Plugged
from atoll.storage.model import Attachment, Bus, Cache, Layer
from tests.kit.plans import boot_plan, hardware, user_nic

FOLDER = Path(__file__).parent / "qemu"
ID = InstanceId("11111111-2222-4333-8444-555555555555")
DISK = DiskPlan(
    "serial1", 0, Attachment((Layer("/a", "qcow2"), Layer("/b", "qcow2", True), Layer("/c", "raw", True)))
)
TAP = NicPlan("52:54:00:00:00:01", 1, Plugged("tap", link="tap1", mtu=1450))
PLAN = boot_plan(id=ID, name="web", disks=(DISK,), nics=(TAP,))
LAYERS = (LayerHanded(20, "qcow2", False), LayerHanded(21, "qcow2", True), LayerHanded(22, "raw", True))
HANDED = Handed(
    qmp=10,
    console=11,
    agent=12,
    atoll=13,
    serial_log=14,
    boot=BootHanded(kernel=15, initrd=16),
    disks=(LAYERS,),
    nics=(NicHanded(fd=30),),
    tsc_khz=2600000,
)
BLOCK = (LayerHanded(20, "raw", False, block_device=True),)
MANY = tuple(NicPlan(f"52:54:00:00:00:{n:02x}", n, Plugged("tap", link=f"tap{n}")) for n in range(1, 9))

OWN = replace(PLAN, boot=None)
BOOTS = BootHanded()
UEFI = replace(OWN, uefi=UefiPlan("/usr/share/OVMF/OVMF_CODE_4M.fd", "/var/vars.fd"))
OLD = hardware(style="compatible")
AHCI = replace(DISK, bus="ahci")
BUSES: tuple[tuple[int, Bus], ...] = ((2, "ahci"), (3, "scsi"), (4, "ahci"))
MORE = tuple(DiskPlan(f"s{n}", n, Attachment((Layer("/d", "raw"),)), bus, "writethrough") for n, bus in BUSES)
DISKS: tuple[tuple[int, Bus, Cache], ...] = (
    (2, "scsi", "writeback"), (3, "ahci", "writethrough"), (4, "virtio", "unsafe"), (5, "virtio", "directsync"),
)  # fmt: skip

CASES: dict[str, tuple[BootPlan, Handed]] = {
    "q35-tcg": (PLAN, HANDED),
    "q35-kvm": (
        replace(PLAN, hardware=hardware(accel="kvm", cpu="Haswell-noTSX")),
        replace(HANDED, nics=(NicHanded(fd=30, vhost=31),), tsc_khz=0),
    ),
    "q35-forkable": (replace(PLAN, forkable=True), replace(HANDED, ram="/dev/shm/ram")),
    "q35-block-device": (PLAN, replace(HANDED, disks=(BLOCK,))),
    "q35-many-nics": (
        replace(PLAN, nics=MANY),
        replace(HANDED, nics=tuple(NicHanded(fd=29 + n) for n in range(1, 9))),
    ),
    "pc": (replace(PLAN, hardware=hardware(machine="pc-i440fx-7.2")), HANDED),
    "microvm-user": (
        replace(PLAN, hardware=hardware(machine="microvm", max_cpus=1, max_memory=PLAN.memory), nics=(user_nic(),)),
        replace(HANDED, nics=(NicHanded(),)),
    ),
    "q35-bios": (OWN, replace(HANDED, boot=BOOTS)),
    "q35-uefi": (UEFI, replace(HANDED, boot=BootHanded(code=40, variables=41))),
    "q35-cdrom-first-and-seed": (
        replace(OWN, cdrom=CdromPlan("/iso", first=True), seed="/seed.iso"),
        replace(HANDED, boot=BootHanded(iso=42, seed=43)),
    ),
    "q35-compatible": (
        replace(OWN, hardware=OLD, disks=(AHCI,), cdrom=CdromPlan("/iso"), seed="/seed.iso"),
        replace(HANDED, boot=BootHanded(iso=42, seed=43)),
    ),
    "pc-compatible": (
        replace(OWN, hardware=replace(OLD, machine="pc-i440fx-7.2"), disks=(AHCI,), cdrom=CdromPlan()),
        replace(HANDED, boot=BOOTS),
    ),
    "q35-compatible-disks": (
        replace(OWN, hardware=OLD, disks=(AHCI, *MORE)),
        replace(HANDED, boot=BOOTS, disks=(LAYERS, *((LayerHanded(38 + d.slot, "raw", False),) for d in MORE))),
    ),
    "q35-disks": (
        replace(
            PLAN,
            disks=(
                replace(DISK, cache="none"),
                *(
                    DiskPlan(
                        f"serial{slot}", slot, Attachment((Layer("/d", "raw", discard=slot != 4),)), bus, cache
                    )
                    for slot, bus, cache in DISKS
                ),
            ),
        ),
        replace(
            HANDED, disks=(LAYERS, *((LayerHanded(38 + d[0], "raw", False, discard=d[0] != 4),) for d in DISKS))
        ),
    ),
    "grown-beyond-birth": (replace(PLAN, cpus=4, memory=Bytes(2 * GiB)), HANDED),
}


def compare(name: str, line: list[str]) -> None:
    """One option a line: what changed is what a diff shows."""
    text = ""
    for word in line:
        text += ("\n" if word.startswith("-") and text else " " if text else "") + shlex.quote(word)
    golden = FOLDER / f"{name}.txt"
    if os.environ.get("ATOLL_GOLDEN") == "write":
        golden.write_text(text + "\n")
    assert golden.read_text() == text + "\n", f"{name}: if this is meant, ATOLL_GOLDEN=write pytest {__file__}"


@pytest.mark.parametrize("name", CASES)
def test_command_line(name: str) -> None:
    plan, handed = CASES[name]
    compare(name, argv.build(plan, handed, tag="a1b2c3"))


def test_prefixes(tmp_path: Path) -> None:
    groups = Cgroups({name: tmp_path / name for name in ("cpu", "memory")})
    bounds = spawn.bounds(PLAN, Limits(cpu=1.5, cpu_weight=50), memory=PLAN.memory)
    compare("join", [word.replace(str(tmp_path), "/sys/fs/cgroup") for word in groups.enter("g", bounds)])
    compare("scope", Scopes({}, "a1b2c3").enter(f"{ID}.1", bounds))
    compare("drop", spawn.drop(uid=1900000001, kvm_group=None))
    compare("drop-kvm", spawn.drop(uid=1900000001, kvm_group=106))
    assert spawn.drop(uid=None, kvm_group=None) == []


def test_every_golden_file_is_compared() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {*CASES, "join", "scope", "drop", "drop-kvm"}


@pytest.mark.parametrize("name", CASES)
def test_every_descriptor_in_the_line_is_handed_over(name: str) -> None:
    plan, handed = CASES[name]
    line = " ".join(argv.build(plan, handed, tag="a1b2c3"))
    for fd in argv.fds(handed):
        assert any(f"{before}{fd}" in line for before in ("fd=", "/fd/", "/fdset/")), fd


def test_no_word_of_a_plan_can_become_an_option() -> None:
    """Names are labels and cannot hold a comma; paths never reach the line at all."""
    layer = Layer("/odd,path=on", "qcow2")
    plan = replace(PLAN, disks=(DiskPlan("serial1", 0, Attachment((layer,))),), memory=Bytes(300 * MiB))
    line = argv.build(plan, replace(HANDED, disks=((LayerHanded(20, "qcow2", False),),)), tag="a1b2c3")
    assert not any("odd" in word for word in line)
