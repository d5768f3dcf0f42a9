"""The part of QEMU's command line that says what a guest boots from: firmware, bootloader, CD-ROM, seed. Pure."""

import json

import msgspec

from atoll.instance.engines.qemu.machine import CDROM_PORT, family
from atoll.instance.model import BootPlan

CDROM, ISO = "cdrom", "iso"
"""Ids of the drive, and of the block node of what is in it."""
"""Id of the CD-ROM drive, and of its tray for QMP."""


class BootHanded(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptors of what a guest boots from; -1: it has none of that."""

    kernel: int = -1
    initrd: int = -1
    code: int = -1
    variables: int = -1
    iso: int = -1
    seed: int = -1

    def fds(self) -> tuple[int, ...]:
        each = (self.kernel, self.initrd, self.code, self.variables, self.iso, self.seed)
        return tuple(fd for fd in each if fd >= 0)


def machine_options(plan: BootPlan) -> str:
    """What UEFI adds to -machine."""
    return ",pflash0=code,pflash1=variables" if plan.uefi else ""


def boots(plan: BootPlan, handed: BootHanded, kernel_line: str) -> list[str]:
    """Firmware and boot order."""
    line: list[str] = []
    if plan.uefi:
        line += _raw("code", handed.code, read_only=True) + _raw("variables", handed.variables)
    if plan.boot is not None:
        return [
            *line,
            *("-kernel", f"/proc/self/fd/{handed.kernel}", "-initrd", f"/proc/self/fd/{handed.initrd}"),
            *("-append", kernel_line),
        ]
    return [*line, "-boot", "strict=on"]


def media(plan: BootPlan, handed: BootHanded) -> list[str]:
    """The CD-ROM drive and the seed. Both are read-only; neither has a place among disks and NICs."""
    line: list[str] = []
    kind = family(plan.hardware.machine)
    if plan.cdrom is not None:
        bus = "ide" if kind == "q35" else "ahci"
        drive = ""
        if plan.cdrom.iso:
            line += _raw(ISO, handed.iso, read_only=True)
            drive = f",drive={ISO}"
        index = f",bootindex={0 if plan.cdrom.first else 99}" if plan.boot is None else ""
        line += ["-device", f"ide-cd,bus={bus}.{CDROM_PORT},id={CDROM}{drive}{index}"]
    if plan.seed:
        line += _raw("seed", handed.seed, read_only=True)
        line += _seed(kind, plan.hardware.style)
    return line


def _seed(kind: str, style: str) -> list[str]:
    """Behind every disk, so that it takes no disk's name in the guest; without drivers for virtio as a CD."""
    if style == "compatible":
        return ["-device", f"ide-cd,bus={'ide' if kind == 'q35' else 'ahci'}.{CDROM_PORT - 1},drive=seed"]
    if kind == "q35":
        port = "pcie-root-port,id=seedport,bus=pcie.0,chassis=64,addr=1d.0"
        return ["-device", port, "-device", "virtio-blk-pci,bus=seedport,addr=00.0,drive=seed,serial=seed"]
    if kind == "pc":
        return ["-device", "virtio-blk-pci,bus=pci.0,addr=1f.0,drive=seed,serial=seed"]
    return ["-device", "virtio-blk-device,bus=virtio-mmio-bus.20,drive=seed,serial=seed"]


def _raw(node: str, fd: int, *, read_only: bool = False) -> list[str]:
    file, top = raw_nodes(node, fd, read_only=read_only)
    return ["-add-fd", f"fd={fd},set={fd}", "-blockdev", json.dumps(file), "-blockdev", json.dumps(top)]


def raw_nodes(node: str, fd: int, *, read_only: bool = False) -> tuple[dict[str, object], dict[str, object]]:
    """A file as it is. Its descriptor may be read-only, which makes QEMU's auto-read-only fail: it is told."""
    return (
        {"driver": "file", "node-name": f"{node}-file", "filename": f"/dev/fdset/{fd}", "read-only": read_only},
        {"driver": "raw", "node-name": node, "file": f"{node}-file", "read-only": read_only},
    )
