"""Recipes `debian/12` and `debian/13`: a normal Debian server, with systemd, cloud-init, sshd and the guest agent.

mmdebstrap makes the tree from signed packages. The disk has its own bootloader, for BIOS and UEFI; kernel and a
small initrd beside it are for direct boot, which is quicker. The tree itself is not kept as a blob: a container
recipe can have it from the same call (`--format=tar`).
"""

import asyncio
import hashlib
import lzma
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path

import msgspec

from atoll.base.errors import Broken, Lacking
from atoll.base.ids import Bytes
from atoll.base.units import GiB, MiB
from atoll.host import cpio, debs
from atoll.host.run import find, run
from atoll.image.recipes import bootdisk, kernel
from atoll.image.recipes.recipe import Built, Progress, Recipe

PACKAGES = (
    "systemd systemd-sysv systemd-resolved libnss-resolve libpam-systemd dbus udev linux-image-cloud-amd64 "
    "initramfs-tools zstd cloud-init cloud-guest-utils openssh-server qemu-guest-agent sudo iproute2 iputils-ping "
    "ca-certificates curl less nano fdisk e2fsprogs dosfstools bash-completion procps netbase"
).split()
UNWANTED = ("man", "locale", "info", "lintian", "linda")
"""Folders of /usr/share that a server has no use for; later packages leave them out too."""
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
_BUILD = 1800.0  # seconds for mmdebstrap, on a slow mirror
_POLL = 0.5
_STAGES = (
    ("running apt-get update", "reading the package lists", 2),
    ("downloading packages with apt", "downloading packages", 8),
    ("extracting archives", "unpacking", 20),
    ("installing essential packages", "installing the base system", 30),
    ("installing remaining packages", "installing packages", 40),
    ("running --customize-hook", "making the file system", 75),
    ("cleaning package lists", "cleaning up", 80),
)
"""What mmdebstrap says, what we say, percent."""
_NAMESPACE = uuid.UUID("6b0a2f1e-3c0d-4c0e-9a53-6c1f2e7d9b10")


class Release(msgspec.Struct, frozen=True):
    """`name`: as in `debian/12`; `suite`: its code name."""

    name: str
    suite: str


class _Debian:
    """One release's recipe."""

    def __init__(self, release: Release) -> None:
        self._release = release

    async def __call__(self, out: Path, cache: Path, progress: Progress, *, refresh: bool = False) -> Built:
        """See `Recipe`. The same packages give the same files, but not the same bytes: inodes tell the time."""
        release = self._release
        if os.geteuid() != 0:
            raise Lacking(f"building {release.name} takes root", hint="run the daemon as root, or import an image")
        for tool in ("mmdebstrap", "sfdisk", "mkfs.vfat", "mcopy", "grub-mkimage"):
            find(tool)  # missing ones are told before minutes of work
        busybox = await debs.obtain(debs.Wanted(names=("busybox-static",)), cache, refresh=refresh)
        with tempfile.TemporaryDirectory(dir=out, prefix=".build-", ignore_cleanup_errors=True) as scratch:
            work = Path(scratch)
            os.chmod(work, 0o755)  # noqa: S103 - apt's own user reads there
            root = work / "root.ext4"
            await self._bootstrap(root, work, cache, progress)
            progress("making the initrd", 82)
            version = await asyncio.to_thread(_kernel, work / "boot", busybox["busybox-static"], out)
            progress("making the disk", 86)
            raw = work / "disk.raw"
            await bootdisk.assemble(raw, size=DISK, root=root, label=LABEL, ids=_ids(release.name), work=work)
            root.unlink()
            progress("converting the disk", 92)
            disk = out / "disk.qcow2"
            await run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)], timeout=300)
        progress("built", 100)
        return Built(
            files={"kernel": out / "kernel", "initrd": out / "initrd", "disk": out / "disk.qcow2"},
            cmdline=CMDLINE,
            disk_size=DISK,
            agent=True,
            min_memory=MIN_MEMORY,
            firmware="any",
            source=f"recipe {release.name}, Linux {version}",
        )

    async def _bootstrap(self, root: Path, work: Path, cache: Path, progress: Progress) -> None:
        """The root file system, made by mmdebstrap and filled by mke2fs while the tree is there. What it says is
        followed for the progress. Downloaded packages stay in the cache."""
        archives = cache / f"archives-{self._release.suite}"
        archives.mkdir(parents=True, exist_ok=True, mode=0o755)
        files = Path(str(resources.files(__package__))) / "files/debian"
        log = work / "mmdebstrap.log"
        watch = asyncio.create_task(_watch(log, progress))
        try:
            with log.open("wb") as output:
                await run(
                    self._command(files),
                    env=self._environment(root, work, archives, files),
                    timeout=_BUILD,
                    output=output,
                )
        except Broken as error:
            said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("E:")]
            reason = said[0].removeprefix("E: ") if said else error.message
            raise Broken(
                f"{self._release.name} could not be built: {reason[:300]}", hint=f"is {_MIRROR} reachable?"
            ) from error
        finally:
            watch.cancel()
            await asyncio.wait({watch})

    def _environment(self, root: Path, work: Path, archives: Path, files: Path) -> dict[str, str]:
        """What the two hooks beside files/debian/root are told."""
        return {
            "TMPDIR": str(work),
            "ATOLL_ARCHIVES": str(archives),
            "ATOLL_BOOT": str(work / "boot"),
            "ATOLL_FS": f"-L {LABEL} -U {_ids(self._release.name).root}",
            "ATOLL_IMAGE": str(root),
            "ATOLL_OVERLAY": str(files / "root"),
            "ATOLL_SIZE": f"{bootdisk.root_size(DISK) // 1024}k",
        }

    def _command(self, files: Path) -> list[str]:
        suite = self._release.suite
        sources = [
            f"deb {_MIRROR} {suite} main",
            f"deb {_MIRROR} {suite}-updates main",
            f"deb {_SECURITY} {suite}-security main",
        ]
        without = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in UNWANTED]
        without += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright"]
        return [
            *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=null", "--skip=essential/unlink"),
            *('--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io", *without),
            f"--include={','.join(PACKAGES)}",
            *(f"--setup-hook={files}/prepare", f"--customize-hook={files}/customize"),
            *(suite, "/dev/null", *sources),
        ]


async def _watch(log: Path, progress: Progress) -> None:
    told = 0
    while True:
        text = await asyncio.to_thread(_text, log)
        for mark, words, percent in _STAGES:
            if percent > told and mark in text:
                told = percent
                progress(words, percent)
        await asyncio.sleep(_POLL)


def _text(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _ids(name: str) -> bootdisk.Ids:
    """The same for each build of a release: nothing tells disks apart by them but the disks themselves."""
    drawn = {part: str(uuid.uuid5(_NAMESPACE, f"{name}/{part}")) for part in ("disk", "bios", "esp", "root")}
    return bootdisk.Ids(**drawn, volume=hashlib.sha256(name.encode()).hexdigest()[:8])


def _kernel(boot: Path, busybox: Path, out: Path) -> str:
    """Write `kernel` and `initrd` for direct boot; return the kernel's release."""
    (folder,) = (boot / "modules").iterdir()
    (out / "kernel").write_bytes(kernel.direct((boot / "vmlinuz").read_bytes()))
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


RELEASES = (Release("debian/12", "bookworm"), Release("debian/13", "trixie"))
RECIPES: Mapping[str, Recipe] = {release.name: _Debian(release) for release in RELEASES}
