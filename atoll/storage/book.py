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
from atoll.storage.model import Pool, PoolPlace, Volume, VolumeAttachment
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


class StorageBook:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, project: str, name: str) -> Pool:
        """Raises Absent."""
        return (await self.find(project, name)).pool

    async def find(self, project: str, name: str) -> PoolView:
        """By name: the project's own, else the shared one. Raises Absent with what may have been meant."""
        if name and name.isascii() and name.isprintable() and not name.endswith("/"):
            for owner in (project, SHARED):
                index = await self._store.get(name_of(owner, name))
                entry = await self._store.get(pool_key(owner, index.value.decode())) if index else None
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
        keys = pool_key(project, id), name_of(project, name)
        try:
            await self._store.commit(
                Txn(
                    expect=dict.fromkeys(keys, ABSENT),
                    put=dict(zip(keys, (msgspec.json.encode(pool), id.encode()), strict=True)),
                )
            )
        except Conflict as error:
            raise Exists(f"pool {name} already exists", hint="choose another name", field="name") from error
        return pool

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
        entry = await self._store.get(place_of(pool, host))
        return _load(entry, PoolPlace) if entry else None

    async def record_place(self, place: PoolPlace) -> None:
        key = place_of(place.pool, place.host)
        await self._store.commit(Txn(put={key: msgspec.json.encode(place)}))

    async def volumes(self, project: str) -> list[Volume]:
        return await self._all(Key(f"{VOLUMES}{project}/"), Volume)

    async def all_volumes(self) -> list[Volume]:
        return await self._all(VOLUMES, Volume)

    async def volume(self, project: str, id: VolumeId) -> Volume:
        """Raises Absent."""
        entry = await self._store.get(volume_key(project, id))
        if entry is None:
            raise Absent(f"there is no volume {id} in project {project}")
        return _load(entry, Volume)

    async def attachment(self, volume: VolumeId) -> VolumeAttachment | None:
        entry = await self._store.get(attachment_of(volume))
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
        entry = await self._store.get(key)
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
        for id in volumes:
            for key in (volume_key(project, id), attachment_of(id)):
                if entry := await self._store.get(key):
                    found[key] = entry.revision
        return Txn(expect=found, delete=frozenset(found))

    async def _all(self, prefix: Key, type: type[Record]) -> list[Record]:
        return [_load(entry, type) for entry in (await read_all(self._store, prefix)).entries.values()]


def _load(entry: Entry, type: type[Record]) -> Record:
    return msgspec.json.decode(entry.value, type=type)
