import pytest
from msgspec.structs import replace

from atoll.base.errors import Invalid, Lacking
from atoll.base.ids import Bytes, PortId, VolumeId
from atoll.base.units import GiB, MiB
from atoll.host.probe.qemu import Machine, Qemu
from atoll.instance.engine import Furnish
from atoll.instance.engines.qemu import machine
from atoll.instance.engines.qemu.machine import HostCpu
from atoll.instance.model import Disk, Nic

QEMU = Qemu(
    version="7.2.22",
    machines=(
        Machine(name="microvm"),
        Machine(name="pc", alias_of="pc-i440fx-7.2"),
        Machine(name="q35", alias_of="pc-q35-7.2"),
        Machine(name="pc-q35-7.2"),
    ),
)
CPU = HostCpu("GenuineIntel", frozenset(), 4)
WANT = Furnish(
    arch="x86_64",
    machine="auto",
    accel="auto",
    cpus=2,
    memory=Bytes(512 * MiB),
    disks=(Disk(VolumeId("v"), "s", 0),),
    nics=tuple(Nic(PortId(f"p{n}"), "default", f"52:54:00:00:00:0{n}", 0) for n in range(3)),
)
V2 = "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3"
V3 = f"{V2} avx avx2 bmi1 bmi2 f16c fma abm movbe xsave aes fsgsbase smep rdrand"
SKYLAKE = (
    f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl adx rdseed smap clwb pcid invpcid erms pdpe1gb xsavec "
    "xsaveopt xgetbv1 3dnowprefetch pclmulqdq tsc_deadline_timer ibrs"
)
EPYC = f"{V3} adx rdseed smap sha_ni clflushopt xsavec xsaveopt xgetbv1 pdpe1gb"


def cpuinfo(vendor: str, flags: str, threads: int = 2) -> str:
    return "\n\n".join(f"processor\t: {n}\nvendor_id\t: {vendor}\nflags\t\t: {flags}" for n in range(threads))


@pytest.mark.parametrize(
    ("vendor", "flags", "model"),
    [
        ("GenuineIntel", SKYLAKE, "Skylake-Server-noTSX-IBRS"),
        ("GenuineIntel", SKYLAKE.replace(" ibrs", ""), "Haswell-noTSX"),
        ("GenuineIntel", SKYLAKE.replace(" clwb", ""), "Haswell-noTSX"),
        ("GenuineIntel", V3, "Nehalem"),
        ("GenuineIntel", V2, "Nehalem"),
        ("AuthenticAMD", EPYC, "EPYC"),
        ("AuthenticAMD", SKYLAKE, "Nehalem"),
        ("AuthenticAMD", V2, "Nehalem"),
        ("GenuineIntel", "sse2", "qemu64"),
    ],
)
def test_under_kvm_the_richest_named_model_that_the_host_has_all_of(vendor: str, flags: str, model: str) -> None:
    assert machine.choose_cpu("kvm", machine.parse_cpu(cpuinfo(vendor, flags))) == model


def test_under_tcg_the_host_does_not_matter() -> None:
    assert machine.choose_cpu("tcg", CPU) == machine.choose_cpu("tcg", HostCpu("AuthenticAMD", frozenset("x"), 1))


def test_cpuinfo() -> None:
    assert machine.parse_cpu(cpuinfo("AuthenticAMD", "a b", 3)) == HostCpu("AuthenticAMD", frozenset("ab"), 3)
    assert machine.parse_cpu("") == HostCpu("", frozenset(), 1)


def test_types_are_versioned() -> None:
    assert machine.choose_machine("auto", QEMU) == "pc-q35-7.2"
    assert machine.choose_machine("pc", QEMU) == "pc-i440fx-7.2"
    assert machine.choose_machine("microvm", QEMU) == "microvm"
    with pytest.raises(Invalid):
        machine.choose_machine("pc-q35-2.4", QEMU)
    with pytest.raises(Lacking):
        machine.choose_machine("microvm", Qemu(version="9", machines=QEMU.machines[1:]))


def test_families() -> None:
    assert [machine.family(name) for name in ("pc-q35-7.2", "pc-i440fx-10.0", "microvm")] == [
        "q35",
        "pc",
        "microvm",
    ]


def test_kvm_that_does_not_work_is_not_given() -> None:
    assert machine.choose_accel("auto", "tcg", "") == "tcg"
    assert machine.choose_accel("auto", "kvm", "") == "kvm"
    assert machine.choose_accel("tcg", "kvm", "") == "tcg"
    with pytest.raises(Lacking, match="because"):
        machine.choose_accel("kvm", "tcg", "because")


def test_slots_and_growth() -> None:
    made = machine.furnish(WANT, accel="tcg", qemu=QEMU, cpu=CPU, memory=3 * GiB)
    assert [disk.slot for disk in made.disks] == [0]
    assert [nic.slot for nic in made.nics] == [1, 2, 3]
    assert (made.max_cpus, made.max_memory) == (4, 3 * GiB)
    small = machine.furnish(replace(WANT, machine="microvm"), accel="tcg", qemu=QEMU, cpu=CPU, memory=3 * GiB)
    assert (small.max_cpus, small.max_memory) == (2, WANT.memory)
    beyond = machine.furnish(replace(WANT, cpus=9), accel="tcg", qemu=QEMU, cpu=CPU, memory=256 * MiB)
    assert (beyond.max_cpus, beyond.max_memory) == (9, WANT.memory)


def test_more_things_than_places() -> None:
    with pytest.raises(Invalid):
        machine.furnish(replace(WANT, nics=WANT.nics * 6), accel="tcg", qemu=QEMU, cpu=CPU, memory=GiB)


def test_some_ports_are_always_free() -> None:
    assert machine.ports([]) == 8
    assert machine.ports([0, 5]) == 8
    assert machine.ports([6]) == 16
