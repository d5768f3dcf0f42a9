"""Whether KVM works here: a real kernel must boot to user space on it, with the instructions that guests use.

A device file is no proof: there are machines whose /dev/kvm takes every ioctl and never runs a guest's kernel.
"""

import asyncio
import contextlib
import os
import platform
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Literal

import msgspec

from atoll.base.clock import Timestamp, monotonic, now
from atoll.base.errors import AtollError, Lacking
from atoll.host.probe.guest import GOOD, MARK, initramfs
from atoll.host.run import find, run

VERSION = 1
"""Raised when the probe changes, so that older cached verdicts no longer count."""

Kind = Literal["kvm", "tcg"]
KVM = Path("/dev/kvm")
DEADLINE = 20.0
SILENCE = 6.0
_CPU: dict[Kind, str] = {"kvm": "host", "tcg": "max"}
_NESTED = "where this host is itself a virtual machine, its hypervisor must offer nested virtualization"
_TROUBLE = b"KVM internal error"  # QEMU prints it and stops the guest without ending


class Accel(msgspec.Struct, frozen=True, kw_only=True):
    """What guests run on, and why. `probed`: a guest was booted on KVM, and that decided it.

    `seconds` is how long finding out took; `hint` is what the administrator can do about it.
    """

    kind: Kind
    reason: str
    hint: str = ""
    probed: bool = False
    checked: Timestamp
    seconds: float = 0.0


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """One boot of the probe's guest: whether user space ran rightly, or what became of it instead."""

    good: bool
    story: str
    seconds: float


def device_trouble(device: Path = KVM) -> tuple[str, str] | None:
    """Why /dev/kvm cannot even be opened, and what to do about it; None where it can."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return (
            f"{device} is absent",
            "enable VT-x or AMD-V in the firmware (nested, inside a hypervisor); modprobe kvm_intel or kvm_amd",
        )
    except PermissionError:
        return (
            f"{device} may not be opened by this user",
            "add yourself to group kvm: usermod -aG kvm $USER, then log in again",
        )
    except OSError as error:
        return f"{device} cannot be opened: {error.strerror}", "the KVM module is there but disabled: see dmesg"
    return None


def guest_group(device: Path = KVM) -> int | None:
    """The group by which guests' own users may open the device; None where they need none. Never root's.

    Raises Lacking where they may not open it at all.
    """
    found = device.stat()
    if found.st_mode & 0o006 == 0o006:
        return None
    if found.st_gid and found.st_mode & 0o060 == 0o060:
        return found.st_gid
    raise Lacking(
        f"{device} is for root alone (mode {found.st_mode & 0o777:04o}), and guests run as users of their own",
        hint=f"groupadd -f kvm; chgrp kvm {device}; chmod 660 {device} (udev's rules do it at boot)",
    )


def host_kernel() -> Path | None:
    """The kernel that this host booted, where this user may read it."""
    kernel = Path(f"/boot/vmlinuz-{platform.release()}")
    return kernel if os.access(kernel, os.R_OK) else None


def command(kind: Kind, kernel: Path) -> list[str]:
    """QEMU on the machine type that virtual machines get, with nothing but a serial port."""
    return [
        "qemu-system-x86_64",
        *("-machine", f"q35,accel={kind}", "-cpu", _CPU[kind], "-m", "128M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-kernel", os.path.abspath(kernel), "-initrd", "initramfs"),
        *("-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1 loglevel=6"),
    ]


async def boot(kind: Kind, kernel: Path, *, deadline: float = DEADLINE, silence: float = SILENCE) -> Boot:
    """Boot the probe's guest once. It is given up after `deadline` seconds, or `silence` seconds without a word.

    Nothing is left behind, also when cancelled. Raises `Lacking` without QEMU.
    """
    began = monotonic()
    find("qemu-system-x86_64")
    with tempfile.TemporaryDirectory(prefix="atoll-probe-") as place:
        (Path(place) / "initramfs").write_bytes(initramfs())
        with (Path(place) / "console").open("w+b") as console:
            qemu = asyncio.create_task(
                run(command(kind, kernel), timeout=deadline, cwd=place, check=False, output=console)
            )
            try:
                ending = await _follow(qemu, console, silence)
            finally:
                qemu.cancel()
                with contextlib.suppress(asyncio.CancelledError, AtollError):
                    await qemu
            good, story = judge(_read(console), ending)
    return Boot(good=good, story=story, seconds=round(monotonic() - began, 3))


def _read(console: IO[bytes]) -> bytes:
    return os.pread(console.fileno(), 1 << 20, 0)


async def _follow(qemu: asyncio.Task[object], console: IO[bytes], silence: float) -> str:
    """Wait for the end of QEMU, or of patience. How it ended."""
    began = heard = monotonic()
    said = 0
    while not qemu.done():
        await asyncio.wait({qemu}, timeout=0.05)
        text = _read(console)
        if len(text) > said:
            said, heard = len(text), monotonic()
        if _TROUBLE in text:
            break
        if monotonic() - heard > silence:
            return f"silent for {silence:.0f} s"
    if qemu.done() and not qemu.cancelled() and isinstance(qemu.exception(), AtollError):
        return f"given up after {monotonic() - began:.0f} s"
    return ""


def judge(text: bytes, ending: str = "") -> tuple[bool, str]:
    """Whether a console's text shows a good boot, and its story for a person."""
    if MARK in text:
        verdict = text.split(MARK, 1)[1].split(b"\n", 1)[0].strip()
        return verdict == GOOD, verdict.decode(errors="replace")
    lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if "KVM internal error" in line or "Kernel panic" in line]
    last = (told or [line for line in lines if "terminating on signal" not in line] or ["nothing"])[-1]
    return False, f"no user space ({ending or 'QEMU ended'}); the last words were: {last[:200]}"


async def accel(
    kernels: Iterable[Path] = (), *, device: Path = KVM, deadline: float = DEADLINE, silence: float = SILENCE
) -> Accel:
    """Find out what guests run on here. Never raises for what it finds: without proof of KVM it is TCG.

    `kernels` are tried first, then the host's own. A boot that fails on KVM is repeated under TCG, and only where
    that one succeeds is KVM to blame: otherwise it was the kernel, and the next one is tried.
    """
    began = monotonic()
    try:
        found = await _find_out(kernels, device, deadline, silence)
    except AtollError as error:
        found = _tcg(error.message, error.hint)
    except OSError as error:
        found = _tcg(f"KVM could not be probed: {error}")
    return msgspec.structs.replace(found, seconds=round(monotonic() - began, 3))


async def _find_out(kernels: Iterable[Path], device: Path, deadline: float, silence: float) -> Accel:
    if platform.machine() != "x86_64":
        return _tcg(f"KVM is probed on x86_64 hosts only; this one is {platform.machine()}")
    if trouble := device_trouble(device):
        return _tcg(*trouble)
    candidates = [kernel for kernel in (*kernels, host_kernel()) if kernel and os.access(kernel, os.R_OK)]
    if not candidates:
        return _tcg(
            "KVM is not probed yet: there is no kernel to boot", "build or fetch an image, then probe again"
        )
    misfits = []
    for kernel in candidates:
        fast = await boot("kvm", kernel, deadline=deadline, silence=silence)
        if fast.good:
            if os.geteuid() == 0:
                guest_group(device)
            return Accel(
                kind="kvm",
                reason=f"a guest kernel reached user space in {fast.seconds:.1f} s",
                probed=True,
                checked=now(),
            )
        slow = await boot("tcg", kernel, deadline=3 * deadline, silence=3 * silence)
        if slow.good:
            reason = f"on {device}: {fast.story}; the same kernel boots under TCG in {slow.seconds:.1f} s"
            return _tcg(reason, _NESTED, probed=True)
        misfits.append(f"{kernel.name}: {slow.story}")
    reason = f"KVM could not be probed: no kernel boots even under TCG ({'; '.join(misfits)})"
    return _tcg(reason, "build or fetch an image with a stock kernel, then probe again")


def _tcg(reason: str, hint: str = "", *, probed: bool = False) -> Accel:
    return Accel(kind="tcg", reason=reason, hint=hint, probed=probed, checked=now())
