"""A distribution's root file system as one archive, made by mmdebstrap from signed packages; and an ext4 of it.

Root makes it as root. An ordinary user makes it in a user namespace, for which the host must give the user a range
of ids (`/etc/subuid`) and the program newuidmap. Both give the same.
"""

import asyncio
import io
import os
import pwd
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from atoll.base.errors import Broken, Lacking
from atoll.base.ids import Bytes
from atoll.host.run import find, run
from atoll.image.recipes.recipe import Progress

UNWANTED = ("man", "locale", "info", "lintian", "linda")
"""Folders of /usr/share that a server has no use for; later packages leave them out too."""
EXTRACT = ("tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--exclude=./dev/*", "-xpf")
"""Without device nodes, which a namespace cannot make: the kernel has its own."""
_INSIDE = ("unshare", "--user", "--map-auto", "--map-root-user", "--")
_BUILD = 1800.0  # seconds for mmdebstrap, on a slow mirror
_FILL = 300.0
_POLL = 0.5
_STAGES = (
    ("running apt-get update", "reading the package lists", 2),
    ("downloading packages with apt", "downloading packages", 8),
    ("extracting archives", "unpacking", 20),
    ("installing essential packages", "installing the base system", 30),
    ("installing remaining packages", "installing packages", 40),
    ("running --customize-hook", "adapting it", 70),
    ("creating tarball", "making the archive", 75),
)
"""What mmdebstrap says, what we say, percent."""


class System(msgspec.Struct, frozen=True, kw_only=True):
    """`name`: the recipe's; `suite`: its code name; `sources`: lines of sources.list(5); `keyring`: the file with
    the keys that they are signed with, None: as Debian's. `overlays`: folders whose files come over it."""

    name: str
    suite: str
    sources: tuple[str, ...]
    packages: tuple[str, ...]
    overlays: tuple[Path, ...]
    script: Path
    keyring: Path | None = None


def check_host(name: str, subuid: Path = Path("/etc/subuid")) -> None:
    """What building takes beyond tools. Raises Lacking: which setting or package an ordinary user misses."""
    if os.geteuid() == 0:
        return
    find("newuidmap")
    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        raise Lacking(
            f"building {name} takes a user with a name, and uid {uid} has none",
            hint="run the daemon as root, or as a user of /etc/passwd",
        ) from None
    ranges = subuid.read_text(errors="replace").splitlines() if subuid.exists() else []
    if not any(line.split(":")[0] in (user, str(uid)) for line in ranges):
        raise Lacking(
            f"building {name} takes a range of user ids, and {user} has none",
            hint=f"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
        )
    for setting, needed in (("user/max_user_namespaces", "96365"), ("kernel/unprivileged_userns_clone", "1")):
        path = Path("/proc/sys") / setting
        if path.exists() and path.read_text().strip() == "0":
            key = setting.replace("/", ".")
            raise Lacking(
                f"building {name} takes a user namespace, and {key} is 0", hint=f"as root: sysctl {key}={needed}"
            )


async def bootstrap(system: System, out: Path, work: Path, archives: Path, progress: Progress) -> None:
    """Write the archive `out`, a plain tar with owners, capabilities and extended attributes. Packages that are
    in `archives` are not fetched again; what is fetched is kept there. Raises Broken, Unreachable, Lacking."""
    overlay = work / "overlay.tar"
    await asyncio.to_thread(_prepare, system, archives, overlay)
    log = work / "mmdebstrap.log"
    watch = asyncio.create_task(_watch(log, progress))
    with _scratch(work) as scratch:
        try:
            with log.open("wb") as output:
                argv = _command(system, out, archives, overlay)
                await run(argv, env={"TMPDIR": str(scratch)}, timeout=_BUILD, output=output)
        except Broken as error:
            said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("E:")]
            reason = said[0].removeprefix("E: ") if said else error.message
            mirror = system.sources[0].split()[1]
            raise Broken(
                f"{system.name} could not be built: {reason[:300]}", hint=f"is {mirror} reachable?"
            ) from error
        finally:
            watch.cancel()
            await asyncio.wait({watch})
            await _sweep(scratch)


async def fill(archive: Path, tree: Path, image: Path, *, size: Bytes, label: str, uuid: str) -> None:
    """An ext4 of `size` bytes with what is in the archive, by way of the folder `tree`, which is then there and is
    taken away by `remove`."""
    await asyncio.to_thread(_make, tree, image)
    inside = () if os.geteuid() == 0 else _INSIDE
    await run([*inside, *EXTRACT, str(archive), "-C", str(tree)], timeout=_FILL)
    layout = ["-t", "ext4", "-b", "4096", "-E", "lazy_itable_init=1", "-L", label, "-U", uuid]
    filled = ["mke2fs", "-q", "-F", *layout, "-d", str(tree), str(image), f"{size // 1024}k"]
    await run([*inside, *filled], timeout=_FILL)


async def remove(*paths: Path) -> None:
    """Folders of a build, whose files may belong to a namespace's ids. Absent is success."""
    inside = () if os.geteuid() == 0 else _INSIDE
    await run([*inside, "rm", "-rf", "--one-file-system", *map(str, paths)], check=False, timeout=_FILL)


def _make(folder: Path, file: Path) -> None:
    folder.mkdir()
    file.touch()


def _prepare(system: System, archives: Path, overlay: Path) -> None:
    archives.mkdir(parents=True, exist_ok=True, mode=0o755)
    _pack(system.overlays, overlay)


def _command(system: System, out: Path, archives: Path, overlay: Path) -> list[str]:
    without = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in UNWANTED]
    without += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright"]
    cached = "/var/cache/apt/archives"
    return [
        *("mmdebstrap", f"--mode={'root' if os.geteuid() == 0 else 'unshare'}", "--variant=minbase"),
        *("--format=tar", "--skip=essential/unlink"),
        *('--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io", *without),
        *([f"--keyring={system.keyring}"] if system.keyring else []),
        f"--include={','.join(system.packages)}",
        f'--setup-hook=mkdir -p "$1{cached}"',
        f"--setup-hook=sync-in {archives} {cached}",
        f"--customize-hook=sync-out {cached} {archives}",
        f"--customize-hook=tar-in {overlay} /",
        f"--customize-hook={system.script.read_text()}",
        *(system.suite, str(out), *system.sources),
    ]


def _pack(folders: Sequence[Path], out: Path) -> None:
    """Their files as one archive, all root's. What begins as a script is a program."""
    with tarfile.open(out, "w") as tar:
        for folder in folders:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                data = path.read_bytes()
                member = tarfile.TarInfo(path.relative_to(folder).as_posix())
                member.size, member.mode = len(data), 0o755 if data.startswith(b"#!") else 0o644
                tar.addfile(member, io.BytesIO(data))


@contextmanager
def _scratch(work: Path) -> Iterator[Path]:
    """Where mmdebstrap makes the tree: an ordinary user's namespace reaches no folder that is the user's alone."""
    if os.geteuid() == 0:
        yield work
        return
    folder = Path(tempfile.mkdtemp(prefix="atoll-build-", dir="/var/tmp"))
    try:
        folder.chmod(0o711)
        inner = folder / "tree"
        inner.mkdir()
        inner.chmod(0o777)  # for the namespace's ids
        yield inner
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _sweep(scratch: Path) -> None:
    """What a build that was ended by force left there belongs to other ids: removed within a namespace."""
    if os.geteuid() != 0:
        await remove(*(scratch / name for name in await asyncio.to_thread(os.listdir, scratch)))


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
