"""What the kernel and QEMU print, on several kinds of host, and what is made of it."""

from pathlib import Path

import pytest

from atoll.host.probe.cgroups import describe, parse_mountinfo
from atoll.host.probe.cpu import parse_cpuinfo
from atoll.host.probe.facts import CAPABILITIES, first_version, parse_meminfo, parse_rights, pretty_name
from atoll.host.probe.qemu import Machine, Qemu, binaries, parse_machines, parse_version

# One thread of each is kept from the machines' real texts; flags that say nothing here are left out.
INTEL_SERVER = """\
processor\t: {n}
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
model name\t: Intel(R) Xeon(R) Gold 6130 CPU @  2.10GHz
stepping\t: 4
microcode\t: 0x2007006
physical id\t: {socket}
siblings\t: 4
core id\t\t: {core}
cpu cores\t: 2
flags\t\t: fpu lm constant_tsc vmx ssse3 cx16 pcid sse4_1 sse4_2 x2apic movbe popcnt aes xsave avx f16c rdrand \
lahf_lm abm fma bmi1 avx2 bmi2 erms invpcid avx512f avx512dq avx512cd avx512bw avx512vl pdpe1gb
vmx flags\t: vnmi preemption_timer posted_intr ept_x_only ept_ad ept_1gb tsc_offset ept vpid unrestricted_guest
bugs\t\t: spectre_v1
"""
AMD_SERVER = """\
processor\t: {n}
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC 7543 32-Core Processor
microcode\t: 0xa0011d1
physical id\t: 0
core id\t\t: {n}
flags\t\t: fpu lm constant_tsc nonstop_tsc fma cx16 pcid sse4_1 sse4_2 ssse3 x2apic movbe popcnt aes xsave avx \
f16c rdrand lahf_lm svm abm bmi1 avx2 bmi2 erms invpcid sha_ni npt avic sev sev_es pdpe1gb
"""
VIRTUAL = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor
microcode\t: 0x1
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu lm hypervisor ssse3 cx16 sse4_1 sse4_2 popcnt xsave lahf_lm avx avx2
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics
CPU implementer\t: 0x41
CPU part\t: 0xd0c

processor\t: 1
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics
CPU implementer\t: 0x41
CPU part\t: 0xd0c
"""


def test_two_sockets_of_intel_with_two_threads_a_core() -> None:
    places = [(socket, core) for _ in range(2) for socket in range(2) for core in range(2)]
    cpu = parse_cpuinfo(
        "\n".join(INTEL_SERVER.format(n=n, socket=socket, core=core) for n, (socket, core) in enumerate(places))
    )
    assert (cpu.sockets, cpu.cores, cpu.threads) == (2, 4, 8)
    assert (cpu.model, cpu.microcode) == ("Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz", "0x2007006")
    assert (cpu.virtualization, cpu.nested_paging, cpu.guest, cpu.level) == ("vmx", True, False, 4)
    assert {"ept", "vpid", "cx16", "xsave"} <= set(cpu.features)


def test_amd() -> None:
    cpu = parse_cpuinfo("\n".join(AMD_SERVER.format(n=n) for n in range(4)))
    assert (cpu.vendor, cpu.sockets, cpu.cores, cpu.threads) == ("AuthenticAMD", 1, 4, 4)
    assert (cpu.virtualization, cpu.nested_paging, cpu.level) == ("svm", True, 3)
    assert {"npt", "sev", "sha_ni"} <= set(cpu.features)


def test_a_virtual_machine_without_nested_virtualization() -> None:
    cpu = parse_cpuinfo(VIRTUAL)
    assert (cpu.virtualization, cpu.nested_paging, cpu.guest, cpu.level) == ("", False, True, 2)


def test_arm_tells_no_topology() -> None:
    cpu = parse_cpuinfo(ARM)
    assert (cpu.sockets, cpu.cores, cpu.threads, cpu.level, cpu.vendor) == (1, 2, 2, 0, "0x41")


def test_an_empty_cpuinfo_is_one_processor() -> None:
    assert parse_cpuinfo("").threads == 1


UNIFIED = """\
24 31 0:22 / /proc rw,nosuid,nodev,noexec,relatime shared:13 - proc proc rw
30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
31 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
"""
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
JOINED_V1 = """\
35 26 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:15 - cgroup cgroup rw,cpu,cpuacct
36 26 0:31 / /sys/fs/cgroup/memory rw,nosuid shared:16 - cgroup cgroup rw,xattr,memory
"""


def test_cgroup_v2() -> None:
    v1, v2 = parse_mountinfo(UNIFIED)
    assert (v1, v2) == ({}, "/sys/fs/cgroup")
    found = describe(v1, v2, "cpuset cpu io memory hugetlb pids rdma misc\n", writable=True)
    assert found.version == "v2"
    assert {"cpu", "io", "memory", "pids"} <= set(found.controllers)


def test_cgroup_hybrid() -> None:
    v1, v2 = parse_mountinfo(HYBRID)
    assert v1 == {name: f"/sys/fs/cgroup/{name}" for name in ("cpu", "cpuacct", "memory", "blkio")}
    found = describe(v1, v2, "hugetlb\n", writable=False)
    assert (found.version, found.controllers) == ("hybrid", ("blkio", "cpu", "cpuacct", "hugetlb", "memory"))


def test_cgroup_v1_with_joined_controllers_and_none() -> None:
    v1, v2 = parse_mountinfo(JOINED_V1)
    assert v1 == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory",
    }
    assert describe(v1, v2, "", writable=True).version == "v1"
    assert describe(*parse_mountinfo(""), "", writable=False).version == "none"


MACHINES = """\
Supported machines are:
microvm              microvm (i386)
pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-10.0)
pc-i440fx-10.0       Standard PC (i440FX + PIIX, 1996) (default)
pc-i440fx-4.1        Standard PC (i440FX + PIIX, 1996) (deprecated)
q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-10.0)
pc-q35-10.0          Standard PC (Q35 + ICH9, 2009)
none                 empty machine
"""


def test_machine_types() -> None:
    machines = parse_machines(MACHINES)
    assert len(machines) == 7
    assert machines[1] == Machine(name="pc", title="Standard PC (i440FX + PIIX, 1996)", alias_of="pc-i440fx-10.0")
    assert [machine.name for machine in machines if machine.default] == ["pc-i440fx-10.0"]
    assert [machine.name for machine in machines if machine.deprecated] == ["pc-i440fx-4.1"]
    qemu = Qemu(version="10.0.2", machines=machines)
    assert qemu.versioned("q35") == "pc-q35-10.0"
    assert qemu.versioned("microvm") == "microvm"
    assert parse_machines("") == ()


def test_emulators_are_found_past_a_path_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("qemu-system-x86_64", "qemu-system-aarch64", "qemu-system-x86_64-spice", "qemu-img"):
        (tmp_path / name).touch(0o755)
    (tmp_path / "file").touch()
    (tmp_path / "qemu-system-riscv64").touch(0o644)
    monkeypatch.setenv("PATH", f"{tmp_path}/file:{tmp_path}/absent:{tmp_path}")
    assert binaries() == {
        "aarch64": f"{tmp_path}/qemu-system-aarch64",
        "x86_64": f"{tmp_path}/qemu-system-x86_64",
    }


def test_versions() -> None:
    assert parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright") == "7.2.22"
    assert parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)") == "10.0.2"
    assert parse_version("bash: no") == ""
    assert first_version("Dnsmasq version 2.90  Copyright (c) 2000-2024") == "2.90"
    assert first_version("nftables v1.0.6 (Lester Gooch #5)") == "1.0.6"
    assert first_version("mke2fs 1.47.0 (5-Feb-2023)") == "1.47.0"
    assert first_version("TPM emulator version 0.7.1, Copyright") == "0.7.1"
    assert first_version("nothing") == ""


def test_os_release() -> None:
    assert pretty_name('PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\n') == "Debian GNU/Linux 13 (trixie)"
    assert pretty_name("ID=x\nPRETTY_NAME='Alpine Linux v3.20'\n") == "Alpine Linux v3.20"
    assert pretty_name("") == "Linux"


def test_memory_is_in_bytes_and_counts_stay() -> None:
    values = parse_meminfo("MemTotal:       16384 kB\nMemAvailable:    8192 kB\nHugePages_Total:       3\n")
    assert values == {"MemTotal": 16 << 20, "MemAvailable": 8 << 20, "HugePages_Total": 3}


def test_rights() -> None:
    root = parse_rights("Name:\tcat\nUid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n")
    assert root.root
    assert root.capabilities == CAPABILITIES
    user = parse_rights("Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000001000\n")
    assert (user.uid, user.root, user.capabilities) == (1000, False, ("net_admin",))
