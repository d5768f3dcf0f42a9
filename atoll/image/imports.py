"""import: an image that somebody brings, from a file that the client has sent or from a URL, as an operation."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from atoll.base.errors import Invalid
from atoll.base.ids import Digest
from atoll.host import files, rootfs
from atoll.host.inspector.inspect import Facts, inspect, packing
from atoll.host.outward import Networks
from atoll.image.fetch import Fetch
from atoll.image.library import Library
from atoll.image.model import ROOTFS, Image
from atoll.image.staging import Staging
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery, Undoer, UndoStep

Sha256 = Annotated[str, Meta(pattern="^([0-9a-fA-F]{64})?$")]
Format = Annotated[str, Meta(pattern="^(qcow2|raw|iso|rootfs)?$")]
Arch = Annotated[str, Meta(pattern="^[a-z0-9_]{0,16}$")]
USUAL = "x86_64"


class ImportArgs(msgspec.Struct, frozen=True, kw_only=True):
    """From `url`, or the file that was sent as `upload`, whose content has the digest `sent`.

    `sha256`: what the file must have, as it comes ("": not told). `format`: "": as it is found to be. `replace`: it
    may take a name that there is; whoever uses the image of that name until now keeps it. `arch`: "": a root file
    system's as its programs say, a disk's x86_64.
    """

    project: str
    name: str
    url: str = ""
    upload: str = ""
    sent: str = ""
    sha256: Sha256 = ""
    format: Format = ""
    arch: Arch = ""
    agent: bool = False
    replace: bool = False


class ImportImage:
    """`private`: networks that a URL may lead to though they are not the internet. `kept` is called at the end."""

    name = "image.import"
    args = ImportArgs
    steps: ClassVar[Mapping[str, Recovery]] = {
        "claim": Recovery.TAKE_BACK,
        "fetch": Recovery.RESUME,
        "inspect": Recovery.RESUME,
        "keep": Recovery.FINISH,
    }

    def __init__(self, library: Library, private: Networks, kept: Callable[[], Awaitable[None]]) -> None:
        self._library, self._private, self._kept = library, private, kept

    async def run(self, work: RunningWork, args: ImportArgs) -> dict[str, str]:
        library, staging = self._library, self._library.staging
        if work.resumed == "keep" and not staging.whole(work.id).exists():  # it had been kept
            return self._done(work, await library.get(args.project, args.name))
        digest = ""
        if work.resumed in ("", "fetch"):
            if not work.resumed:
                await self._claim(work, args)
                await work.step("fetch", percent=0)
            digest = await self._fetch(work, args)
            _check(args.sha256, digest)
            await work.step("inspect", percent=90)
        if format := await self._rootfs(work, args):
            return await self._ended(work, await self._keep_rootfs(work, args, format))
        if work.resumed != "keep":
            digest = await self._unpacked(work, digest)
        facts = await files.in_thread(_look, staging, work.id, args.format)
        if work.resumed != "keep":
            await work.step("keep", percent=95)
        return await self._ended(work, await self._keep(work, args, facts, digest))

    async def _ended(self, work: RunningWork, image: Image) -> dict[str, str]:
        await self._library.staging.clear(work.id)
        await self._kept()
        return self._done(work, image)

    def _done(self, work: RunningWork, image: Image) -> dict[str, str]:
        work.about(name=image.name, id=image.digest)
        return {"name": image.name, "digest": image.digest}

    async def _claim(self, work: RunningWork, args: ImportArgs) -> None:
        """From here on what is staged is this operation's, and taken back with it."""
        await work.step("claim", UndoStep("image.unstage", {"key": work.id, "upload": args.upload}), percent=0)
        await self._library.check_free(args.project, args.name, replace=args.replace)
        if args.upload:
            self._library.staging.claim(args.upload, work.id)

    async def _fetch(self, work: RunningWork, args: ImportArgs) -> str:
        """The digest of what came, which is now the whole file of this import."""
        staging = self._library.staging
        if args.upload:
            return args.sent
        part, whole = staging.part(work.id), staging.whole(work.id)
        if whole.exists():  # it was killed right after
            whole.rename(part)
        told = _Progress(work)
        fetch = Fetch(
            args.url, part, staging.note(work.id), largest=staging.largest, allowed=self._private, told=told
        )
        told.host = fetch.host
        sink = await fetch.run()
        part.rename(whole)
        return sink.digest

    async def _rootfs(self, work: RunningWork, args: ImportArgs) -> str:
        """Its format where it is a root file system, else "". Raises Invalid where it was said to be one."""
        if args.format not in ("", ROOTFS):
            return ""
        format = await rootfs.format_of(self._library.staging.whole(work.id))
        if args.format and not format:
            raise Invalid(
                "it was said to be a root file system, and is neither a tar archive nor a squashfs",
                hint="leave --format out, and it is looked at",
                field="file",
            )
        return format

    async def _keep_rootfs(self, work: RunningWork, args: ImportArgs, format: str) -> Image:
        """Its tree is made at once: what cannot be one is no image."""
        library, path = self._library, self._library.staging.whole(work.id)
        work.tell(90, f"unpacking a {format}")
        fresh = await library.trees.make(path, format)
        try:
            arch = _arch(args.arch, fresh.facts.arch)
            if work.resumed != "keep":
                await work.step("keep", percent=95)
            return await library.add_rootfs(
                args.project, args.name, path, fresh, format, arch=arch, replace=args.replace
            )
        finally:
            await library.trees.drop(fresh)

    async def _unpacked(self, work: RunningWork, digest: str) -> str:
        """The digest of the image itself, "" where it is not known."""
        staging = self._library.staging
        staging.disk(work.id).unlink(missing_ok=True)
        packed = await files.in_thread(packing, staging.whole(work.id))
        if not packed:
            return digest
        work.tell(90, f"unpacking {packed}")
        return await staging.unpack(work.id, packed)

    async def _keep(self, work: RunningWork, args: ImportArgs, facts: Facts, digest: str) -> Image:
        return await self._library.add_imported(
            args.project,
            args.name,
            self._library.staging.ready(work.id),
            facts,
            digest=Digest(digest) if digest else None,
            arch=args.arch or USUAL,
            agent=args.agent,
            replace=args.replace,
        )


class _Progress:
    """Tells each percent once."""

    def __init__(self, work: RunningWork) -> None:
        self.host = ""
        self._work, self._last = work, -1

    def __call__(self, here: int, total: int) -> None:
        percent = here * 90 // total if total else None
        if percent != self._last:
            self._last = percent or 0
            self._work.tell(percent, f"fetching from {self.host}")


def _arch(said: str, found: str) -> str:
    """Raises Invalid where most of its programs are of another machine than was said."""
    if said and found and said != found:
        raise Invalid(
            f"it was said to be for {said}, and its programs are for {found}", hint="leave --arch out", field="arch"
        )
    return said or found or USUAL


def _check(wanted: str, digest: str) -> None:
    found = digest.removeprefix("sha256:")
    if wanted and wanted.lower() != found:
        raise Invalid(
            f"its sha256 is {found} and should be {wanted.lower()}: it is another file, or was changed on its way",
            hint="compare with what its publisher says, and fetch it again",
            field="sha256",
        )


def _look(staging: Staging, key: str, said: str) -> Facts:
    return inspect(staging.ready(key), said=said, largest=staging.largest)


def import_undoers(library: Library) -> dict[str, Undoer]:
    async def unstage(args: Mapping[str, str]) -> None:
        library.staging.drop(args["upload"])
        await library.staging.clear(args["key"])

    return {"image.unstage": unstage}
