"""The images of this host: records and content together.

Each step may be run again after a crash. What a build leaves behind is known before it begins: `workplace(key)`
(taken back by `clear(key)`) and blobs that no record names (taken back by `prune`).
"""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from atoll.base.errors import Absent, AtollError, Invalid
from atoll.base.ids import Bytes, Digest
from atoll.base.names import check_label, did_you_mean
from atoll.host import disks, files, memory, rootfs
from atoll.host.inspector.inspect import Facts, inspect
from atoll.image.blobs import Blobs
from atoll.image.book import ImageBook, taken
from atoll.image.model import ROOTFS, File, Image, Manifest
from atoll.image.recipes.recipe import Built, Progress, Recipe
from atoll.image.staging import MAX_SIZE, Staging, Upload
from atoll.storage.model import Layer
from atoll.storage.trees import Trees
from atoll.storage.treestore import Fresh, TreeStore

FORMATS = frozenset({"raw", "qcow2"})
ROLES = frozenset({"disk", "kernel", "initrd", "iso", ROOTFS})
ISO = "iso"
"""Kind of an image that is a disc, and the role of its one file."""
KERNEL = "kernel"
"""Kind of what an instance that was imported whole boots directly; it has no name."""


class Realised(msgspec.Struct, frozen=True, kw_only=True):
    """An image as this host has it. `base`: the layers of a thin clone below its own, () for a disc; `kernel` and
    `initrd`: paths, "" where it boots from its disk; `iso`: the disc's path."""

    manifest: Manifest
    base: tuple[Layer, ...]
    kernel: str = ""
    initrd: str = ""
    iso: str = ""


class Pruned(msgspec.Struct, frozen=True):
    """What was removed, and the bytes that this freed."""

    manifests: tuple[Digest, ...]
    blobs: tuple[Digest, ...]
    freed: Bytes


class Library:
    """`root`: where content and builds are kept (`ROOT/blobs`, `ROOT/builds`); `cache`: for recipes' downloads;
    `largest`: bytes of an image that is brought; `trees`: where root file systems are unpacked (`ROOT/trees`)."""

    def __init__(
        self,
        root: Path,
        cache: Path,
        book: ImageBook,
        recipes: Mapping[str, Recipe],
        *,
        largest: int = MAX_SIZE,
        trees: TreeStore | None = None,
    ) -> None:
        self.book = book
        self.blobs = Blobs(root / "blobs")
        self._root, self._cache, self._recipes = root.absolute(), cache.absolute(), recipes
        self._builds = self._root / "builds"
        self.staging = Staging(self._root / "incoming", largest)
        self.trees: TreeStore = trees or Trees(self._root / "trees", largest=largest)
        self._releasing = asyncio.Lock()
        """Held from reading which blobs records name to removing the others; nothing is released meanwhile."""

    async def open(self) -> None:
        """Make it ready and bring to an end what a crash left; call once, before any operation resumes."""
        await self.blobs.open()
        await self.trees.open()
        with files.translated(f"clear {self._builds}"):
            await files.in_thread(_remove_tree, self._builds)
            self.staging.open()
        await self.book.recover()
        await self.prune()

    async def list(self, project: str) -> Sequence[Image]:
        return [view.image for view in await self.book.visible(project)]

    async def get(self, project: str, ref: str) -> Image:
        """By name or by the beginning of its digest. Raises Absent, Invalid."""
        return (await self.book.find(project, ref)).image

    def present(self, manifest: Manifest) -> bool:
        """Whether all its content is on this host. An image whose record is here and whose content is not is an
        ordinary thing: it is fetched or built when it is needed."""
        return all(self.blobs.present(file.digest) for file in manifest.files.values())

    async def layers(self, digest: Digest) -> Realised:
        """What a thin clone stands on and boots from. Raises Absent (no such image, or not on this host)."""
        return self.realise(digest, await self.book.manifest(digest))

    def realise(self, digest: Digest, manifest: Manifest) -> Realised:
        """As `layers`, for a caller who has the manifest."""
        if not self.present(manifest):
            raise Absent(f"the content of image {digest} is not on this host", hint="build the image again")
        paths = {role: str(self.blobs.path(file.digest)) for role, file in manifest.files.items()}
        disk = manifest.files.get("disk")
        base = (Layer(paths["disk"], disk.format, read_only=True),) if disk else ()
        kernel, initrd, iso = (paths.get(role, "") for role in ("kernel", "initrd", ISO))
        return Realised(manifest=manifest, base=base, kernel=kernel, initrd=initrd, iso=iso)

    async def rootfs(self, digest: Digest) -> Path:
        """The root file system of an image, as a tree that nobody writes to: made at its first need, kept once.

        Its files belong to the FOREIGN ids. Raises Absent (no such image, no root file system in it, or its content
        is not on this host), Lacking (this user may not), Invalid (made to do harm), Exhausted, Broken.
        """
        file = (await self.book.manifest(digest)).files.get(ROOTFS)
        if file is None:
            raise Absent(
                f"image {digest} has no root file system",
                hint="containers need one: atoll image list tells which images serve them",
                field="spec.image",
            )
        if not self.blobs.present(file.digest):
            raise Absent(f"the content of image {digest} is not on this host", hint="build the image again")
        return await self.trees.lower(file.digest, self.blobs.path(file.digest), file.format)

    def recipe(self, name: str) -> Recipe:
        """Raises Absent."""
        if name not in self._recipes:
            hint = did_you_mean(name, self._recipes) or f"there are {', '.join(sorted(self._recipes))}"
            raise Absent(f"there is no recipe {name[:80]}", hint=hint, field="recipe")
        return self._recipes[name]

    def workplace(self, key: str) -> Path:
        """Where the build `key` (an operation's id) writes. Raises Invalid."""
        return self._builds / check_label(key, what="key of a build")

    async def build(self, recipe: str, key: str, progress: Progress, *, refresh: bool = False) -> Built:
        """Run a recipe in an empty workplace. Raises Absent and whatever the recipe raises."""
        make, out = self.recipe(recipe), self.workplace(key)
        await self.clear(key)
        with files.translated(f"build in {out}"):
            _make_folders(out, self._cache)
        try:
            return await make(out, self._cache, progress, refresh=refresh)
        finally:
            await asyncio.to_thread(memory.give_back)

    async def clear(self, key: str) -> None:
        """Remove a build's workplace. Absent is success."""
        with files.translated(f"clear {self.workplace(key)}"):
            await files.in_thread(_remove_tree, self.workplace(key))

    async def add_built(self, project: str, name: str, built: Built) -> Image:
        """Take a build's files in and give the image its name; an older image of that name keeps its users.

        Equal content gives the same image and is not kept twice. Raises Invalid, Refused, Exhausted, Broken; what
        had been taken in is removed again then.
        """
        check_label(name)
        if not built.files.keys() & {"disk", ISO, ROOTFS} or built.files.keys() - ROLES:
            given = ", ".join(sorted(built.files))
            raise Invalid(f"an image has a disk, an ISO or a root file system, not {given}")
        async with self._taking() as kept:
            for role, path in sorted(built.files.items()):
                kept[role] = await self._take_in(role, path, built)
            manifest = Manifest(
                arch=built.arch,
                files=kept,
                kind=ROOTFS if kept.keys() == {ROOTFS} else "disk",
                cmdline=built.cmdline,
                agent=built.agent,
                min_memory=built.min_memory,
                source=built.source,
                firmware=built.firmware,
            )
            return await self.book.record(project, name, manifest)

    async def check_free(self, project: str, name: str, *, replace: bool) -> None:
        """Before anything is fetched. Raises Invalid, Exists."""
        check_label(name)
        views = await self.book.visible(project)
        if not replace and any(view.image.name == name and view.image.project == project for view in views):
            raise taken(name)

    async def add_imported(
        self,
        project: str,
        name: str,
        path: Path,
        facts: Facts,
        *,
        digest: Digest | None,
        arch: str,
        agent: bool,
        replace: bool,
    ) -> Image:
        """Take in an inspected file of our own tree and give the image its name. `digest`: as it was hashed on its
        way in; None: it is read again. Raises as `add_built`, and Exists; nothing is left then.
        """
        role, format = (ISO, "raw") if facts.format == ISO else ("disk", facts.format)
        if format != "raw" and (await disks.info(path, format)).virtual_size != facts.virtual_size:
            raise Invalid("qemu-img finds another size in it than its header has", field="file")
        async with self._taking() as kept:
            file = await (self.blobs.adopt(path, digest) if digest else self.blobs.add(path, ours=True))
            kept[role] = msgspec.structs.replace(file, format=format, virtual_size=facts.virtual_size)
            kind, firmware = (ISO, "") if role == ISO else ("disk", "any")
            manifest = Manifest(arch=arch, files=kept, kind=kind, firmware=firmware, agent=agent, source="import")
            return await self.book.record(project, name, manifest, replace=replace)

    @contextlib.asynccontextmanager
    async def _taking(self) -> AsyncIterator[dict[str, File]]:
        """For the files of a manifest to come, by role: held until it is recorded, given up where that fails."""
        kept: dict[str, File] = {}
        try:
            yield kept
        except BaseException:
            await self._give_up(kept)
            raise
        await self._release(kept)

    @contextlib.asynccontextmanager
    async def kernel(self, parts: Mapping[str, Path], **told: Any) -> AsyncIterator[Manifest]:
        """A manifest of a kernel and an initial RAM disk alone, whose content is held while a volume comes to stand
        on it. `parts`: of our own tree, by role; `told`: the rest of it. What nothing names afterwards is gone.
        """
        async with self._taking() as kept:
            for role, path in parts.items():
                kept[role] = await self.blobs.add(path, ours=True)
            yield Manifest(files=kept, kind=KERNEL, source="import", **told)

    async def add_rootfs(
        self, project: str, name: str, path: Path, fresh: Fresh, format: str, *, arch: str, replace: bool
    ) -> Image:
        """Take in a root file system, a file of our own tree of which `fresh` was made, and give the image its
        name. Raises as `add_imported`."""
        async with self._taking() as kept:
            file = await self.blobs.add(path, ours=True)
            kept[ROOTFS] = msgspec.structs.replace(file, format=format, virtual_size=Bytes(fresh.facts.bytes))
            await self.trees.keep(fresh, file.digest)
            manifest = Manifest(arch=arch, files=kept, kind=ROOTFS, source="import", system=fresh.facts.system)
            return await self.book.record(project, name, manifest, replace=replace)

    async def content(self, project: str, ref: str, role: str = "") -> tuple[File, AsyncIterator[bytes]]:
        """A file of an image, "" for its disk, disc or root file system, and its bytes. It is read whole also where
        the image is removed meanwhile. Raises Absent."""
        image = await self.get(project, ref)
        role = role or next((role for role in ("disk", ISO) if role in image.manifest.files), ROOTFS)
        if role not in image.manifest.files:
            raise Absent(
                f"image {image.name} has no {role}",
                hint=f"it has {', '.join(sorted(image.manifest.files))}",
                field="role",
            )
        file = image.manifest.files[role]
        if not self.blobs.present(file.digest):
            raise Absent(f"the content of image {image.name} is not on this host")
        return file, self.blobs.read(file.digest)

    async def receive(self, chunks: AsyncIterator[bytes], length: int | None) -> Upload:
        """See Staging."""
        return await self.staging.receive(chunks, length)

    def drop(self, upload: Upload) -> None:
        self.staging.drop(upload.name)

    async def rename(self, project: str, name: str, to: str) -> Image:
        """Raises Absent, Exists, Invalid, Refused."""
        return await self.book.rename(project, name, to)

    async def delete(self, project: str, name: str) -> Pruned:
        """Remove a name, and the content with its last use. Raises Absent, Refused (volumes stand on it)."""
        await self.book.delete(project, name)
        return await self.prune()

    async def prune(self) -> Pruned:
        """Remove manifests that nothing holds, and blobs that no manifest names."""
        manifests = await self.book.prune()
        async with self._releasing:
            here = await self.blobs.usage()
            needed = {file.digest for one in (await self.book.manifests()).values() for file in one.files.values()}
            gone = tuple(digest for digest in here if digest not in needed and not self.blobs.held(digest))
            for digest in gone:  # nothing is awaited between the check and the removal
                self.blobs.remove(digest)
            trees = [digest for digest in await self.trees.usage() if not self.blobs.present(digest)]
        freed = sum(here[digest] for digest in gone) + await self.trees.prune(trees)
        return Pruned(tuple(manifests), gone, Bytes(freed))

    async def verify(self, digest: Digest) -> None:
        """Read an image's content again. Raises Absent, Broken (the message names the damaged blob)."""
        for file in (await self.book.manifest(digest)).files.values():
            await self.blobs.verify(file.digest)

    async def _take_in(self, role: str, path: Path, built: Built) -> File:
        format = built.disk_format if role == "disk" else "raw"
        if role == ROOTFS and not (format := await rootfs.format_of(path)):
            raise Invalid("the root file system of a build is a tar archive or a squashfs")
        virtual = await self._checked_disk(path, format) if role == "disk" else Bytes(0)
        file = await self.blobs.add(path, ours=path.is_relative_to(self._root))
        return msgspec.structs.replace(file, format=format, virtual_size=virtual)

    async def _give_up(self, kept: Mapping[str, File]) -> None:
        await self._release(kept)
        with contextlib.suppress(AtollError):  # the first error is the story
            await self.prune()

    async def _release(self, kept: Mapping[str, File]) -> None:
        async with self._releasing:
            self.blobs.release(*(file.digest for file in kept.values()))

    async def _checked_disk(self, path: Path, format: str) -> Bytes:
        """Its virtual size. A disk that names other files would read whatever of this host it names."""
        if format not in FORMATS:
            raise Invalid(f"an image's disk is {' or '.join(sorted(FORMATS))}, not {format}")
        return (await files.in_thread(_inspected, path, format)).virtual_size


def _inspected(path: Path, format: str) -> Facts:
    return inspect(path, said=format)


def _make_folders(*paths: Path) -> None:
    for path in paths:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)


def _remove_tree(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
