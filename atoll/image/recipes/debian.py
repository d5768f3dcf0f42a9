"""Recipes `debian/12`, `debian/13`: a normal Debian server, with systemd, cloud-init, sshd and the guest agent.

mmdebstrap makes one tree from signed packages. It is kept as an archive, the root file system of containers, and on
a disk with its own bootloader, for BIOS and UEFI; kernel and a small initrd beside it are for direct boot, which is
quicker. Ubuntu's releases (ubuntu.py) are made the same way.
"""

import asyncio
import functools
import hashlib
import lzma
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path

import msgspec

from atoll.base.errors import Broken
from atoll.base.ids import Bytes
from atoll.base.units import GiB, MiB
from atoll.host import cpio, debs
from atoll.host.run import find, run
from atoll.image.recipes import bootdisk, bootstrap, kernel
from atoll.image.recipes.recipe import Built, Progress, Recipe

PACKAGES = tuple(
    "systemd systemd-sysv systemd-resolved libnss-resolve libpam-systemd dbus udev linux-image-cloud-amd64 "
    "initramfs-tools zstd cloud-init cloud-guest-utils openssh-server qemu-guest-agent sudo iproute2 iputils-ping "
    "ca-certificates curl less nano fdisk e2fsprogs dosfstools bash-completion procps netbase".split()
)
EARLY = ("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_console", "virtio_net", "isofs")
"""Modules of the initrd: what reaches the disk; then what udev would load soon after, one process each."""
CMDLINE = (
    "root=LABEL=atoll-root rw console=ttyS0,115200 quiet init_on_alloc=0 audit=0 memhp_default_state=online_movable"
)
LABEL = "atoll-root"
DISK = Bytes(3 * GiB)
MIN_MEMORY = Bytes(256 * MiB)
_MIRROR = "http://deb.debian.org/debian"
_SECURITY = "http://deb.debian.org/debian-security"
_PACK = 300.0  # seconds to compress the tree, or to convert the disk
_NAMESPACE = uuid.UUID("6b0a2f1e-3c0d-4c0e-9a53-6c1f2e7d9b10")


class Release(msgspec.Struct, frozen=True):
    """`name`: as in `debian/12`; `suite`: its code name; `extra`: a folder of files/debian that only it needs."""

    name: str
    suite: str
    extra: str = ""


class Server:
    """The recipe of one release: `system` gives what it is made of at the time it is built, or raises Lacking."""

    def __init__(self, name: str, system: Callable[[], bootstrap.System], about: str) -> None:
        self.name, self._system, self.about = name, system, about

    async def __call__(self, out: Path, cache: Path, progress: Progress, *, refresh: bool = False) -> Built:
        """See `Recipe`. The same packages give the same files, but not the same bytes: inodes tell the time."""
        system = self._system()
        bootstrap.check_host(system.name)
        for tool in ("mmdebstrap", "sfdisk", "mkfs.vfat", "mcopy", "grub-mkimage", "zstd"):
            find(tool)  # missing ones are told before minutes of work
        busybox = await debs.obtain(debs.Wanted(names=("busybox-static",)), cache, refresh=refresh)
        with tempfile.TemporaryDirectory(dir=out, prefix=".build-", ignore_cleanup_errors=True) as scratch:
            work = Path(scratch)
            os.chmod(work, 0o755)  # noqa: S103 - apt's own user reads there
            archive, tree, root, raw = work / "rootfs.tar", work / "tree", work / "root.ext4", work / "disk.raw"
            await bootstrap.bootstrap(system, archive, work, cache / f"archives-{system.suite}", progress)
            progress("making the file system", 80)
            ids = _ids(system.name)
            try:
                size = bootdisk.root_size(DISK)
                await bootstrap.fill(archive, tree, root, size=size, label=LABEL, uuid=ids.root)
                progress("making the initrd", 84)
                version = await _kernel(tree, busybox["busybox-static"], out)
            finally:
                await bootstrap.remove(tree)
            progress("making the disk", 86)
            await bootdisk.assemble(raw, size=DISK, root=root, label=LABEL, ids=ids, work=work)
            root.unlink()
            progress("converting the disk", 90)
            disk, rootfs = out / "disk.qcow2", out / "rootfs.tar.zst"
            await run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)], timeout=_PACK)
            progress("packing the tree", 95)
            await run(["zstd", "-q", "-3", str(archive), "-o", str(rootfs)], timeout=_PACK)
        progress("built", 100)
        return Built(
            files={"kernel": out / "kernel", "initrd": out / "initrd", "disk": disk, "rootfs": rootfs},
            cmdline=CMDLINE,
            disk_size=DISK,
            agent=True,
            min_memory=MIN_MEMORY,
            firmware="any",
            source=f"recipe {system.name}, Linux {version}",
        )


def folder() -> Path:
    """files/debian: what comes over the packages' files."""
    return Path(str(resources.files(__package__))) / "files/debian"


def _debian(release: Release) -> bootstrap.System:
    suite, files = release.suite, folder()
    return bootstrap.System(
        name=release.name,
        suite=suite,
        sources=(
            f"deb {_MIRROR} {suite} main",
            f"deb {_MIRROR} {suite}-updates main",
            f"deb {_SECURITY} {suite}-security main",
        ),
        packages=PACKAGES,
        overlays=(files / "root", *([files / release.extra] if release.extra else [])),
        script=files / "customize",
    )


def _ids(name: str) -> bootdisk.Ids:
    """The same for each build of a release: nothing tells disks apart by them but the disks themselves."""
    drawn = {part: str(uuid.uuid5(_NAMESPACE, f"{name}/{part}")) for part in ("disk", "bios", "esp", "root")}
    return bootdisk.Ids(**drawn, volume=hashlib.sha256(name.encode()).hexdigest()[:8])


async def _kernel(tree: Path, busybox: Path, out: Path) -> str:
    """Write `kernel` and `initrd` for direct boot; return the kernel's release."""
    folders = sorted((tree / "usr/lib/modules").iterdir())
    if not folders:
        raise Broken("the packages hold no kernel")
    packed = [str(path) for path in folders[-1].rglob("*.ko.zst")]
    if packed:  # as Ubuntu has them
        await run(["zstd", "-q", "-d", "--rm", *packed], timeout=_PACK)
    return await asyncio.to_thread(_initrd, tree / "boot", folders[-1], busybox, out)


def _initrd(boot: Path, folder: Path, busybox: Path, out: Path) -> str:
    (out / "kernel").write_bytes(kernel.direct((boot / f"vmlinuz-{folder.name}").read_bytes()))
    paths = {path: path.relative_to(folder).as_posix() for path in sorted(_modules(folder))}
    modules = dict(kernel.module(name, _plain(path)) for path, name in paths.items())
    names = [name for name in EARLY if name in modules]
    entries = [
        cpio.directory("dev"),
        cpio.character_device("dev/console", 5, 1),
        *(cpio.directory(name) for name in ("root", "proc", "bin", "modules")),
        cpio.file("bin/busybox", _busybox(busybox), 0o755),
        *(
            cpio.symlink(f"bin/{name}", "busybox")
            for name in ("findfs", "insmod", "mount", "sh", "switch_root", "umount", "usleep")
        ),
        cpio.file("init", (resources.files(__package__) / "files/debian/initramfs").read_bytes(), 0o755),
    ]
    for number, name in enumerate(kernel.in_order(modules, names)):
        entries.append(cpio.file(f"modules/{number:02}-{name}.ko", _plain(folder / modules[name].path)))
    (out / "initrd").write_bytes(cpio.archive(entries))
    return folder.name


def _modules(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*.ko*"):
        if path.suffix in (".ko", ".xz"):
            yield path


def _plain(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _busybox(package: Path) -> bytes:
    for member, content in debs.unpack(package):
        if content is not None and member.name.endswith("bin/busybox"):
            return content.read()
    raise Broken("busybox-static holds no busybox")


RELEASES = (Release("debian/12", "bookworm", "bookworm"), Release("debian/13", "trixie"))
RECIPES: Mapping[str, Recipe] = {
    release.name: Server(release.name, functools.partial(_debian, release), __doc__ or "") for release in RELEASES
}
