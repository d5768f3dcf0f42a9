"""Pool, volume and attachment records: the only file that knows their keys.

Functions ending in -ing contribute a part to the caller's commit (store.txn.merge): it fails with Conflict where
somebody was faster; plan again then. Pools of the project `default` are visible to every project.
"""

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from atoll.base.clock import now
from atoll.base.errors import Absent, Conflict, Exists, Refused
from atoll.base.ids import HostId, PoolId, VolumeId, new_uuid
from atoll.base.names import check_label, did_you_mean
from atoll.storage.model import Life, Pool, PoolPlace, Volume, VolumeAttachment
from atoll.store.api import ABSENT, Entry, Key, Revision, Store, Txn, read_all

SHARED = "default"
"""The project whose pools every project may use."""
DEFAULT = "default"
"""The name of the pool that is there from the first start."""
POOLS = Key("/pools/")
VOLUMES = Key("/volumes/")
ATTACHMENTS = Key("/attachments/")

Record = TypeVar("Record")


class PoolView(msgspec.Struct, frozen=True):
    """A pool and the revision it was read at."""

    pool: Pool
    revision: Revision


class VolumeView(msgspec.Struct, frozen=True):
    """A volume, who holds it, and the revisions both were read at."""

    volume: Volume
    revision: Revision
    held: VolumeAttachment | None = None
    held_revision: Revision = ABSENT


def pool_key(project: str, id: str) -> Key:
    return Key(f"{POOLS}{project}/{id}")


def name_of(project: str, name: str) -> Key:
    return Key(f"/pool-names/{project}/{name}")


def place_of(pool: str, host: str) -> Key:
    return Key(f"/pool-places/{pool}/{host}")


def volume_key(project: str, id: str) -> Key:
    return Key(f"{VOLUMES}{project}/{id}")


def attachment_of(volume: str) -> Key:
    return Key(ATTACHMENTS + volume)


def volume_name(project: str, name: str) -> Key:
    return Key(f"/volume-names/{project}/{name}")


class StorageBook:
    def __init__(self, store: Store) -> None:
        self.store = store

    async def get(self, project: str, name: str) -> Pool:
        """Raises Absent."""
        return (await self.find(project, name)).pool

    async def find(self, project: str, name: str) -> PoolView:
        """By name: the project's own, else the shared one. Raises Absent with what may have been meant."""
        if _sane(name):
            for owner in (project, SHARED):
                index = await self.store.get(name_of(owner, name))
                entry = await self.store.get(pool_key(owner, index.value.decode())) if index else None
                if entry:
                    return PoolView(_load(entry, Pool), entry.revision)
        known = [pool.name for pool in await self.visible(project)]
        raise Absent(
            f"there is no pool {name[:80]} in project {project}",
            hint=did_you_mean(name, known) or f"there are {', '.join(known) or 'none'}",
            field="pool",
        )

    async def visible(self, project: str) -> list[Pool]:
        """Those the project may use, by name: its own hide shared ones of the same name."""
        pools = await self.all()
        mine = {pool.name: pool for pool in pools if pool.project == project}
        shared = {pool.name: pool for pool in pools if pool.project == SHARED}
        return sorted((shared | mine).values(), key=lambda pool: pool.name)

    async def all(self) -> list[Pool]:
        return await self._all(POOLS, Pool)

    async def create(self, project: str, name: str, driver: str, *, description: str = "") -> Pool:
        """Record a pool; each host lays it out when it first opens it. Raises Invalid, Exists."""
        check_label(name)
        id = PoolId(new_uuid())
        pool = Pool(id=id, project=project, name=name, driver=driver, description=description, created=now())
        await self.add_pool(pool)
        return pool

    async def add_pool(self, pool: Pool, place: PoolPlace | None = None) -> Revision:
        """With where it is on a host. Raises Exists."""
        keys = pool_key(pool.project, pool.id), name_of(pool.project, pool.name)
        put = dict(zip(keys, (msgspec.json.encode(pool), pool.id.encode()), strict=True))
        if place is not None:
            put[place_of(place.pool, place.host)] = msgspec.json.encode(place)
        try:
            return await self.store.commit(Txn(expect=dict.fromkeys(keys, ABSENT), put=put))
        except Conflict as error:
            raise Exists(f"pool {pool.name} already exists", hint="choose another name", field="name") from error

    async def pool(self, id: PoolId) -> PoolView | None:
        """By id, whichever project it is of."""
        for key, entry in (await read_all(self.store, POOLS)).entries.items():
            if key.endswith(f"/{id}"):
                return PoolView(_load(entry, Pool), entry.revision)
        return None

    async def move_pool(self, view: PoolView, state: Life) -> PoolView:
        """Raises Conflict where it changed since it was read."""
        key, moved = pool_key(view.pool.project, view.pool.id), msgspec.structs.replace(view.pool, state=state)
        txn = Txn(expect={key: view.revision}, put={key: msgspec.json.encode(moved)})
        return PoolView(moved, await self.store.commit(txn))

    async def remove_pool(self, view: PoolView) -> None:
        """Its records on every host. Raises Conflict where it changed since it was read."""
        pool = view.pool
        places = (await read_all(self.store, Key(f"/pool-places/{pool.id}/"))).entries
        keys = {pool_key(pool.project, pool.id), name_of(pool.project, pool.name), *places}
        expect = {pool_key(pool.project, pool.id): view.revision}
        await self.store.commit(Txn(expect=expect, delete=frozenset(keys)))

    async def places(self, host: HostId) -> list[PoolPlace]:
        """Of every pool that has a place on a host."""
        return [place for place in await self._all(Key("/pool-places/"), PoolPlace) if place.host == host]

    async def ensure_default(self, driver: str = "dir") -> Pool:
        """The shared pool `default`, made at the first start; whoever comes at the same time gets it too."""
        while True:
            try:
                return await self.get(SHARED, DEFAULT)
            except Absent:
                pass
            try:
                return await self.create(SHARED, DEFAULT, driver)
            except Exists:
                continue

    async def place(self, pool: PoolId, host: HostId) -> PoolPlace | None:
        """None: this host has not laid the pool out yet."""
        entry = await self.store.get(place_of(pool, host))
        return _load(entry, PoolPlace) if entry else None

    async def record_place(self, place: PoolPlace) -> None:
        key = place_of(place.pool, place.host)
        await self.store.commit(Txn(put={key: msgspec.json.encode(place)}))

    async def volumes(self, project: str) -> list[Volume]:
        return await self._all(Key(f"{VOLUMES}{project}/"), Volume)

    async def all_volumes(self) -> list[Volume]:
        return await self._all(VOLUMES, Volume)

    async def volume(self, project: str, id: VolumeId) -> Volume:
        """Raises Absent."""
        entry = await self.store.get(volume_key(project, id))
        if entry is None:
            raise Absent(f"there is no volume {id} in project {project}")
        return _load(entry, Volume)

    async def find_volume(self, project: str, ref: str) -> VolumeView:
        """By name or id; an instance's own disk also by the name it was born with. Raises Absent with what may
        have been meant."""
        if _sane(ref):
            index = await self.store.get(volume_name(project, ref))
            view = await self.volume_view(project, index.value.decode() if index else ref)
            if view is not None:
                return view
        volumes = await self.volumes(project)
        for volume in volumes:
            if not volume.named and volume.name == ref and (view := await self.volume_view(project, volume.id)):
                return view
        raise Absent(
            f"there is no volume {ref[:80]} in project {project}",
            hint=did_you_mean(ref, [volume.name for volume in volumes]) or "atoll volume list",
            field="volume",
        )

    async def volume_view(self, project: str, id: str) -> VolumeView | None:
        entry = await self.store.get(volume_key(project, id))
        if entry is None:
            return None
        held = await self.store.get(attachment_of(id))
        return VolumeView(
            _load(entry, Volume),
            entry.revision,
            _load(held, VolumeAttachment) if held else None,
            held.revision if held else ABSENT,
        )

    async def attachments(self) -> dict[str, VolumeAttachment]:
        """By volume."""
        return {held.volume: held for held in await self._all(ATTACHMENTS, VolumeAttachment)}

    async def add_volume(self, pool: PoolView, volume: Volume) -> Revision:
        """A new volume of its own name. Raises Exists, Conflict where the pool changed since it was read."""
        keys = volume_key(volume.project, volume.id), volume_name(volume.project, volume.name)
        values = msgspec.json.encode(volume), volume.id.encode()
        home = pool_key(pool.pool.project, pool.pool.id)
        txn = Txn(
            expect={**dict.fromkeys(keys, ABSENT), home: pool.revision}, put=dict(zip(keys, values, strict=True))
        )
        try:
            return await self.store.commit(txn)
        except Conflict as error:
            if await self.store.get(keys[1]) is not None:
                raise Exists(
                    f"volume {volume.name} already exists", hint="choose another name", field="name"
                ) from error
            raise

    async def write_volume(self, view: VolumeView, now: Volume) -> VolumeView:
        """With its name, where that is another. Raises Exists, Conflict where it, or who holds it, changed since
        it was read."""
        project, name = view.volume.project, volume_name(view.volume.project, now.name)
        key = volume_key(project, now.id)
        expect, put = {key: view.revision}, {key: msgspec.json.encode(now)}
        expect[attachment_of(now.id)] = view.held_revision
        gone: frozenset[Key] = frozenset()
        if now.name != view.volume.name:
            expect[name], put[name] = ABSENT, now.id.encode()
            gone = frozenset({volume_name(project, view.volume.name)})
        try:
            revision = await self.store.commit(Txn(expect, put, gone))
        except Conflict as error:
            if name in expect and await self.store.get(name) is not None:
                raise Exists(f"volume {now.name} already exists", hint="choose another name", field="to") from error
            raise
        return msgspec.structs.replace(view, volume=now, revision=revision)

    def attaching(self, view: VolumeView, attachment: VolumeAttachment) -> Txn:
        """Somebody takes a volume that nobody has, and that stays as it was read."""
        key, home = attachment_of(view.volume.id), volume_key(view.volume.project, view.volume.id)
        return Txn(expect={key: ABSENT, home: view.revision}, put={key: msgspec.json.encode(attachment)})

    async def detaching(self, volume: VolumeId, instance: str) -> Txn:
        """An instance lets go of a volume. Nothing where it does not hold it."""
        entry = await self.store.get(attachment_of(volume))
        if entry is None or _load(entry, VolumeAttachment).instance != instance:
            return Txn()
        return Txn(expect={attachment_of(volume): entry.revision}, delete=frozenset({attachment_of(volume)}))

    async def attachment(self, volume: VolumeId) -> VolumeAttachment | None:
        entry = await self.store.get(attachment_of(volume))
        return _load(entry, VolumeAttachment) if entry else None

    def claiming(self, pool: PoolView, volume: Volume, attachment: VolumeAttachment) -> Txn:
        """A new volume and who may open it, as long as its pool is still as it was read."""
        keys = volume_key(volume.project, volume.id), attachment_of(volume.id)
        values = msgspec.json.encode(volume), msgspec.json.encode(attachment)
        home = pool_key(pool.pool.project, pool.pool.id)
        return Txn(
            expect={**dict.fromkeys(keys, ABSENT), home: pool.revision}, put=dict(zip(keys, values, strict=True))
        )

    async def owning(self, attachment: VolumeAttachment) -> Txn:
        """An attachment's new generation or host. Raises Refused to an older owner, and where another holds it."""
        key = attachment_of(attachment.volume)
        entry = await self.store.get(key)
        held = _load(entry, VolumeAttachment) if entry else None
        if held and held.instance != attachment.instance:
            raise Refused(f"volume {attachment.volume} is attached to instance {held.instance}")
        if held and held.generation > attachment.generation:
            raise Refused(
                f"volume {attachment.volume} belongs to generation {held.generation} of its instance"
                f" on host {held.host}, and generation {attachment.generation} is older"
            )
        revision = entry.revision if entry else ABSENT
        return Txn(expect={key: revision}, put={key: msgspec.json.encode(attachment)})

    async def releasing(self, project: str, volumes: Iterable[VolumeId]) -> Txn:
        """Volumes and their attachments without a record. What has none already is left out."""
        found: dict[Key, Revision] = {}
        names: set[Key] = set()
        for id in volumes:
            for key in (volume_key(project, id), attachment_of(id)):
                if entry := await self.store.get(key):
                    found[key] = entry.revision
                    if key == volume_key(project, id) and (volume := _load(entry, Volume)).named:
                        names.add(volume_name(project, volume.name))
        return Txn(expect=found, delete=frozenset(found) | names)

    async def _all(self, prefix: Key, type: type[Record]) -> list[Record]:
        return [_load(entry, type) for entry in (await read_all(self.store, prefix)).entries.values()]


def _sane(name: str) -> bool:
    """Whether it can stand in a key."""
    return bool(name) and name.isascii() and name.isprintable() and not name.endswith("/")


def _load(entry: Entry, type: type[Record]) -> Record:
    return msgspec.json.decode(entry.value, type=type)
