"""Instance records: the only file that knows their keys and encoding.

The definition (users' side) and the status (the owning host's) are two keys with a revision each, so that
they never conflict. A name is an index entry that holds the id.
"""

import msgspec

from atoll.base.errors import Absent, Conflict, Exists
from atoll.base.ids import InstanceId
from atoll.base.names import did_you_mean
from atoll.instance.model import Instance, InstanceStatus, Power
from atoll.store.api import ABSENT, Entry, Key, Revision, Store, Txn, View, read_all
from atoll.store.txn import merge

SEEDS = Key("/seeds/")
DEFINITIONS = Key("/instances/")
STATUSES = Key("/instance-status/")
NAMES = Key("/instance-names/")


class InstanceView(msgspec.Struct, frozen=True, kw_only=True):
    """Definition and status together, each with the revision it was read at: what the API shows."""

    instance: Instance
    status: InstanceStatus
    revision: Revision
    status_revision: Revision

    @property
    def id(self) -> InstanceId:
        return self.instance.id

    @property
    def name(self) -> str:
        return self.instance.name

    @property
    def project(self) -> str:
        return self.instance.project


def definition(id: str) -> Key:
    return Key(DEFINITIONS + id)


def status(id: str) -> Key:
    return Key(STATUSES + id)


def name_of(project: str, name: str) -> Key:
    return Key(f"{NAMES}{project}/{name}")


def load_definition(_: Key, entry: Entry) -> tuple[Instance, Revision]:
    return msgspec.json.decode(entry.value, type=Instance), entry.revision


def load_status(_: Key, entry: Entry) -> tuple[InstanceStatus, Revision]:
    return msgspec.json.decode(entry.value, type=InstanceStatus), entry.revision


def seed_key(id: str) -> Key:
    """Of the secret that goes with an instance; its content is seeds.py's."""
    return Key(SEEDS + id)


class InstanceBook:
    def __init__(self, store: Store) -> None:
        self._store = store

    def claiming(self, instance: Instance, status_: InstanceStatus) -> Txn:
        """The part of a launch's one commit that makes the instance and its name ours."""
        keys = (definition(instance.id), status(instance.id), name_of(instance.project, instance.name))
        values = (msgspec.json.encode(instance), msgspec.json.encode(status_), instance.id.encode())
        return Txn(expect=dict.fromkeys(keys, ABSENT), put=dict(zip(keys, values, strict=True)))

    def releasing(self, view: InstanceView) -> Txn:
        """The part of a commit that removes its records, secrets too."""
        seed = {seed_key(view.instance.seed)} if view.instance.seed else set()
        return Txn(
            expect={definition(view.id): view.revision},
            delete=frozenset({definition(view.id), status(view.id), name_of(view.project, view.name)} | seed),
        )

    async def get(self, project: str, name: str) -> InstanceView:
        entry = await self._store.get(name_of(project, name)) if name.isascii() and name.isprintable() else None
        view = await self.by_id(InstanceId(entry.value.decode())) if entry else None
        if view is None:
            known = await self.names(project)
            raise Absent(
                f"there is no instance {name[:80]} in project {project}",
                hint=did_you_mean(name, known) or "atoll list",
            )
        return view

    async def by_id(self, id: str) -> InstanceView | None:
        entry, state = await self._store.get(definition(id)), await self._store.get(status(id))
        return join(entry, state) if entry and state else None

    async def names(self, project: str) -> list[str]:
        prefix = Key(f"{NAMES}{project}/")
        return [key.removeprefix(prefix) for key in (await read_all(self._store, prefix)).entries]

    async def all(self) -> list[InstanceView]:
        definitions, statuses = await read_all(self._store, DEFINITIONS), await read_all(self._store, STATUSES)
        return join_all(definitions, statuses)

    async def claim(self, view: InstanceView, now: InstanceStatus, power: Power | None = None) -> InstanceView:
        """Write the status, and in the same commit the power its user wants from now on (None: as it was).

        Raises Refused where the table forbids that state, Conflict where status or definition moved since read.
        """
        view.status.moved(view.name, now.state)
        key, home = status(view.id), definition(view.id)
        put = {key: msgspec.json.encode(now)}
        spec = msgspec.structs.replace(view.instance.spec, power=power or view.instance.spec.power)
        instance = msgspec.structs.replace(view.instance, spec=spec)
        if instance != view.instance:
            put[home] = msgspec.json.encode(instance)
        txn = Txn(expect={key: view.status_revision, home: view.revision}, put=put)
        at = await self._store.commit(txn)
        revision = at if home in put else view.revision
        return InstanceView(instance=instance, status=now, revision=revision, status_revision=at)

    async def write_status(self, view: InstanceView, now: InstanceStatus) -> InstanceView:
        key = status(view.id)
        txn = Txn(expect={key: view.status_revision}, put={key: msgspec.json.encode(now)})
        revision = await self._store.commit(txn)
        return msgspec.structs.replace(view, status=now, status_revision=revision)

    async def write_definition(self, view: InstanceView, now: Instance) -> InstanceView:
        """Raises Conflict where the definition moved since it was read."""
        key = definition(view.id)
        txn = Txn(expect={key: view.revision}, put={key: msgspec.json.encode(now)})
        return msgspec.structs.replace(view, instance=now, revision=await self._store.commit(txn))

    def redefining(self, view: InstanceView, now: Instance) -> Txn:
        """The part of a commit that writes its definition, as long as neither that nor its status moved."""
        home = definition(view.id)
        expect = {home: view.revision, status(view.id): view.status_revision}
        return Txn(expect=expect, put={home: msgspec.json.encode(now)})

    async def write_with(self, view: InstanceView, now: Instance, claims: Txn) -> InstanceView:
        """The definition and whatever it `claims` elsewhere in one commit. Raises Conflict where definition or
        status moved since they were read, or a claim did."""
        revision = await self._store.commit(merge(self.redefining(view, now), claims))
        return msgspec.structs.replace(view, instance=now, revision=revision)

    async def rename(self, view: InstanceView, to: str) -> InstanceView:
        """Raises Exists, Conflict."""
        now = msgspec.structs.replace(view.instance, name=to)
        key, new = definition(view.id), name_of(view.project, to)
        txn = Txn(
            expect={key: view.revision, new: ABSENT},
            put={key: msgspec.json.encode(now), new: view.id.encode()},
            delete=frozenset({name_of(view.project, view.name)}),
        )
        try:
            revision = await self._store.commit(txn)
        except Conflict as error:
            if await self._store.get(new) is not None:
                raise Exists(f"instance {to} already exists", hint="choose another name", field="to") from error
            raise
        return msgspec.structs.replace(view, instance=now, revision=revision)


def join(entry: Entry, state: Entry) -> InstanceView:
    return InstanceView(
        instance=msgspec.json.decode(entry.value, type=Instance),
        status=msgspec.json.decode(state.value, type=InstanceStatus),
        revision=entry.revision,
        status_revision=state.revision,
    )


def join_all(definitions: View, statuses: View) -> list[InstanceView]:
    found = []
    for key, entry in definitions.entries.items():
        state = statuses.entries.get(status(key.removeprefix(DEFINITIONS)))
        if state is not None:
            found.append(join(entry, state))
    return sorted(found, key=lambda view: (view.project, view.name))
