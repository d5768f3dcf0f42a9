"""Every kernel part and tool that Atoll can use: whether it is here, what its absence costs, how to get it."""

import asyncio
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from atoll.host.probe.accel import Accel
from atoll.host.probe.cgroups import cgroups
from atoll.host.probe.ways import (
    Bench,
    Controller,
    File,
    Kvm,
    Listed,
    Node,
    Reflink,
    Setting,
    State,
    Tool,
    Tried,
    Way,
    bench,
    look,
)
from atoll.host.run import PACKAGES

Group = Literal["machine", "network", "storage", "limits", "container"]
DEADLINE = 2.5
_AT_ONCE = 8


class Part(NamedTuple):
    """A row of the table. `get` is empty where the package of a tool says it."""

    name: str
    group: Group
    way: Way
    costs: str
    get: str = ""


class PartState(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. `costs` and `get` are filled in where the part is not present."""

    name: str
    group: Group
    state: State
    detail: str = ""
    costs: str = ""
    get: str = ""


def _ip(*words: str, modules: tuple[str, ...]) -> Tried:
    return Tried(("ip", *words), modules)


def _qdisc(kind: str, *words: str, modules: tuple[str, ...]) -> Tried:
    return Tried(("tc", "qdisc", "add", "dev", "lo", "root", kind, *words), modules)


def _nft(family: str, chain: str, rule: str, *modules: str) -> Tried:
    rules = f"table {family} t {{ chain c {{ type {chain}; {rule}; }}; }}\n"
    return Tried(("nft", "-f", "-"), ("nf_tables", *modules), rules)


def _kernel(option: str) -> str:
    return f"a kernel with {option}, as Debian's linux-image-amd64 has"


def _controller(option: str) -> str:
    return f"{_kernel(option)}; and the right to make cgroups (root, or Delegate=yes in systemd)"


_RELOAD = "set it in /etc/sysctl.d and run sysctl --system"

PARTS: tuple[Part, ...] = (
    Part(
        "KVM",
        "machine",
        Kvm(),
        "virtual machines run under TCG, 5 to 10 times slower",
        "virtualization enabled in the firmware, or nested virtualization in the hypervisor above",
    ),
    Part("QEMU", "machine", Tool("qemu-system-x86_64"), "no virtual machines"),
    Part("qemu-img", "machine", Tool("qemu-img"), "no disks, no images"),
    Part(
        "UEFI firmware",
        "machine",
        File(("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd")),
        "no firmware=uefi; BIOS and direct boot work",
        "apt-get install ovmf",
    ),
    Part("TPM emulator", "machine", Tool("swtpm"), "no virtual TPM"),
    Part(
        "vhost-vsock",
        "machine",
        Node("/dev/vhost-vsock", ("vhost_vsock",)),
        "agents are reached over virtio-serial only",
        _kernel("CONFIG_VHOST_VSOCK") + "; and the right to open the device",
    ),
    Part(
        "bridge",
        "network",
        _ip("link", "add", "p0", "type", "bridge", modules=("bridge",)),
        "no networks but user-mode",
        _kernel("CONFIG_BRIDGE"),
    ),
    Part(
        "bridge VLAN filtering",
        "network",
        _ip("link", "add", "p0", "type", "bridge", "vlan_filtering", "1", modules=("bridge",)),
        "no trunk ports; one bridge a VLAN instead",
        _kernel("CONFIG_BRIDGE_VLAN_FILTERING"),
    ),
    Part(
        "tap",
        "network",
        _ip("tuntap", "add", "dev", "p0", "mode", "tap", modules=("tun",)),
        "virtual machines have user-mode networking only",
        _kernel("CONFIG_TUN"),
    ),
    Part(
        "vhost-net",
        "network",
        Node("/dev/vhost-net", ("vhost_net",)),
        "packets pass through QEMU: less throughput",
        _kernel("CONFIG_VHOST_NET") + "; and the right to open the device",
    ),
    Part(
        "veth",
        "network",
        _ip("link", "add", "p0", "type", "veth", "peer", "name", "p1", modules=("veth",)),
        "no container networking, no several-host lab",
        _kernel("CONFIG_VETH"),
    ),
    Part(
        "VLAN",
        "network",
        _ip("link", "add", "link", "lo", "name", "p0", "type", "vlan", "id", "5", modules=("8021q",)),
        "no networks on a tagged VLAN of the uplink",
        _kernel("CONFIG_VLAN_8021Q"),
    ),
    Part(
        "VXLAN",
        "network",
        _ip("link", "add", "p0", "type", "vxlan", "id", "5", "dstport", "4789", modules=("vxlan",)),
        "no networks across hosts",
        _kernel("CONFIG_VXLAN"),
    ),
    Part(
        "ifb",
        "network",
        _ip("link", "add", "p0", "type", "ifb", modules=("ifb",)),
        "traffic into a host is policed, not shaped",
        _kernel("CONFIG_IFB"),
    ),
    Part(
        "HTB",
        "network",
        _qdisc("htb", "default", "1", modules=("sch_htb",)),
        "no bandwidth guarantees or limits",
        _kernel("CONFIG_NET_SCH_HTB"),
    ),
    Part(
        "fq_codel",
        "network",
        _qdisc("fq_codel", modules=("sch_fq_codel",)),
        "longer queues behind a bandwidth limit",
        _kernel("CONFIG_NET_SCH_FQ_CODEL"),
    ),
    Part(
        "netem",
        "network",
        _qdisc("netem", "delay", "1ms", modules=("sch_netem",)),
        "the lab cannot imitate delay and loss",
        _kernel("CONFIG_NET_SCH_NETEM"),
    ),
    Part(
        "nftables NAT",
        "network",
        _nft("ip", "nat hook postrouting priority srcnat", "masquerade", "nft_chain_nat", "nft_masq"),
        "guests on a NAT network do not reach the outside",
        _kernel("CONFIG_NFT_NAT and CONFIG_NFT_MASQ"),
    ),
    Part(
        "nftables inet",
        "network",
        _nft("inet", "filter hook forward priority filter", "ct state established accept", "nft_ct"),
        "no firewall",
        _kernel("CONFIG_NF_TABLES_INET"),
    ),
    Part(
        "nftables bridge",
        "network",
        _nft("bridge", "filter hook forward priority filter", "ether saddr 02:00:00:00:00:01 accept"),
        "guests can forge each other's addresses on one bridge",
        _kernel("CONFIG_NF_TABLES_BRIDGE"),
    ),
    Part(
        "Open vSwitch",
        "network",
        Tried(("genl", "ctrl", "get", "name", "ovs_datapath"), ("openvswitch",)),
        "no networks on Open vSwitch; bridges work",
        _kernel("CONFIG_OPENVSWITCH"),
    ),
    Part(
        "IPv4 forwarding",
        "network",
        Setting("/proc/sys/net/ipv4/ip_forward", "1"),
        "guests reach nothing outside their network until it is on",
        f"net.ipv4.ip_forward=1: {_RELOAD}",
    ),
    Part(
        "IPv6",
        "network",
        Setting("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0"),
        "networks are IPv4 only",
        f"net.ipv6.conf.all.disable_ipv6=0: {_RELOAD}",
    ),
    Part(
        "bridged traffic apart from iptables",
        "network",
        Setting("/proc/sys/net/bridge/bridge-nf-call-iptables", "0", absent="present"),
        "another program's iptables rules (Docker's) can drop traffic between guests of one network",
        f"net.bridge.bridge-nf-call-iptables=0: {_RELOAD}",
    ),
    Part("dnsmasq", "network", Tool("dnsmasq"), "no DHCP and no names on Atoll's networks"),
    Part("nft", "network", Tool("nft"), "no NAT, no firewall"),
    Part(
        "reflink",
        "storage",
        Reflink(),
        "full copies of raw disks take time and space; qcow2 clones do not need it",
        "keep the state directory on btrfs or xfs",
    ),
    Part(
        "device-mapper",
        "storage",
        Listed("/proc/misc", "device-mapper", ("dm_mod",)),
        "no LVM pools, no dm-crypt",
        _kernel("CONFIG_BLK_DEV_DM"),
    ),
    Part(
        "nbd",
        "storage",
        Listed("/proc/devices", "nbd", ("nbd",)),
        "the host cannot mount an image; QEMU's own NBD works",
        _kernel("CONFIG_BLK_DEV_NBD"),
    ),
    Part(
        "loop",
        "storage",
        Listed("/proc/misc", "loop-control", ("loop",)),
        "raw images cannot be mounted",
        _kernel("CONFIG_BLK_DEV_LOOP"),
    ),
    Part(
        "btrfs",
        "storage",
        Listed("/proc/filesystems", "btrfs", ("btrfs",)),
        "no btrfs pools",
        _kernel("CONFIG_BTRFS_FS"),
    ),
    Part("cgroup memory", "limits", Controller("memory"), "no memory limit on guests", _controller("CONFIG_MEMCG")),
    Part("cgroup cpu", "limits", Controller("cpu"), "no CPU limit or shares", _controller("CONFIG_CGROUP_SCHED")),
    Part("cgroup io", "limits", Controller("io"), "no disk shares", _controller("CONFIG_BLK_CGROUP")),
    Part("cgroup pids", "limits", Controller("pids"), "no limit on processes", _controller("CONFIG_CGROUP_PIDS")),
    Part(
        "user namespaces",
        "container",
        Tried(("unshare", "-U", "true")),
        "containers run as root of the host or not at all",
        "kernel.unprivileged_userns_clone=1 or user.max_user_namespaces above 0",
    ),
    Part(
        "overlayfs",
        "container",
        Listed("/proc/filesystems", "overlay", ("overlay",)),
        "container clones are full copies",
        _kernel("CONFIG_OVERLAY_FS"),
    ),
    Part("LXC", "container", Tool("lxc-start"), "no OS-level containers"),
)


async def parts(state: Path, accel: Accel | None = None) -> list[PartState]:
    """Look at every part at the same time, in at most some seconds. Changes nothing and loads nothing.

    `state` is the directory that holds disks; `accel` is the verdict of the acceleration probe where there is one.
    """
    place = await asyncio.to_thread(bench, state, accel, cgroups())
    seats = asyncio.Semaphore(_AT_ONCE)
    return list(await asyncio.gather(*(_look(part, place, seats) for part in PARTS)))


async def _look(part: Part, place: Bench, seats: asyncio.Semaphore) -> PartState:
    async with seats:
        state, detail = await look(part.way, place, deadline=DEADLINE)
    found = PartState(name=part.name, group=part.group, state=state, detail=detail)
    if state == "present":
        return found
    program = part.way.program if isinstance(part.way, Tool) else ""
    get = f"apt-get install {PACKAGES[program]}" if program in PACKAGES else part.get
    return msgspec.structs.replace(found, costs=part.costs, get=get)
