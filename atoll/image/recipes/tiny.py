"""The recipe `tiny`: a small real server that boots in seconds even where the CPU is emulated.

Debian's cloud kernel, busybox as init and userland, the QEMU guest agent, e2fsprogs to grow the disk. The kernel is
booted directly; its initrd holds only what reaches the disk. The rest is files/tiny.
"""

import asyncio
import hashlib
import lzma
import tempfile
import uuid
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from atoll.base.errors import Broken
from atoll.base.ids import Bytes
from atoll.base.units import MiB, show_size
from atoll.host import cpio, debs
from atoll.host.run import run
from atoll.image.recipes import elf, ext4, kernel, tarball
from atoll.image.recipes.recipe import Built, Progress
from atoll.image.recipes.tree import Kind, Tree

PACKAGES = debs.Wanted(
    names=("linux-image-cloud-amd64", "busybox-static", "qemu-guest-agent", "e2fsprogs"),
    # What these bring is not used here: their scripts are never run.
    assumed=("init-system-helpers", "initramfs-tools", "kmod", "linux-base", "logsave"),
)
PROGRAMS = ("usr/bin/qemu-ga", "usr/bin/resize2fs", "usr/bin/e2fsck", "usr/bin/mke2fs")
EARLY = ("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_console")
"""Modules of the initrd: the buses, the disk, and the agent's channel."""
CMDLINE = (
    "console=ttyS0,115200 quiet memhp_default_state=online_movable"
    # A third of a second less to boot under emulation: no zeroing of what the kernel allocates, no kprobe events,
    # no security modules that nothing here gives a policy to.
    " init_on_alloc=0 initcall_blacklist=init_kprobe_trace lsm=landlock,yama"
)
DISK = Bytes(512 * MiB)
MIN_MEMORY = Bytes(128 * MiB)
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_TIME = 1_577_836_800  # 2020-01-01: the time of every file
_MOUNT_POINTS = {"dev": 0o755, "proc": 0o555, "sys": 0o555, "run": 0o755, "tmp": 0o1777, "mnt": 0o755}
_ROOM = {"root": 0o700, "srv": 0o755, "home": 0o755, "var/log": 0o755, "var/tmp": 0o1777}
_FILES = {"kernel": "kernel", "initrd": "initrd", "disk": "disk.qcow2", "rootfs": "rootfs.tar"}
_SECRET = {"/etc/shadow": 0o600}


async def build(out: Path, cache: Path, progress: Progress, *, refresh: bool = False) -> Built:
    """See `Recipe`."""
    progress("downloading packages", None)
    packages = await debs.obtain(
        PACKAGES,
        cache,
        refresh=refresh,
        fetched=lambda have, want: progress(f"downloading {show_size(want)} of packages", have * 100 // want),
    )
    with tempfile.TemporaryDirectory(dir=out, prefix=".build-", ignore_cleanup_errors=True) as scratch:
        work = Path(scratch)
        progress("unpacking", 10)
        sources = await _unpack(packages, work)
        progress("making the kernel and the initrd", 50)
        root, raw = Tree(work / "root"), work / "disk.raw"
        release, modules = await asyncio.to_thread(_kernel, sources, out)
        await asyncio.to_thread(_root, root, sources, release, modules)
        await asyncio.to_thread(_container, Tree(work / "container"), sources, out / "rootfs.tar")
        progress("making the disk", 65)
        name = await asyncio.to_thread(_identity, root)
        await ext4.make(root, raw, size=DISK, uuid=name, label="atoll-tiny", time=_TIME)
        progress("converting the disk", 85)
        await run(
            ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(out / "disk.qcow2")], timeout=300
        )
    progress("built", 100)
    return Built(
        files={name: out / file for name, file in _FILES.items()},
        cmdline=CMDLINE,
        disk_size=DISK,
        agent=True,
        min_memory=MIN_MEMORY,
        source=f"recipe tiny, Linux {release}",
    )


async def _unpack(packages: Mapping[str, Path], work: Path) -> Tree:
    """All packages as one tree; the kernel's, by far the largest, beside the others."""
    sources, kernels = Tree(work / "debs"), Tree(work / "kernel")

    def fill(tree: Tree, names: list[str]) -> None:
        for name in names:
            tree.unpack(packages[name], _wanted)

    linux = [name for name in packages if name.startswith("linux-image-")]
    others = sorted(packages.keys() - set(linux))
    await asyncio.gather(asyncio.to_thread(fill, sources, others), asyncio.to_thread(fill, kernels, linux))
    sources.nodes.update(kernels.nodes)
    return sources


def _wanted(path: str) -> bool:
    if path.startswith(("usr/share/", "usr/lib/x86_64-linux-gnu/gconv/")):
        return path.endswith("/copyright")
    return True


def _kernel(sources: Tree, out: Path) -> tuple[str, dict[str, kernel.Module]]:
    """Write `kernel` and `initrd`; return the kernel's release and its modules by name."""
    images = sorted(path for path in sources.nodes if path.startswith("boot/vmlinuz-"))
    if not images:
        raise Broken("the packages hold no kernel")
    release = images[-1].removeprefix("boot/vmlinuz-")
    (out / "kernel").write_bytes(kernel.direct(sources.read(images[-1])))
    folder = f"usr/lib/modules/{release}/"
    found = (path for path in sources.nodes if path.startswith(folder) and path.endswith((".ko", ".ko.xz")))
    modules = dict(kernel.module(path.removeprefix(folder), _module(sources, path)) for path in sorted(found))
    entries = [
        cpio.directory("dev"),
        cpio.character_device("dev/console", 5, 1),
        cpio.directory("root"),
        cpio.directory("bin"),
        cpio.file("bin/busybox", sources.read("usr/bin/busybox"), 0o755),
        *(
            cpio.symlink(f"bin/{name}", "busybox")
            for name in ("insmod", "mount", "sh", "switch_root", "umount", "usleep")
        ),
        cpio.file("init", (resources.files(__package__) / "files/tiny/initramfs").read_bytes(), 0o755),
        cpio.directory("modules"),
    ]
    for number, name in enumerate(kernel.in_order(modules, EARLY)):
        entries.append(cpio.file(f"modules/{number:02}-{name}.ko", _module(sources, folder + modules[name].path)))
    (out / "initrd").write_bytes(cpio.archive(entries))
    return release, modules


def _module(sources: Tree, path: str) -> bytes:
    """A module's ELF file: decompressed, as busybox loads it quicker and an initrd wants it."""
    data = sources.read(path)
    return lzma.decompress(data) if path.endswith(".xz") else data


def _root(root: Tree, sources: Tree, release: str, modules: Mapping[str, kernel.Module]) -> None:
    """Fill the root file system."""
    root.merge_links()
    for path, mode in {**_MOUNT_POINTS, **_ROOM}.items():
        root.directory(path, mode)
    root.link("var/run", "../run")
    root.link("etc/resolv.conf", "../run/resolv.conf")
    _programs(root, sources)
    folder = f"usr/lib/modules/{release}"
    for one in modules.values():
        root.file(f"{folder}/{one.path.removesuffix('.xz')}", _module(sources, f"{folder}/{one.path}"))
    for name, data in kernel.index(modules).items():
        root.file(f"{folder}/{name}", data)
    for path in sources.nodes:
        if path.startswith("usr/share/doc/"):
            root.take(sources, path)
    _overlay(root, "", Path(str(resources.files(__package__) / "files/tiny/root")))


def _container(root: Tree, sources: Tree, to: Path) -> None:
    """The same system for containers, as a tar archive: without kernel, agent and whatever tends a disk."""
    root.merge_links()
    for path, mode in {**_MOUNT_POINTS, **_ROOM}.items():
        root.directory(path, mode)
    root.link("var/run", "../run")
    _busybox(root, sources)
    for folder in ("root", "container"):
        _overlay(root, "", Path(str(resources.files(__package__) / f"files/tiny/{folder}")))
    for path in ("usr/bin/shutdown", "etc/init.d/agent", "etc/init.d/after-agent", "etc/init.d/grow"):
        root.nodes.pop(path)
    tarball.write(root, to, time=_TIME)


def _busybox(root: Tree, sources: Tree) -> None:
    """Under all its names."""
    busybox = sources.read("usr/bin/busybox")
    for applet in _applets(busybox):
        root.link(f"usr/bin/{applet}", "busybox")
    root.take(sources, "usr/bin/busybox")


def _programs(root: Tree, sources: Tree) -> None:
    """busybox under all its names, then the programs with every library that they ask for."""
    _busybox(root, sources)
    for name in ("poweroff", "reboot", "halt"):
        root.link(f"usr/bin/{name}", "shutdown")
    root.link("usr/bin/mkfs.ext4", "mke2fs")
    wanted = list(PROGRAMS)
    done: set[str] = set()
    while wanted:
        path = wanted.pop()
        if path not in done:
            done.add(path)
            root.take(sources, path)
            names = elf.needed(root.read(path))
            wanted += [name if "/" in name else f"{_LIBRARIES}/{name}" for name in names]


def _applets(busybox: bytes) -> list[str]:
    """The names in busybox's own sorted table, which begins with `[`; the program itself is not run."""
    start = busybox.find(b"\0[\0[[\0") + 1
    if not start:
        raise Broken("busybox has no table of applets")
    return busybox[start : busybox.index(b"\0\0", start)].decode().split("\0")


def _overlay(root: Tree, at: str, folder: Path) -> None:
    """Every file under a folder, at the same place of the tree. What begins as a script is a program."""
    for item in sorted(folder.iterdir()):
        path = f"{at}/{item.name}"
        if item.is_dir():
            _overlay(root, path, item)
        else:
            data = item.read_bytes()
            root.file(path, data, _SECRET.get(path, 0o755 if data.startswith(b"#!") else 0o644))


def _identity(root: Tree) -> str:
    """A uuid drawn from the content, so that the same content makes the same disk."""
    digest = hashlib.sha256()
    for path, node in root:
        digest.update(f"{path}\0{node.kind}\0{node.mode}\0{node.target}\0".encode())
        if node.kind is Kind.FILE:
            digest.update(hashlib.sha256(node.source.read_bytes()).digest())
    return str(uuid.UUID(bytes=digest.digest()[:16], version=4))
