"""Security group records: the only file that knows their keys. A group keeps its name for life, which other groups'
rules refer to."""

from collections.abc import Iterable, Sequence

import msgspec

from atoll.base.clock import now
from atoll.base.errors import Absent, Exists, Invalid, Refused
from atoll.base.ids import new_uuid
from atoll.base.names import check_label, did_you_mean
from atoll.network.groups import MAX_RULES, OUTWARDS, Group, GroupRule, check_rule
from atoll.store.api import ABSENT, Key, Revision, Store, Txn, read_all
from atoll.store.txn import commit_afresh

GROUPS = Key("/groups/")


def record(project: str, name: str) -> Key:
    return Key(f"{GROUPS}{project}/{name}")


class GroupBook:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def find(self, project: str, name: str) -> tuple[Group, Revision]:
        """Raises Absent with what may have been meant."""
        entry = await self._store.get(record(project, check_label(name, what="name of a group", field="groups")))
        if entry is None:
            known = [group.name for group in await self.all(project)]
            hint = did_you_mean(name, known) or "atoll network group list"
            raise Absent(f"there is no group {name} in project {project}", hint=hint, field="groups")
        return msgspec.json.decode(entry.value, type=Group), entry.revision

    async def get(self, project: str, name: str) -> Group:
        """Raises Absent."""
        return (await self.find(project, name))[0]

    async def all(self, project: str = "") -> list[Group]:
        """Of a project, or of all, by name."""
        prefix = Key(f"{GROUPS}{project}/" if project else GROUPS)
        entries = (await read_all(self._store, prefix)).entries.values()
        return [msgspec.json.decode(entry.value, type=Group) for entry in entries]

    async def create(
        self,
        project: str,
        name: str,
        *,
        rules: Iterable[GroupRule] | None = None,
        description: str = "",
        id: str = "",
    ) -> Group:
        """`rules` None: outwards everything, inwards nothing. The group that has `id` already is returned as it is.
        Raises Exists, Invalid, Absent (a rule names a group that is not there)."""
        check_label(name)
        wanted = (OUTWARDS,) if rules is None else tuple(map(check_rule, rules))

        async def make() -> tuple[Group, Txn]:
            key = record(project, name)
            if entry := await self._store.get(key):
                found = msgspec.json.decode(entry.value, type=Group)
                if found.id == id:
                    return found, Txn()
                raise Exists(f"group {name} already exists", hint="choose another name", field="name")
            await self._check_peers(project, name, wanted)
            group = Group(
                id=id or new_uuid(),
                project=project,
                name=name,
                rules=wanted,
                description=description,
                created=now(),
            )
            return group, Txn({key: ABSENT}, {key: msgspec.json.encode(group)})

        return (await commit_afresh(self._store, make))[0]

    async def change(
        self, project: str, name: str, *, add: Sequence[GroupRule] = (), remove: Sequence[GroupRule] = ()
    ) -> Group:
        """With rules added (present ones stay as they are) and others removed (absent is success). Raises Absent,
        Invalid."""
        more, less = tuple(map(check_rule, add)), set(map(check_rule, remove))

        async def make() -> tuple[Group, Txn]:
            group, revision = await self.find(project, name)
            await self._check_peers(project, name, more)
            kept = [rule for rule in group.rules if rule not in less]
            rules = tuple(dict.fromkeys((*kept, *more)))
            if len(rules) > MAX_RULES:
                raise Invalid(f"a group has {MAX_RULES} rules at most", hint="use a cidr, or groups", field="rules")
            changed = msgspec.structs.replace(group, rules=rules)
            return changed, Txn(
                {record(project, name): revision}, {record(project, name): msgspec.json.encode(changed)}
            )

        return (await commit_afresh(self._store, make))[0]

    async def using(self, project: str, names: Sequence[str]) -> tuple[tuple[str, ...], Txn]:
        """Ids of groups, and the part of a commit that fails where one of them changed. Raises Absent."""
        found = [await self.find(project, name) for name in dict.fromkeys(names)]
        expect = {record(project, group.name): revision for group, revision in found}
        return tuple(group.id for group, _ in found), Txn(expect)

    async def delete(self, group: Group, users: Sequence[str]) -> None:
        """Absent is success. `users`: names of instances in it. Raises Refused with them, or with the groups whose
        rules name it."""
        others = [
            other.name
            for other in await self.all(group.project)
            if other.id != group.id and any(rule.group == group.name for rule in other.rules)
        ]
        if users or others:
            who = ", ".join([*sorted(users), *(f"group {name}" for name in others)][:5])
            raise Refused(
                f"group {group.name} is used by {who}", hint="take it from them first (atoll nic set --no-group)"
            )
        await self._store.commit(Txn(delete=frozenset({record(group.project, group.name)})))

    async def _check_peers(self, project: str, name: str, rules: Iterable[GroupRule]) -> None:
        for rule in rules:
            if rule.group and rule.group != name:
                await self.find(project, rule.group)
