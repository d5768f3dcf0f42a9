"""A boot plan as a QEMU command line. Pure: tests/golden/ holds the expected lines.

QEMU opens nothing by path: what it may use is handed over as descriptors, so its user needs no right to anything.
"""

import json

import msgspec

from atoll.base.units import MiB
from atoll.instance.engines.qemu import firmware
from atoll.instance.engines.qemu.firmware import BootHanded
from atoll.instance.engines.qemu.machine import BOARD_DISKS, family, ports
from atoll.instance.model import BootPlan, DiskPlan, NicPlan

TB_SIZE = 256 * MiB
"""Room for translated code under TCG, taken as it fills: a booted Linux fills about 60 MiB of it."""
MEMORY_SLOTS = 8
VNC = "vnc.sock"
"""Its screen, in the working directory, which is the one place that QEMU's user may write to."""
AGENT, ATOLL = "agent", "atoll"
"""Ids of the virtio-serial ports, as VSERPORT_CHANGE names them."""
_TCG_LINE = "nokaslr mitigations=off cryptomgr.notests tsc=reliable no_timer_check"
"""What only costs time under emulation: no speculation to mitigate, no timer to doubt, no cipher worth choosing."""
_CACHES: dict[str, dict[str, object]] = {
    "writeback": {},
    "none": {"cache": {"direct": True}},
    "writethrough": {},
    "directsync": {"cache": {"direct": True}},
    "unsafe": {"cache": {"no-flush": True}},
}
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


class LayerHanded(msgspec.Struct, frozen=True):
    """One layer of a disk: an opened file or block device (`fd`), or what a protocol driver opens itself."""

    fd: int
    format: str
    read_only: bool
    block_device: bool = False
    discard: bool = True


class NicHanded(msgspec.Struct, frozen=True):
    fd: int = -1
    vhost: int = -1


class Handed(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptors opened for one guest. `ram`: path of its memory where that is a file. `tsc_khz`: 0 unknown."""

    qmp: int
    console: int
    agent: int
    atoll: int
    serial_log: int
    boot: BootHanded
    disks: tuple[tuple[LayerHanded, ...], ...]
    nics: tuple[NicHanded, ...]
    ram: str = ""
    tsc_khz: int = 0


def build(plan: BootPlan, handed: Handed, *, tag: str) -> list[str]:
    """`tag`: of this Atoll; with the uuid and the generation it is in the line for whoever looks at `ps`."""
    line = ["qemu-system-x86_64", "-name", f"guest={plan.project}/{plan.name}.g{plan.generation},{process(tag)}"]
    line += ["-uuid", plan.id, "-nodefaults", "-no-user-config", "-S", "-display", "none"]
    line += ["-msg", "timestamp=on", "-trace", "qemu_system_shutdown_request", "-sandbox", _SANDBOX]
    line += _board(plan, handed)
    line += firmware.boots(plan, handed.boot, kernel_line(plan, tsc_khz=handed.tsc_khz) if plan.boot else "")
    line += _channels(plan, handed)
    for number, disk in enumerate(plan.disks):
        line += _disk(plan, disk, handed.disks[number])
    for number, each in enumerate(plan.nics):
        line += nic(plan, each, handed.nics[number])
    return line + firmware.media(plan, handed.boot)


def process(tag: str) -> str:
    """The part of `-name` by which every process of one Atoll is known."""
    return f"process=atoll-{tag},debug-threads=on"


def fds(handed: Handed) -> tuple[int, ...]:
    """Every descriptor that QEMU must inherit."""
    disks = [layer.fd for disk in handed.disks for layer in disk]
    nics = [fd for nic in handed.nics for fd in (nic.fd, nic.vhost) if fd >= 0]
    channels = [handed.qmp, handed.console, handed.agent, handed.atoll, handed.serial_log]
    return (*channels, *handed.boot.fds(), *disks, *nics)


def kernel_line(plan: BootPlan, *, tsc_khz: int) -> str:
    """The image's part, then what this machine and accelerator need; the root device is the image's matter."""
    own = plan.boot.cmdline if plan.boot else ""
    parts = [own, "console=ttyS0 8250.nr_uarts=1", f"atoll.hostname={plan.name}"]
    if plan.hardware.accel == "tcg":
        parts.append(_TCG_LINE)
        # Without it the guest times its clock against an emulated timer, and hangs now and then on microvm.
        parts += [f"tsc_early_khz={tsc_khz}"] if tsc_khz else []
    if family(plan.hardware.machine) == "microvm":
        parts.append("i8042.nokbd i8042.noaux")
    elif plan.hardware.max_memory > plan.memory:
        # Room above 4 GiB makes Linux set 64 MiB aside for bounce buffers, which virtio never needs.
        parts.append("swiotlb=noforce memhp_default_state=online_movable")
    return " ".join(part for part in parts if part)


def _board(plan: BootPlan, handed: Handed) -> list[str]:
    kind = family(plan.hardware.machine)
    machine = plan.hardware.machine + ",dump-guest-core=off,mem-merge=off"
    machine += {"q35": ",smm=off,vmport=off", "pc": ",smm=off,vmport=off", "microvm": ",acpi=on,rtc=on"}[kind]
    machine += firmware.machine_options(plan)
    line = []
    if plan.forkable:
        machine += ",memory-backend=ram"
        line += ["-object", f"memory-backend-file,id=ram,size={plan.memory},mem-path={handed.ram},share=on"]
    cpus = max(plan.cpus, plan.hardware.max_cpus)
    memory = f"size={plan.memory // 1024}K"
    if kind != "microvm" and plan.hardware.max_memory > plan.memory:
        memory += f",slots={MEMORY_SLOTS},maxmem={plan.hardware.max_memory // 1024}K"
    tcg = f"tcg,thread=multi,tb-size={TB_SIZE // MiB}"
    line += ["-machine", machine, "-accel", tcg if plan.hardware.accel == "tcg" else "kvm"]
    line += ["-cpu", plan.hardware.cpu, "-m", memory]
    line += ["-smp", f"cpus={plan.cpus},sockets=1,cores={cpus},threads=1,maxcpus={cpus}", "-rtc", "base=utc"]
    line += ["-smbios", f"type=1,manufacturer=Atoll,product=Virtual Machine,serial={plan.id},uuid={plan.id}"]
    line += ["-object", "rng-random,id=rng,filename=/dev/urandom"]
    if kind == "microvm":
        return [*line, "-device", "virtio-rng-device,bus=virtio-mmio-bus.22,rng=rng"]
    line += ["-device", "vmgenid,guid=auto"]
    bus = "pcie.0" if kind == "q35" else "pci.0"
    line += ["-vnc", f"unix:{VNC}", "-device", f"VGA,id=screen,bus={bus},addr=02.0"]
    line += [
        "-device",
        f"virtio-rng-pci,bus={bus},addr=04.0,rng=rng",
        "-device",
        f"pvpanic-pci,bus={bus},addr=05.0",
    ]
    if kind == "pc" and (plan.hardware.style == "compatible" or plan.cdrom):
        line += ["-device", "ahci,id=ahci,bus=pci.0,addr=06.0"]  # a q35 has one
    if kind == "q35":
        for port in range(ports([*(d.slot for d in plan.disks), *(n.slot for n in plan.nics)])):
            place = f"addr={8 + port // 8:02x}.{port % 8},multifunction=on"
            line += ["-device", f"pcie-root-port,id=slot{port},bus=pcie.0,chassis={port + 1},{place}"]
    return line


def _channels(plan: BootPlan, handed: Handed) -> list[str]:
    """Monitor, serial console with its log, and the virtio-serial ports of the agent and of Atoll itself."""
    listens = "server=on,wait=off"
    log = f"logfile=/dev/fdset/{handed.serial_log},logappend=on"
    if family(plan.hardware.machine) == "microvm":
        serial = "virtio-serial-device,id=serial,bus=virtio-mmio-bus.23"
    else:
        bus = "pcie.0" if family(plan.hardware.machine) == "q35" else "pci.0"
        serial = f"virtio-serial-pci,id=serial,bus={bus},addr=03.0"
    return [
        *("-chardev", f"socket,id=qmp,fd={handed.qmp},{listens}", "-mon", "chardev=qmp,mode=control"),
        *("-add-fd", f"fd={handed.serial_log},set={handed.serial_log}"),
        *("-chardev", f"socket,id=console,fd={handed.console},{listens},{log}", "-serial", "chardev:console"),
        *("-device", serial),
        *("-chardev", f"socket,id={AGENT},fd={handed.agent},{listens}"),
        *("-device", f"virtserialport,id={AGENT},bus=serial.0,nr=1,chardev={AGENT},name=org.qemu.guest_agent.0"),
        *("-chardev", f"socket,id={ATOLL},fd={handed.atoll},{listens}"),
        *("-device", f"virtserialport,id={ATOLL},bus=serial.0,nr=2,chardev={ATOLL},name=dev.atoll.0"),
    ]


def _disk(plan: BootPlan, disk: DiskPlan, layers: tuple[LayerHanded, ...]) -> list[str]:
    line: list[str] = []
    nodes = iter(disk_nodes(disk, layers))
    for layer in reversed(layers):
        line += ["-add-fd", f"fd={layer.fd},set={layer.fd}"]
        line += ["-blockdev", json.dumps(next(nodes)), "-blockdev", json.dumps(next(nodes))]
    for device in disk_devices(plan, disk):
        line += ["-device", ",".join((str(device.pop("driver")), *(f"{k}={v}" for k, v in device.items())))]
    return line


def disk_nodes(disk: DiskPlan, layers: tuple[LayerHanded, ...]) -> list[dict[str, object]]:
    """The whole chain explicitly, lowest layer first, two nodes a layer: QEMU never guesses a format or follows a
    file's header."""
    nodes: list[dict[str, object]] = []
    for number, layer in reversed(list(enumerate(layers))):
        node = f"disk{disk.slot}-{number}"
        common: dict[str, object] = {
            "read-only": layer.read_only,
            "discard": "unmap" if layer.discard else "ignore",
        }
        common |= _CACHES[disk.cache]
        file = {
            "driver": "host_device" if layer.block_device else "file",
            "node-name": f"{node}-file",
            "filename": f"/dev/fdset/{layer.fd}",
            "aio": "threads",
            "locking": "on",
            **common,
        }
        top = {"driver": layer.format, "node-name": node, "file": f"{node}-file", **common}
        if layer.format == "qcow2":
            below = f"disk{disk.slot}-{number + 1}" if number + 1 < len(layers) else None
            top |= {"backing": below}
        nodes += [file, top]
    return nodes


def disk_devices(plan: BootPlan, disk: DiskPlan) -> list[dict[str, object]]:
    """What the guest sees, as device_add takes it: for scsi and ahci a controller of the disk's own comes first, so
    that every disk has a slot and can go alone; but the first of compatible hardware are where any firmware and
    system looks, on the board's own AHCI. `driver` is the first key."""
    suffix, _, where = _place(plan, disk.slot).partition(",")
    seat: dict[str, object] = {name: value for name, _, value in (part.partition("=") for part in where.split(","))}
    what: dict[str, object] = {"id": f"disk{disk.slot}", "drive": f"disk{disk.slot}-0", "serial": disk.serial}
    what |= {"werror": "stop", "rerror": "stop"}
    if disk.cache in ("writethrough", "directsync"):
        what["write-cache"] = "off"
    if plan.boot is None:
        what["bootindex"] = disk.slot + 1
    if disk.bus == "ahci" and plan.hardware.style == "compatible" and disk.slot < BOARD_DISKS:
        board = "ide" if family(plan.hardware.machine) == "q35" else "ahci"
        return [{"driver": "ide-hd", "bus": f"{board}.{disk.slot}", **what}]
    if disk.bus == "virtio":
        return [{"driver": f"virtio-blk-{suffix}", **seat, **what}]
    controller = f"ctrl{disk.slot}"
    outer, inner = {"scsi": ("virtio-scsi-pci", "scsi-hd"), "ahci": ("ahci", "ide-hd")}[disk.bus]
    return [{"driver": outer, **seat, "id": controller}, {"driver": inner, "bus": f"{controller}.0", **what}]


def nic(plan: BootPlan, nic: NicPlan, handed: NicHanded) -> list[str]:
    """Two options with a word each: the backend and the device."""
    id, plugged = f"net{nic.slot}", nic.plugged
    if plugged.backend == "user":
        start = f",dhcpstart={plugged.address}" if plugged.address else ""
        net = f",net={plugged.subnet}" if plugged.subnet else ""
        forwards = "".join(f",hostfwd={each.protocol}::{each.port}-:{each.to}" for each in plugged.forwards)
        backend = f"user,id={id}{net}{start},hostname={plan.name}{forwards}"
    else:
        vhost = f",vhost=on,vhostfd={handed.vhost}" if handed.vhost >= 0 else ""
        backend = f"tap,id={id},fd={handed.fd}{vhost}"
    what = f"id=nic{nic.slot},netdev={id},mac={nic.mac}"
    if plan.hardware.style == "compatible":
        # 1f is a q35's own: from behind its root ports there is room for a NIC in any slot
        bus, first = ("pcie.0", 0x0A) if family(plan.hardware.machine) == "q35" else ("pci.0", 0x10)
        return ["-netdev", backend, "-device", f"e1000,bus={bus},addr={first + nic.slot:02x}.0,{what},romfile="]
    what += f",host_mtu={plugged.mtu}" if plugged.mtu != 1500 else ""
    what += "" if family(plan.hardware.machine) == "microvm" else ",romfile="  # no PXE: it boots what it is told
    return ["-netdev", backend, "-device", f"virtio-net-{_place(plan, nic.slot)},{what}"]


def _place(plan: BootPlan, slot: int) -> str:
    """The rest of a virtio device's name and its fixed bus address."""
    kind = family(plan.hardware.machine)
    if kind == "q35":
        return f"pci,bus=slot{slot},addr=00.0"
    if kind == "pc":
        return f"pci,bus=pci.0,addr={0x10 + slot:02x}.0"
    return f"device,bus=virtio-mmio-bus.{slot + 1}"  # a disk on transport 0 hangs the guest (QEMU 7.2)
