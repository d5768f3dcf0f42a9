"""Image records: the only file that knows their keys.

    /images/PROJECT/NAME            a name for a digest
    /manifests/DIGEST               what the digest is
    /image-refs/DIGEST/VOLUME       a thin clone that stands on it

A manifest lives as long as a name or a reference holds it. A launch's claim expects the name's record as it was
read, in state `ready`. A deletion first moves that record to `deleting`, so that claims fail from then on, and
reads the references after that: so it sees every claim that succeeded. Whoever makes a name puts the manifest
again, so that a removal of the manifest which did not see that name loses.
Images of the project `default` are visible to every project.
"""

import re

import msgspec

from atoll.base.clock import now
from atoll.base.errors import Absent, Bug, Conflict, Exists, Invalid, Refused
from atoll.base.ids import Digest, VolumeId
from atoll.base.names import check_label, did_you_mean, image_name
from atoll.image.digest import canonical, digest_of, read_manifest
from atoll.image.model import Image, ImageState, ImageUse, Manifest
from atoll.store.api import ABSENT, Entry, Key, Revision, Store, Txn, read_all
from atoll.store.txn import commit_afresh

SHARED = "default"
"""The project whose images every project may use."""
IMAGES = Key("/images/")
MANIFESTS = Key("/manifests/")
REFS = Key("/image-refs/")
_PREFIX = re.compile(r"(sha256:)?([0-9a-f]{6,64})\Z")
_ATTEMPTS = 20


class ImageView(msgspec.Struct, frozen=True, kw_only=True):
    """An image, the revision of its record, and how many volumes stand on its content."""

    image: Image
    revision: Revision
    uses: int = 0


def image_key(project: str, name: str) -> Key:
    return Key(f"{IMAGES}{project}/{name}")


def manifest_key(digest: str) -> Key:
    return Key(MANIFESTS + digest)


def refs_of(digest: str) -> Key:
    return Key(f"{REFS}{digest}/")


def ref_key(digest: str, volume: str) -> Key:
    return Key(refs_of(digest) + volume)


class ImageBook:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def find(self, project: str, ref: str) -> ImageView:
        """By name (the project's own, else a shared one) or by the first 6 or more digits of the digest.

        Raises Absent with what may have been meant, Invalid where several digests begin so.
        """
        ref = image_name(ref)
        for owner in (project, SHARED):
            if view := await self._own(owner, ref):
                return view
        views = await self.visible(project)
        if match := _PREFIX.match(ref):
            found = [view for view in views if view.image.digest.startswith(f"sha256:{match[2]}")]
            if len({view.image.digest for view in found}) > 1:
                names = " and ".join(view.image.name for view in found)
                raise Invalid(f"{ref} is the beginning of several images' digests", hint=f"{names}", field="image")
            if found:
                return found[0]
        known = [view.image.name for view in views]
        raise Absent(
            f"there is no image {ref[:80]} in project {project}",
            hint=did_you_mean(ref, known) or f"there are {', '.join(known[:10]) or 'none yet: atoll image build'}",
            field="image",
        )

    async def visible(self, project: str) -> list[ImageView]:
        """Those the project may use, by name, with their uses; its own hide shared ones of the same name."""
        views = await self.all()
        mine = {view.image.name: view for view in views if view.image.project == project}
        shared = {view.image.name: view for view in views if view.image.project == SHARED}
        return [view for _, view in sorted((shared | mine).items())]

    async def all(self) -> list[ImageView]:
        names, refs = await read_all(self._store, IMAGES), await read_all(self._store, REFS)
        uses: dict[str, int] = {}
        for key in refs.entries:
            digest = key.removeprefix(REFS).partition("/")[0]
            uses[digest] = uses.get(digest, 0) + 1
        views = [_view(entry) for entry in names.entries.values()]
        return [msgspec.structs.replace(view, uses=uses.get(view.image.digest, 0)) for view in views]

    async def manifest(self, digest: Digest) -> Manifest:
        """Raises Absent, Broken (it is not what its digest names)."""
        entry = await self._store.get(manifest_key(digest))
        if entry is None:
            raise Absent(f"there is no image {digest}")
        return read_manifest(digest, entry.value)

    async def manifests(self) -> dict[Digest, Manifest]:
        """All, unchecked."""
        entries = (await read_all(self._store, MANIFESTS)).entries
        return {
            Digest(key.removeprefix(MANIFESTS)): msgspec.json.decode(entry.value, type=Manifest)
            for key, entry in entries.items()
        }

    async def uses(self, digest: Digest) -> list[ImageUse]:
        entries = (await read_all(self._store, refs_of(digest))).entries.values()
        return [msgspec.json.decode(entry.value, type=ImageUse) for entry in entries]

    def claiming(self, view: ImageView, use: ImageUse) -> Txn:
        """The part of a launch's commit that makes a volume stand on the image. Raises Refused."""
        image = view.image
        if image.state is not ImageState.READY:
            raise Refused(f"image {image.name} is being deleted")
        ref = ref_key(image.digest, use.volume)
        return Txn(
            expect={image_key(image.project, image.name): view.revision, ref: ABSENT},
            put={ref: msgspec.json.encode(use)},
        )

    def holding(self, manifest: Manifest, use: ImageUse) -> Txn:
        """As `claiming`, of content without a name: it lives as long as the volume."""
        digest = digest_of(manifest)
        ref = ref_key(digest, use.volume)
        return Txn(
            expect={ref: ABSENT}, put={ref: msgspec.json.encode(use), manifest_key(digest): canonical(manifest)}
        )

    async def renaming(self, digest: Digest, use: ImageUse) -> Txn:
        """A part that keeps a reference under its user's new name; nothing where there is none any more."""
        key = ref_key(digest, use.volume)
        entry = await self._store.get(key)
        return Txn({key: entry.revision}, {key: msgspec.json.encode(use)}) if entry else Txn()

    def releasing(self, digest: Digest, volume: VolumeId) -> Txn:
        """The part of a commit after which the volume stands on it no more. Absent is success."""
        return Txn(delete=frozenset({ref_key(digest, volume)}))

    async def record(self, project: str, name: str, manifest: Manifest, *, replace: bool = True) -> Image:
        """Give a manifest a name: a new one, or one that named another image until now.

        Raises Invalid, Refused (the name is being deleted), Exists (another image, and not `replace`). The same
        name for the same content changes nothing.
        """
        check_label(name)
        digest = digest_of(manifest)

        async def make() -> tuple[Image, Txn]:
            view = await self._own(project, name)
            if view and view.image.state is not ImageState.READY:
                raise Refused(f"image {name} is being deleted", hint="try again in a moment")
            if view and view.image.digest == digest:
                return view.image, Txn()
            if view and not replace:
                raise taken(name)
            image = Image(digest=digest, project=project, name=name, manifest=manifest, created=now())
            return image, self._naming(image, view.revision if view else ABSENT)

        image, _ = await commit_afresh(self._store, make, attempts=_ATTEMPTS)
        return image

    async def rename(self, project: str, name: str, to: str) -> Image:
        """Raises Absent, Invalid, Exists, Refused (it is being deleted)."""
        check_label(to, field="to")

        async def make() -> tuple[Image, Txn]:
            view = await self.own(project, name)
            if view.image.state is not ImageState.READY:
                raise Refused(f"image {name} is being deleted")
            if to == name:
                return view.image, Txn()
            if await self._own(project, to):
                raise Exists(f"image {to} already exists", hint="choose another name", field="to")
            image, old = msgspec.structs.replace(view.image, name=to), image_key(project, name)
            part = self._naming(image, ABSENT)
            return image, Txn({**part.expect, old: view.revision}, part.put, frozenset({old}))

        image, _ = await commit_afresh(self._store, make, attempts=_ATTEMPTS)
        return image

    async def delete(self, project: str, name: str) -> None:
        """Remove a name. Raises Absent; Refused with its users where it is the last name of content in use.

        Cancelled or crashed in the middle, `recover` brings it to an end.
        """

        async def mark() -> tuple[ImageView, Txn]:
            view = await self.own(project, name)
            if view.image.state is ImageState.DELETING:
                return view, Txn()
            return view, self._moving(view, ImageState.DELETING)

        await commit_afresh(self._store, mark, attempts=_ATTEMPTS)
        await self._settle(project, name)

    async def recover(self) -> None:
        """At start: bring to an end what was being deleted, either way."""
        for view in await self.all():
            if view.image.state is ImageState.DELETING:
                try:
                    await self._settle(view.image.project, view.image.name)
                except (Refused, Conflict):  # back to ready, or somebody else goes on with it
                    continue

    async def prune(self) -> list[Digest]:
        """Remove manifests that neither a name nor a volume holds. Returns their digests."""
        manifests = (await read_all(self._store, MANIFESTS)).entries  # first: see the module's docstring
        views = await self.all()
        held = {view.image.digest for view in views}
        removed = []
        for key, entry in manifests.items():
            digest = Digest(key.removeprefix(MANIFESTS))
            if digest in held or await self.uses(digest):
                continue
            try:
                await self._store.commit(Txn(expect={key: entry.revision}, delete=frozenset({key})))
            except Conflict:
                continue
            removed.append(digest)
        return removed

    async def own(self, project: str, name: str) -> ImageView:
        """The project's own image of that name: what may be renamed and deleted. Raises Absent."""
        view = await self._own(project, name)
        if view is None:
            known = [view.image.name for view in await self.all() if view.image.project == project]
            hint = did_you_mean(name, known) or f"there are {', '.join(known[:10]) or 'none'}"
            raise Absent(f"project {project} has no image {name[:80]}", hint=hint)
        return view

    async def _own(self, project: str, name: str) -> ImageView | None:
        if not name or not name.isascii() or not name.isprintable() or name.endswith("/"):
            return None
        entry = await self._store.get(image_key(project, name))
        return _view(entry) if entry else None

    def _naming(self, image: Image, expected: Revision) -> Txn:
        key = image_key(image.project, image.name)
        return Txn(
            expect={key: expected},
            put={key: msgspec.json.encode(image), manifest_key(image.digest): canonical(image.manifest)},
        )

    def _moving(self, view: ImageView, state: ImageState) -> Txn:
        key = image_key(view.image.project, view.image.name)
        moved = msgspec.structs.replace(view.image, state=state)
        return Txn(expect={key: view.revision}, put={key: msgspec.json.encode(moved)})

    async def _settle(self, project: str, name: str) -> None:
        """Of a name that is being deleted: remove it, or move it back and raise Refused."""
        for _ in range(_ATTEMPTS):
            view = await self._own(project, name)
            if view is None:
                return
            if view.image.state is ImageState.READY:
                raise Conflict(f"image {name} was changed while it was being deleted", hint="try again")
            txn, users = await self._verdict(view)
            try:
                await self._store.commit(txn)
            except Conflict:
                continue
            if users:
                raise Refused(
                    f"image {name} is in use by {_listed(users)}",
                    hint="delete them first, or build a newer image under its name: they keep what they have",
                )
            return
        raise Conflict(f"image {name} changes too often to be deleted", hint="try again")

    async def _verdict(self, view: ImageView) -> tuple[Txn, list[ImageUse]]:
        """The end of a deletion: its commit, and the users that forbid it."""
        image = view.image
        if image.state is not ImageState.DELETING:
            raise Bug("only what is being deleted is settled")
        manifest = await self._store.get(manifest_key(image.digest))  # first: see the module's docstring
        views = [_view(entry) for entry in (await read_all(self._store, IMAGES)).entries.values()]
        key = image_key(image.project, image.name)
        others = [
            other.image
            for other in views
            if other.image.digest == image.digest and image_key(other.image.project, other.image.name) != key
        ]
        if not any(other.state is ImageState.READY for other in others):
            if users := await self.uses(image.digest):
                return self._moving(view, ImageState.READY), users
            if not others and manifest:
                gone = manifest_key(image.digest)
                return Txn({key: view.revision, gone: manifest.revision}, {}, frozenset({key, gone})), []
        return Txn(expect={key: view.revision}, delete=frozenset({key})), []


def taken(name: str) -> Exists:
    return Exists(
        f"image {name} already exists",
        hint="choose another name, or --replace: who uses the old one keeps it",
        field="name",
    )


def _view(entry: Entry) -> ImageView:
    return ImageView(image=msgspec.json.decode(entry.value, type=Image), revision=entry.revision)


def _listed(users: list[ImageUse]) -> str:
    names = [f"{use.project}/{use.user}" for use in users[:5]]
    more = len(users) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
