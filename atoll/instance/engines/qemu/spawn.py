"""Start QEMU for one plan: open what it may use, join its control group, drop every right, execute."""

import contextlib
import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from atoll.base.errors import Exhausted, Invalid
from atoll.base.units import MiB, show_size
from atoll.host import process, sockets
from atoll.host.cgroups import Bounds, Cgroups
from atoll.host.files import translated
from atoll.host.probe.accel import guest_group
from atoll.host.process import Process
from atoll.host.run import find, search_path
from atoll.instance.engines.qemu import argv
from atoll.instance.engines.qemu.argv import Handed, LayerHanded
from atoll.instance.engines.qemu.firmware import BootHanded
from atoll.instance.engines.qemu.rundir import RunDir
from atoll.instance.engines.qemu.wires import open_nic
from atoll.instance.model import BootPlan, Limits
from atoll.storage.model import Layer

_TUN, _VHOST = "/dev/net/tun", "/dev/vhost-net"
_TUNSETIFF = 0x400454CA
_TAP, _NO_PI, _VNET_HDR = 0x0002, 0x1000, 0x4000  # linux/if_tun.h
_TCG_OVERHEAD, _KVM_OVERHEAD = argv.TB_SIZE + 320 * MiB, 320 * MiB
_THREADS = 192
"""Beside one a CPU: up to 64 for disk I/O, the rest for VNC, migration and to spare."""


def bounds(plan: BootPlan, limits: Limits, *, memory: int) -> Bounds:
    """QEMU's own memory (devices, translated code, page tables) is beside the guest's and generously guessed:
    the limit is against a QEMU gone wild, not to save memory."""
    own = _TCG_OVERHEAD if plan.hardware.accel == "tcg" else _KVM_OVERHEAD
    return Bounds(
        cpu=limits.cpu,
        cpu_weight=limits.cpu_weight,
        memory=memory + memory // 32 + own,
        pids=max(plan.cpus, plan.hardware.max_cpus) + _THREADS,
    )


def drop(*, uid: int | None, kvm_group: int | None) -> list[str]:
    """What stands before QEMU in its command line to give up every right. Pure."""
    if uid is None:
        return []
    others = ["--clear-groups"] if kvm_group is None else ["--groups", str(kvm_group)]
    who = ["setpriv", "--reuid", str(uid), "--regid", str(uid), *others]
    return [*who, "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--"]


def spawn(plan: BootPlan, run: RunDir, cgroups: Cgroups | None, *, tag: str, tsc_khz: int) -> Process:
    """Returns as soon as the process is there; its monitor takes connections already.

    Raises Absent (a disk or kernel), Lacking (also: KVM is not for its user), Exhausted, Invalid, Broken.
    """
    binary = find("qemu-system-x86_64")
    enter = cgroups.enter(run.name, bounds(plan, plan.limits, memory=plan.memory)) if cgroups else []
    with contextlib.ExitStack() as opened:
        handed = _open(plan, run, opened, tsc_khz)
        log = opened.enter_context(run.log.open("ab", buffering=0))
        kvm = guest_group() if plan.hardware.accel == "kvm" and plan.uid is not None else None
        line = argv.build(plan, handed, tag=tag)
        line[0] = str(binary)
        return process.spawn(
            [*enter, *drop(uid=plan.uid, kvm_group=kvm), *line],
            cwd=run.own,
            fds=argv.fds(handed),
            log=log,
            env={"PATH": search_path(), "LANG": "C.UTF-8"},
        )


def _open(plan: BootPlan, run: RunDir, opened: contextlib.ExitStack, tsc_khz: int) -> Handed:
    def listening(path: Path) -> int:
        sock: socket.socket = opened.enter_context(sockets.listen(path))
        return sock.fileno()

    def file(path: Path | str, flags: int) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        opened.callback(os.close, fd)
        return fd

    with translated(f"open the files of {plan.name}"):
        return Handed(
            qmp=listening(run.qmp),
            console=listening(run.console),
            agent=listening(run.agent),
            atoll=listening(run.atoll),
            serial_log=file(run.serial, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
            boot=_boot(plan, run, file),
            disks=tuple(tuple(open_layer(layer, file) for layer in disk.attachment.layers) for disk in plan.disks),
            nics=tuple(open_nic(plan, nic, opened) for nic in plan.nics),
            ram=_ram(plan, run) if plan.forkable else "",
            tsc_khz=tsc_khz,
        )


def _boot(plan: BootPlan, run: RunDir, file: Callable[[Path | str, int], int]) -> BootHanded:
    def opened(path: str, flags: int = os.O_RDONLY) -> int:
        return file(path, flags) if path else -1

    boot, uefi = plan.boot, plan.uefi
    return BootHanded(
        kernel=opened(_readable(boot.kernel, run, plan.uid)) if boot else -1,
        initrd=opened(_readable(boot.initrd, run, plan.uid)) if boot else -1,
        code=opened(uefi.code) if uefi else -1,
        variables=opened(uefi.variables, os.O_RDWR) if uefi else -1,
        iso=opened(plan.cdrom.iso) if plan.cdrom else -1,
        seed=opened(plan.seed),
    )


def _readable(path: str, run: RunDir, uid: int | None) -> str:
    """QEMU opens kernel and initrd anew, as its own user: what only we may read is copied to its directory."""
    if uid is None or os.stat(path).st_mode & stat.S_IROTH:
        return path
    copy = run.own / Path(path).name
    shutil.copyfile(path, copy)
    os.chown(copy, uid, uid)
    return str(copy)


def path_of(layer: Layer) -> Path:
    """Of a layer that is a file or block device. Raises Invalid for any other URI."""
    path = layer.uri.removeprefix("file://")
    if not path.startswith("/"):
        raise Invalid(f"QEMU is not told yet how to open {layer.uri}")
    return Path(path)


def open_layer(layer: Layer, file: Callable[[Path, int], int]) -> LayerHanded:
    fd = file(path_of(layer), os.O_RDONLY if layer.read_only else os.O_RDWR)
    device = stat.S_ISBLK(os.fstat(fd).st_mode)
    return LayerHanded(
        fd=fd, format=layer.format, read_only=layer.read_only, block_device=device, discard=layer.discard
    )


def _ram(plan: BootPlan, run: RunDir) -> str:
    """Sparse: it takes room as the guest writes, and a guest that finds none dies of it (SIGBUS)."""
    there = os.statvfs(run.ram.parent)
    if there.f_bavail * there.f_frsize < plan.memory:
        free = show_size(there.f_bavail * there.f_frsize)
        raise Exhausted(
            f"{run.ram.parent} has {free} left, too little for the memory of a forkable guest",
            hint="give it more room (mount -o remount,size=...), or launch without --forkable",
        )
    fd = os.open(run.ram, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, plan.memory)
        if plan.uid is not None:
            os.fchown(fd, plan.uid, plan.uid)
    finally:
        os.close(fd)
    return str(run.ram)
