"""The host's end of a guest's NIC, opened to be handed to QEMU."""

import contextlib
import fcntl
import os
import struct
from pathlib import Path

from atoll.base.errors import Broken, Invalid
from atoll.instance.engines.qemu.argv import NicHanded
from atoll.instance.model import BootPlan, NicPlan

_TUN, _VHOST = "/dev/net/tun", "/dev/vhost-net"
_TUNSETIFF = 0x400454CA
_TAP, _NO_PI, _VNET_HDR = 0x0002, 0x1000, 0x4000  # linux/if_tun.h


def open_nic(plan: BootPlan, nic: NicPlan, opened: contextlib.ExitStack) -> NicHanded:
    """What QEMU is handed for it; closed with `opened`. Raises Broken, Invalid."""
    backend, link = nic.plugged.backend, nic.plugged.link
    if backend == "user":
        return NicHanded()
    if backend not in ("tap", "macvtap"):
        raise Invalid(f"QEMU has no network backend {backend}")
    path = _TUN if backend == "tap" else _device_of(link)
    request = struct.pack("16sH22x", link.encode() if backend == "tap" else b"", _TAP | _NO_PI | _VNET_HDR)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        opened.callback(os.close, fd)
        fcntl.ioctl(fd, _TUNSETIFF, request)
    except OSError as error:
        raise Broken(f"the {backend} {link} of {plan.name} cannot be opened: {error.strerror}") from error
    vhost = -1
    if plan.hardware.accel == "kvm":
        with contextlib.suppress(OSError):  # without vhost QEMU moves the packets itself
            vhost = os.open(_VHOST, os.O_RDWR | os.O_CLOEXEC)
            opened.callback(os.close, vhost)
    return NicHanded(fd=fd, vhost=vhost)


def _device_of(link: str) -> Path:
    """The character device of a macvtap: the host's device manager makes it by the link's index."""
    try:
        index = (Path("/sys/class/net") / link / "ifindex").read_text().strip()
    except OSError as error:
        raise Broken(f"the macvtap {link} is gone") from error
    path = Path(f"/dev/tap{index}")
    if not path.exists():
        raise Broken(f"{path} is missing", hint="the host's device manager (udev, devtmpfs) makes it")
    return path
