"""What a guest is born with: versioned machine type, CPU model, slots, room to grow. Pure.

Nothing here is looked up again later: a record of it is what every start, on any host, is built from.
"""

import re
from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec.structs import replace

from atoll.base.errors import Exhausted, Invalid, Lacking
from atoll.base.ids import Bytes
from atoll.base.units import GiB, MiB, show_size
from atoll.host.probe.qemu import Qemu
from atoll.instance.engine import Furnish
from atoll.instance.model import Disk, Hardware, Style

Accel = Literal["kvm", "tcg"]

MACHINES = {"q35": "q35", "pc": "pc", "microvm": "microvm"}
SLOTS = {"q35": 16, "pc": 12, "microvm": 16}
"""Places for disks and NICs. q35: PCIe root ports; pc: PCI devices; microvm: virtio-mmio transports."""
CDROM_PORT = 5
"""The board's AHCI port of the CD-ROM drive; a seed of `compatible` hardware has the one before it."""
BOARD_DISKS = 4
"""The ports before those: where `compatible` disks in the first slots are."""
LEAST_MEMORY = Bytes(32 * MiB)
GROWS = 8
"""CPUs and memory can grow to this many times what a guest is born with, within what the host has."""

TCG_CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand"
"""x86-64-v2 (most distributions need it) and rdrand, no more: AVX, in the richer models, costs time to emulate."""

_BASE = frozenset("cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3".split())
_V3 = _BASE | frozenset("avx avx2 bmi1 bmi2 f16c fma abm movbe xsave aes fsgsbase smep rdrand".split())
_LADDER: tuple[tuple[str, str, frozenset[str]], ...] = (
    (
        "GenuineIntel",
        "Skylake-Server-noTSX-IBRS",
        _V3
        | frozenset("avx512f avx512bw avx512cd avx512dq avx512vl adx rdseed smap clwb pcid invpcid erms".split())
        | frozenset("pdpe1gb xsavec xsaveopt xgetbv1 3dnowprefetch pclmulqdq spec_ctrl".split()),
    ),
    ("GenuineIntel", "Haswell-noTSX", _V3 | frozenset("pcid invpcid erms pclmulqdq tsc_deadline_timer".split())),
    (
        "AuthenticAMD",
        "EPYC",
        _V3 | frozenset("adx rdseed smap sha_ni clflushopt xsavec xsaveopt xgetbv1 pdpe1gb".split()),
    ),
    ("HygonGenuine", "EPYC", _V3 | frozenset("adx rdseed smap sha_ni clflushopt xsavec xsaveopt xgetbv1".split())),
    ("", "Nehalem", _BASE),
)
"""(vendor or "" for any, QEMU's named model, kernel's names of the features it needs), richest first."""


class HostCpu(msgspec.Struct, frozen=True):
    vendor: str
    flags: frozenset[str]
    threads: int


def parse_cpu(cpuinfo: str) -> HostCpu:
    """From the text of /proc/cpuinfo. `ibrs` or `ibrs_enhanced` stand for the feature that QEMU calls spec-ctrl."""
    fields: dict[str, str] = {}
    threads = 0
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        threads += name.strip() == "processor"
        fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    if flags & {"ibrs", "ibrs_enhanced", "spec_ctrl"}:
        flags.add("spec_ctrl")
    return HostCpu(fields.get("vendor_id", ""), frozenset(flags), max(1, threads))


def choose_cpu(accel: Accel, cpu: HostCpu) -> str:
    """A named model, which can migrate: under KVM the richest of those that this host has every feature of.

    `host` and `max` mean another CPU on each host and after each upgrade: never those.
    """
    if accel == "tcg":
        return TCG_CPU
    for vendor, model, needs in _LADDER:
        if vendor in ("", cpu.vendor) and needs <= cpu.flags:
            return model
    return "qemu64"


def choose_machine(wanted: str, qemu: Qemu) -> str:
    """`auto` is q35. The versioned type where the family has versions (microvm has none).

    Raises Invalid (no such type), Lacking (this QEMU has it not).
    """
    name = "q35" if wanted == "auto" else wanted
    if name not in MACHINES:
        raise Invalid(f"{wanted!r} is no machine type", hint="auto, q35, pc or microvm", field="spec.machine")
    if not any(machine.name == name for machine in qemu.machines):
        raise Lacking(f"QEMU {qemu.version} has no machine type {name}", hint="apt-get install qemu-system-x86")
    return qemu.versioned(name)


def keep_machine(versioned: str, qemu: Qemu) -> str:
    """The versioned type that a guest was born with elsewhere; else the present one of its family; "" where that is
    no family of ours."""
    of_family = re.fullmatch(r"pc-(?:q35|i440fx)-[0-9.]+|microvm", versioned)
    if of_family is None:
        return ""
    if any(machine.name == versioned for machine in qemu.machines):
        return versioned
    return choose_machine(family(versioned), qemu)


def choose_accel(wanted: str, works: Accel, reason: str) -> Accel:
    """`works`: what the host's probe found, and its `reason`."""
    if wanted == "kvm" and works != "kvm":
        raise Lacking(f"KVM does not work on this host: {reason}", hint="leave accel at auto, or use tcg")
    return "tcg" if wanted == "tcg" else works


def family(machine: str) -> Literal["q35", "pc", "microvm"]:
    """Of a versioned type: `pc-q35-7.2` is a q35."""
    if machine.startswith("microvm"):
        return "microvm"
    return "q35" if "q35" in machine else "pc"


def furnish(want: Furnish, *, accel: Accel, qemu: Qemu, cpu: HostCpu, memory: int) -> Hardware:
    """`memory`: the host's, in bytes. Raises Invalid, Lacking."""
    if want.arch not in ("x86_64", "amd64"):
        raise Lacking(f"this host runs no {want.arch} guests", hint="x86_64 is what Atoll runs today")
    if want.memory < LEAST_MEMORY:
        raise Invalid(
            f"{show_size(want.memory)} of memory is too little for a guest",
            hint=f"at least {show_size(LEAST_MEMORY)}",
            field="spec.memory",
        )
    machine = keep_machine(want.versioned, qemu) or choose_machine(want.machine, qemu)
    kind = family(machine)
    check_boot(want, kind)
    slots, nics = places(kind, len(want.disks), len(want.nics))
    disks = [fit(kind, want.style, disk) for disk in want.disks]
    grows = kind != "microvm"
    return Hardware(
        arch="x86_64",
        machine=machine,
        accel=accel,
        cpu=choose_cpu(accel, cpu),
        max_cpus=max(want.cpus, min(want.cpus * GROWS, cpu.threads)) if grows else want.cpus,
        max_memory=_max_memory(want.memory, memory) if grows else want.memory,
        disks=tuple(replace(disk, slot=slot) for disk, slot in zip(disks, slots, strict=True)),
        nics=tuple(replace(nic, slot=slot) for nic, slot in zip(want.nics, nics, strict=True)),
        firmware=want.firmware,
        uefi=want.uefi,
        style=want.style,
        cdrom=want.cdrom,
        seed=want.seed,
    )


def check_boot(want: Furnish, kind: Literal["q35", "pc", "microvm"]) -> None:
    """Raises Invalid for what this machine type has no place for."""
    if kind == "microvm":
        if want.firmware != "direct":
            raise Invalid(
                "a microvm boots a kernel directly: it has no firmware that finds a bootloader",
                hint="--machine q35, or an image with a kernel",
                field="spec.firmware",
            )
        if want.cdrom or want.style != "virtio":
            field = "spec.cdrom" if want.cdrom else "spec.hardware"
            raise Invalid("a microvm has virtio devices only", hint="--machine q35", field=field)


def _max_memory(born: int, host: int) -> Bytes:
    most = max(born, min(born * GROWS, host))
    return Bytes(most // GiB * GiB if most // GiB * GiB > born else born)


def places(kind: Literal["q35", "pc", "microvm"], disks: int, nics: int) -> tuple[list[int], list[int]]:
    """Slots of the disks, from 0, and of the NICs, behind them. Raises Invalid where there are not so many."""
    count = SLOTS[kind]
    if disks + nics > count:
        raise Invalid(
            f"a {kind} machine has {count} places for disks and NICs, not {disks + nics}", field="spec.nics"
        )
    return list(range(disks)), list(range(disks, disks + nics))


def seat(hardware: Hardware, disk: Disk) -> Hardware:
    """See engine.Disks."""
    kind = family(hardware.machine)
    fitting = fit(kind, hardware.style, disk)
    taken = {d.slot for d in hardware.disks} | {n.slot for n in hardware.nics}
    free = next((slot for slot in range(SLOTS[kind]) if slot not in taken), None)
    if free is None:
        raise Exhausted(f"all {SLOTS[kind]} places for disks and NICs are taken", hint="detach one")
    return replace(hardware, disks=(*hardware.disks, replace(fitting, slot=free)))


def fit(kind: Literal["q35", "pc", "microvm"], style: Style, disk: Disk) -> Disk:
    """On the bus that it has here: ahci is what `compatible` hardware has for virtio. Raises Invalid."""
    if kind == "microvm" and disk.bus != "virtio":
        raise Invalid(f"a microvm has no {disk.bus}", hint="--bus virtio", field="bus")
    return replace(disk, bus="ahci") if style == "compatible" and disk.bus == "virtio" else disk


def ports(slots: Iterable[int]) -> int:
    """How many root ports a q35 shows: each costs its guest about 15 ms of boot under TCG, so 8 do for most.

    More are added behind these, which keep their addresses; two at least are always free.
    """
    return 8 if max(slots, default=0) < 6 else SLOTS["q35"]
