"""What this host is: the facts that placement, admission and the administrator go by."""

import asyncio
import os
import platform
import re
from pathlib import Path

import msgspec

from atoll.base.clock import Timestamp, now
from atoll.base.errors import AtollError, Lacking
from atoll.base.ids import Bytes
from atoll.host.probe.cgroups import Cgroups, cgroups
from atoll.host.probe.cpu import Cpu, parse_cpuinfo
from atoll.host.probe.qemu import Qemu, qemu
from atoll.host.run import run

VERSION_OF: dict[str, str] = {
    "dnsmasq": "--version",
    "etcd": "--version",
    "ip": "-V",
    "lxc-start": "--version",
    "mke2fs": "-V",
    "mmdebstrap": "--version",
    "nft": "--version",
    "ovs-vsctl": "--version",
    "qemu-img": "--version",
    "swtpm": "--version",
    "zstd": "--version",
}
"""Tools that Atoll uses somewhere, and the option that makes each tell its version."""

CAPABILITIES = tuple(
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
    "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct "
    "sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write "
    "audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf "
    "checkpoint_restore".split()
)
"""By bit, from linux/capability.h."""

_NUMBER = re.compile(r"\d+(?:\.\d+)+[^\s,)(]*")


class HugePages(msgspec.Struct, frozen=True, kw_only=True):
    size: Bytes
    total: int
    free: int


class NumaNode(msgspec.Struct, frozen=True, kw_only=True):
    """`cpus` is the kernel's list, as `0-23,96-119`."""

    id: int
    cpus: str
    memory: Bytes


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """`available` is the kernel's estimate of what can be used without swapping. `ksm`: None where not built in."""

    total: Bytes
    available: Bytes
    swap: Bytes
    huge_pages: tuple[HugePages, ...] = ()
    numa: tuple[NumaNode, ...] = ()
    ksm: bool | None = None


class Rights(msgspec.Struct, frozen=True, kw_only=True):
    """What this process may do: effective user and capabilities, as `net_admin`."""

    uid: int
    root: bool
    capabilities: tuple[str, ...] = ()


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`init` is `systemd` or the name of process 1; `tools` maps a program found to its version."""

    hostname: str
    os: str
    kernel: str
    arch: str
    init: str
    cpu: Cpu
    memory: Memory
    cgroups: Cgroups
    rights: Rights
    qemu: Qemu | None
    tools: dict[str, str]
    gathered: Timestamp


async def facts() -> HostFacts:
    """Gather them now: some small files, and the tools' versions at the same time. Well under a second."""
    told = asyncio.gather(*(_version(tool, option) for tool, option in VERSION_OF.items()))
    emulator, local = await asyncio.gather(_qemu(), asyncio.to_thread(_local))
    versions = dict(zip(VERSION_OF, await told, strict=True))
    tools = {tool: version for tool, version in versions.items() if version is not None}
    return msgspec.structs.replace(local, qemu=emulator, tools=tools)


def _local() -> HostFacts:
    """What files tell. /proc/cpuinfo alone takes tens of milliseconds on a host with hundreds of threads."""
    return HostFacts(
        hostname=platform.node(),
        os=pretty_name(_read("/etc/os-release")),
        kernel=platform.release(),
        arch=platform.machine(),
        init="systemd" if Path("/run/systemd/system").is_dir() else _read("/proc/1/comm").strip(),
        cpu=msgspec.structs.replace(parse_cpuinfo(_read("/proc/cpuinfo")), nested=_nested()),
        memory=_memory(),
        cgroups=cgroups(),
        rights=parse_rights(_read("/proc/self/status")),
        qemu=None,
        tools={},
        gathered=now(),
    )


def pretty_name(os_release: str) -> str:
    """The PRETTY_NAME of os-release(5)."""
    match = re.search(r'^PRETTY_NAME=["\']?(.*?)["\']?$', os_release, re.MULTILINE)
    return match.group(1) if match else "Linux"


def parse_meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo in bytes, plain counts (HugePages_Total) as they are."""
    values = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number, *unit = value.split()
        values[name] = int(number) * (1024 if unit == ["kB"] else 1)
    return values


def parse_rights(status: str) -> Rights:
    """Effective uid and capabilities from /proc/self/status."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    uid, effective = int(fields["Uid"].split()[1]), int(fields["CapEff"], 16)
    names = tuple(name for bit, name in enumerate(CAPABILITIES) if effective >> bit & 1)
    return Rights(uid=uid, root=uid == 0, capabilities=names)


def first_version(text: str) -> str:
    """The first dotted number in what a tool prints about itself; "" where there is none."""
    match = _NUMBER.search(text)
    return match.group(0) if match else ""


def _memory() -> Memory:
    values = parse_meminfo(_read("/proc/meminfo"))
    ksm = _read("/sys/kernel/mm/ksm/run").strip()
    return Memory(
        total=Bytes(values.get("MemTotal", 0)),
        available=Bytes(values.get("MemAvailable", 0)),
        swap=Bytes(values.get("SwapTotal", 0)),
        huge_pages=tuple(
            _huge_pages(path) for path in sorted(Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB"))
        ),
        numa=tuple(_numa_node(path) for path in sorted(Path("/sys/devices/system/node").glob("node[0-9]*"))),
        ksm=ksm == "1" if ksm else None,
    )


def _huge_pages(path: Path) -> HugePages:
    size = Bytes(int(path.name.removeprefix("hugepages-").removesuffix("kB")) * 1024)
    total, free = (int(_read(path / f"{what}_hugepages") or 0) for what in ("nr", "free"))
    return HugePages(size=size, total=total, free=free)


def _numa_node(path: Path) -> NumaNode:
    match = re.search(r"MemTotal:\s+(\d+) kB", _read(path / "meminfo"))
    return NumaNode(
        id=int(path.name.removeprefix("node")),
        cpus=_read(path / "cpulist").strip(),
        memory=Bytes(int(match.group(1)) * 1024 if match else 0),
    )


def _nested() -> bool | None:
    for module in ("kvm_intel", "kvm_amd"):
        if told := _read(f"/sys/module/{module}/parameters/nested").strip():
            return told in ("Y", "1")
    return None


async def _qemu() -> Qemu | None:
    try:
        return await qemu()
    except AtollError:
        return None


async def _version(tool: str, option: str) -> str | None:
    """The tool's version; "" where it is here but does not tell, None where it is missing."""
    try:
        ran = await run([tool, option], timeout=5, check=False)
    except Lacking:
        return None
    except AtollError:
        return ""
    return first_version((ran.stdout + ran.stderr).decode(errors="replace"))


def _read(path: str | os.PathLike[str]) -> str:
    """A small file of the kernel's, "" where it is not there."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
