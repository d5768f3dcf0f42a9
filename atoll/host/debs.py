"""Debian packages as files: chosen and verified by apt, kept in a cache, read without being installed.

Nothing of this host's own package state is used or changed, and no root is needed: apt solves against an empty
system, from the host's package lists where it has them, else from private ones inside the cache. A set of packages
that is whole in the cache is used again without asking anybody.
"""

import asyncio
import contextlib
import hashlib
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from atoll.base.errors import Broken, Lacking
from atoll.host.run import Ran, run

Fetched = Callable[[int, int], None]
"""Called with the bytes here and the bytes wanted, while packages are downloaded."""

_SOLVE = 120.0  # seconds for one question to apt
_UPDATE = 300.0
_DOWNLOAD = 3600.0
_POLL = 0.25  # seconds between two looks at how much has come
_AR_MAGIC = b"!<arch>\n"


class Deb(msgspec.Struct, frozen=True):
    """A package of one set. `file`: its name in the cache; `size` in bytes; `sha256` as the archive signs it."""

    name: str
    version: str
    file: str
    size: int
    sha256: str


class Wanted(msgspec.Struct, frozen=True):
    """Packages together with all they depend on, except `assumed`, which count as installed already.

    `options`: more options for apt, such as another list of sources.
    """

    names: tuple[str, ...]
    assumed: tuple[str, ...] = ()
    arch: str = "amd64"
    options: tuple[str, ...] = ()


class Set(msgspec.Struct, frozen=True):
    """What was chosen, as the cache records it."""

    wanted: Wanted
    debs: tuple[Deb, ...]


async def obtain(
    wanted: Wanted, cache: Path, *, fetched: Fetched | None = None, refresh: bool = False
) -> dict[str, Path]:
    """The packages' files by package name. With `refresh` newer versions are looked for first.

    Raises `Lacking` (no apt, or the sources do not offer them), `Broken` (a download failed or is not what the
    archive signed) and `Unreachable` (not done in time).
    """
    store, record = cache / "debs", cache / f"{_key(wanted)}.json"
    chosen = None if refresh else await asyncio.to_thread(_known, record, store, wanted)
    if chosen is None:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".apt-") as scratch:
            chosen = await _choose_and_fetch(_Apt(wanted, cache, Path(scratch)), store, fetched, refresh)
        await asyncio.to_thread(_write, record, msgspec.json.encode(Set(wanted, chosen)))
    return {deb.name: store / deb.file for deb in chosen}


async def _choose_and_fetch(apt: "_Apt", store: Path, fetched: Fetched | None, refresh: bool) -> tuple[Deb, ...]:
    """From the host's package lists; where they are missing or too old, from private and fresh ones."""
    if not refresh:
        with contextlib.suppress(Broken):
            return await _fetch(apt, store, fetched)
    await apt.update()
    try:
        return await _fetch(apt, store, fetched)
    except Broken as error:
        names = ", ".join(apt.wanted.names)
        raise Lacking(
            f"the Debian packages {names} could not be had: {error.message}",
            hint="check the network and the package sources in /etc/apt (Debian 12 or newer, main)",
        ) from error


async def _fetch(apt: "_Apt", store: Path, fetched: Fetched | None) -> tuple[Deb, ...]:
    chosen = await apt.choose()
    missing = [deb for deb in chosen if not await asyncio.to_thread(_intact, store / deb.file, deb)]
    if missing:
        await apt.download(missing, fetched)
    for deb in missing:
        if not await asyncio.to_thread(_intact, apt.scratch / deb.file, deb):
            raise Broken(f"{deb.file} is not what the package archive signed")
        os.replace(apt.scratch / deb.file, store / deb.file)
    return chosen


class _Apt:
    """apt with a package state of its own."""

    def __init__(self, wanted: Wanted, cache: Path, scratch: Path) -> None:
        self.wanted = wanted
        self.scratch = scratch
        self._private = cache / "apt"
        self._lists: tuple[str, ...] = ()
        stanza = (
            "Package: {}\nStatus: install ok installed\nVersion: 9999\nArchitecture: {}\nMulti-Arch: foreign\n\n"
        )
        (scratch / "status").write_text("".join(stanza.format(name, wanted.arch) for name in wanted.assumed))

    async def _run(self, program: str, *words: str, timeout: float = _SOLVE, check: bool = True) -> Ran:
        options = {
            "APT::Architecture": self.wanted.arch,
            "APT::Architectures": self.wanted.arch,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
            "Dir::State::status": str(self.scratch / "status"),
            "Dir::Cache": str(self.scratch / "cache"),
        }
        settings = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        argv = [program, "-qq", *settings, *self._lists, *self.wanted.options, *words]
        return await run(argv, timeout=timeout, check=check, cwd=self.scratch)

    async def update(self) -> None:
        """Fetch package lists into the cache. One source that fails is no reason to stop: the choice will tell."""
        lists = self._private / "lists"
        lists.mkdir(parents=True, exist_ok=True)
        self._lists = ("-o", f"Dir::State::lists={lists}")
        await self._run("apt-get", "update", timeout=_UPDATE, check=False)

    async def choose(self) -> tuple[Deb, ...]:
        plan = (await self._run("apt-get", "--simulate", "install", *self.wanted.names)).text
        lines = (line.split() for line in plan.splitlines())
        versions = {words[1]: words[2].lstrip("(") for words in lines if words[:1] == ["Inst"]}
        if not versions:
            raise Broken("apt chose no package")
        named = [f"{name}={version}" for name, version in versions.items()]
        shown = (await self._run("apt-cache", "show", *named)).text
        found = {deb.name: deb for deb in _records(shown) if versions.get(deb.name) == deb.version}
        if lost := versions.keys() - found.keys():
            raise Broken(f"apt has no record of {', '.join(sorted(lost))}")
        return tuple(found[name] for name in sorted(versions))

    async def download(self, debs: Sequence[Deb], fetched: Fetched | None) -> None:
        total = sum(deb.size for deb in debs)
        watch = asyncio.create_task(self._watch(total, fetched)) if fetched else None
        try:
            await self._run("apt-get", "download", *(f"{d.name}={d.version}" for d in debs), timeout=_DOWNLOAD)
        finally:
            if watch is not None:
                watch.cancel()
                await asyncio.wait({watch})

    async def _watch(self, total: int, fetched: Fetched) -> None:
        while True:
            fetched(min(total, sum(found.stat().st_size for found in self.scratch.glob("*.deb"))), total)
            await asyncio.sleep(_POLL)


def _records(text: str) -> Iterator[Deb]:
    """The packages in what `apt-cache show` prints (deb822: deb822(5))."""
    for stanza in text.split("\n\n"):
        lines = (line for line in stanza.splitlines() if line[:1].strip())
        fields = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        try:
            name, version, arch = fields["Package"], fields["Version"], fields["Architecture"]
            # apt-get download writes this name: of the characters in a version only the colon is escaped.
            file = f"{name}_{version.replace(':', '%3a')}_{arch}.deb"
            yield Deb(name, version, file, int(fields["Size"]), fields["SHA256"])
        except (KeyError, ValueError):
            continue  # the assumed packages, which have no file


def _key(wanted: Wanted) -> str:
    return f"set-{hashlib.sha256(msgspec.json.encode(wanted)).hexdigest()[:16]}"


def _known(record: Path, store: Path, wanted: Wanted) -> tuple[Deb, ...] | None:
    try:
        known = msgspec.json.decode(record.read_bytes(), type=Set)
    except (OSError, msgspec.MsgspecError):
        return None
    whole = known.wanted == wanted and all(_intact(store / deb.file, deb) for deb in known.debs)
    return known.debs if whole else None


def _intact(path: Path, deb: Deb) -> bool:
    try:
        with path.open("rb") as stream:
            return os.fstat(stream.fileno()).st_size == deb.size and _sha256(stream) == deb.sha256
    except OSError:
        return False


def _sha256(stream: IO[bytes]) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def _write(path: Path, data: bytes) -> None:
    """At once or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as new:
        new.write(data)
    os.replace(new.name, path)


def unpack(deb: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """What a package would install, in order: the tar member and, for a regular file, its content (to be read
    before going on). The members' names are as the package says them: the caller decides where they may go.

    Format: deb(5), ar(5). Blocking. Raises `Broken` where the file is no such package.
    """
    try:
        with deb.open("rb") as stream:
            _seek_data(stream, deb)
            with tarfile.open(fileobj=stream, mode="r|*") as tar:
                for member in tar:
                    yield member, tar.extractfile(member) if member.isreg() else None
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise Broken(f"{deb.name} cannot be read: {error}") from error


def _seek_data(stream: IO[bytes], deb: Path) -> None:
    """To the content of the archive member `data.tar.*`."""
    if stream.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise Broken(f"{deb.name} is not a Debian package")
    while header := stream.read(60):
        name, size = header[:16].rstrip(b" /"), int(header[48:58])
        if name.startswith(b"data.tar"):
            return
        stream.seek(size + size % 2, os.SEEK_CUR)
    raise Broken(f"{deb.name} has no content")
