"""Programs of other machines in a container, by qemu-user: process-level virtualization.

The kernel hands such a program to qemu by binfmt_misc. Since Linux 6.7 each user namespace may have its own: the
container gets one in which only that machine is registered, and the host's stays as it is. qemu's file is opened at
the registration (flag F): the image needs not have it.
Format: Linux, Documentation/admin-guide/binfmt-misc.rst; magic numbers: QEMU, scripts/qemu-binfmt-conf.sh.
"""

import asyncio
import os
import platform
import re
import shutil
import sys
from pathlib import Path

from atoll.base.errors import Broken, Lacking
from atoll.host.run import clean_env

MACHINES = {
    "aarch64": (2, 1, 183), "arm": (1, 1, 40), "loongarch64": (2, 1, 258), "ppc64le": (2, 1, 21),
    "riscv64": (2, 1, 243), "s390x": (2, 2, 22), "x86_64": (2, 1, 62),
}  # fmt: skip
"""ELF's class, byte order and number of each."""
NATIVE = {"x86_64": frozenset({"x86_64", "i386"})}
_MARK = "qemu-"
_HOST = Path("/proc/sys/fs/binfmt_misc")
_DEADLINE = 20.0
_ENTER = """
import array, ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
pid, line = int(sys.argv[1]), sys.argv[2].encode()
spaces = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in ("user", "mnt")]
ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
if os.fork() == 0:
    for space in spaces: check(libc.setns(space, 0))
    os.setresgid(0, 0, 0); os.setresuid(0, 0, 0)
    check(libc.mount(b"binfmt_misc", b"/proc/sys/fs/binfmt_misc", b"binfmt_misc", 14, None))
    socket.send_fds(its, [b"y"], [os.open("/proc/sys/fs/binfmt_misc/register", os.O_WRONLY)])
    os._exit(0)
its.close()
said, held, _, _ = socket.recv_fds(ours, 1, 1)
if not held: sys.exit("no binfmt_misc of its own")
os.write(held[0], line)
"""
"""The child enters the container and opens; we write, for it is our file of qemu that is meant, not its own."""


def foreign(arch: str) -> bool:
    own = os.uname().machine
    return arch not in NATIVE.get(own, {own})


def cpu_of(arch: str) -> str:
    """What the hardware of a container for that machine says of its CPU. Raises Lacking: no qemu-user for it here,
    or a kernel that cannot."""
    if not foreign(arch):
        return "host"
    qemu_of(arch)
    if not _registered(arch) and _kernel() < (6, 7):
        raise Lacking(
            f"programs for {arch} need a binfmt_misc of the container's own: that takes Linux 6.7, and this is"
            f" {platform.release()}",
            hint="apt-get install qemu-user-static binfmt-support registers them on the host",
            field="spec.image",
        )
    return _MARK + arch


def qemu_of(arch: str) -> Path:
    """Static, for a container has not the host's libraries. Raises Lacking."""
    found = shutil.which(f"qemu-{arch}-static") if arch in MACHINES else None
    if found is None:
        raise Lacking(
            f"this host runs {os.uname().machine} and has no qemu-user for {arch}",
            hint="apt-get install qemu-user-static",
            field="spec.image",
        )
    return Path(found)


def emulated(cpu: str) -> str:
    """The machine that a container's hardware says is emulated, "" for none."""
    return cpu.removeprefix(_MARK) if cpu.startswith(_MARK) else ""


async def register(init: int, arch: str) -> None:
    """In the container whose first process is `init`. Raises Broken, Lacking."""
    if _registered(arch):
        return
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", _ENTER, str(init), line(arch, qemu_of(arch))),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=clean_env(),
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), _DEADLINE)
    except TimeoutError:
        process.kill()
        said = b"it took too long"
    if process.returncode:
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        raise Broken(f"programs for {arch} could not be registered: {' '.join(last)[:200]}")


def line(arch: str, qemu: Path) -> str:
    """Its registration."""
    size, order, number = MACHINES[arch]
    kind, machine = (b"\2\0", number.to_bytes(2, "little")) if order == 1 else (b"\0\2", number.to_bytes(2, "big"))
    magic = b"\x7fELF" + bytes((size, order, 1)) + bytes(9) + kind + machine
    mask = b"\xff" * 7 + b"\0" + b"\xff" * 8 + (b"\xfe\xff" if order == 1 else b"\xff\xfe") + b"\xff\xff"
    return f":{_MARK}{arch}:M::{_escaped(magic)}:{_escaped(mask)}:{qemu}:F"


def _escaped(raw: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in raw)


def _registered(arch: str) -> bool:
    """On the host, in the way that reaches into containers."""
    try:
        told = (_HOST / f"{_MARK}{arch}").read_text()
    except OSError:
        return False
    return told.startswith("enabled") and bool(re.search(r"^flags: .*F", told, re.MULTILINE))


def _kernel() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(found[1]), int(found[2])) if found else (0, 0)
